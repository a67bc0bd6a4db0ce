"""What two cores cannot show: the router's own code over simulated nodes, on a clock of its own."""
