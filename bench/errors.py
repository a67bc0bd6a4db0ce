"""What stops a bench, as opposed to what it measures."""

from __future__ import annotations

__all__ = ["BenchError", "NotHere", "SearchError"]


class BenchError(Exception):
    """The bench cannot run, or not go on; the message says what, which, and the limit.

    Whatever asks a server or runs a command may raise it: docstrings name it only where they say when.
    """


class SearchError(Exception):
    """One search of a load failed; it is counted, and the load goes on."""


class NotHere(Exception):
    """A system to compare with does not run on this machine; the message says why, and the bench goes on."""
