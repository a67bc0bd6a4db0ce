"""What the shards' servers must have before rows can live there: `pgscatter schema apply`."""
