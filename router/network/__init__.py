"""Names of hosts and connections to them, below everything that speaks a protocol."""
