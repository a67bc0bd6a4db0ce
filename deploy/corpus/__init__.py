"""The demo's corpus: the documentation of Python's standard library, and the model that embeds it."""
