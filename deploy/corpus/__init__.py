"""The demo's corpus: the documentation of Python's standard library."""
