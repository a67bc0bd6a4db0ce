"""Numbers on a command line, with their bounds in what is said of others."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import TypeVar

__all__ = ["between", "listed", "natural", "positive", "real"]

T = TypeVar("T")


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


def real(what: str, least: float, most: float, *, open: bool = False) -> Callable[[str], float]:
    """What takes a number within the bounds, both included unless `open`; `what` names it in a refusal."""
    said = f"between {least:g} and {most:g}" if open else f"from {least:g} to {most:.16g}"

    def number(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if least < value < most if open else least <= value <= most:
            return value
        raise argparse.ArgumentTypeError(f"expected {what} {said}, got {text[:40]!r}")

    return number


def listed(one: Callable[[str], T]) -> Callable[[str], list[T]]:
    """What takes several of them with commas in between."""
    return lambda text: [one(part) for part in text.split(",")]


def _integer(text: str, least: int) -> int:
    if text.isascii() and text.isdigit() and len(text) < 16 and int(text) >= least:
        return int(text)
    raise argparse.ArgumentTypeError(f"expected an integer of {least} or more, got {text!r}")
