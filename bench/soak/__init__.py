"""A soak under faults: what callers were told, what was stored, and whether each error has its reason."""
