"""What stops a bench, as opposed to what it measures."""

from __future__ import annotations

__all__ = ["BenchError"]


class BenchError(Exception):
    """The bench cannot run, or not go on; the message says what, which, and the limit."""
