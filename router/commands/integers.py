"""Types of integer arguments for argparse, whose messages name the bounds."""

from __future__ import annotations

import argparse
from collections.abc import Callable

__all__ = ["between", "natural", "positive"]


def positive(text: str) -> int:
    """
    Raises:
        argparse.ArgumentTypeError
    """
    return _integer(text, 1)


def natural(text: str) -> int:
    """
    Raises:
        argparse.ArgumentTypeError
    """
    return _integer(text, 0)


def between(bounds: tuple[int, int]) -> Callable[[str], int]:
    """A type of integers within the bounds, both included; it raises as `positive` does."""
    least, most = bounds

    def integer(text: str) -> int:
        if text.isascii() and text.isdigit() and len(text) < 16 and least <= int(text) <= most:
            return int(text)
        raise argparse.ArgumentTypeError(f"expected an integer from {least} to {most}, got {text[:40]!r}")

    return integer


def _integer(text: str, least: int) -> int:
    if text.isascii() and text.isdigit() and len(text) < 16 and int(text) >= least:
        return int(text)
    raise argparse.ArgumentTypeError(f"expected an integer of {least} or more, got {text!r}")
