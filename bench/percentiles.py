"""Latencies as an HdrHistogram: constant memory, every percentile within 0.1 % of its true value."""

from __future__ import annotations

from collections.abc import Iterable

from hdrh.histogram import HdrHistogram

__all__ = ["Latencies"]

_LEAST_US = 1
_MOST_US = 3_600_000_000
_DIGITS = 3


class Latencies:
    """Seconds in, seconds out; counted in whole microseconds, from 1 µs to an hour.

    Changed by `record` and `merge` alone.
    """

    def __init__(self, histogram: HdrHistogram | None = None) -> None:
        self._histogram = HdrHistogram(_LEAST_US, _MOST_US, _DIGITS) if histogram is None else histogram

    def __repr__(self) -> str:
        return f"<Latencies of {self.count}: p50 {self.at(50) * 1e3:.3g} ms, p99 {self.at(99) * 1e3:.3g} ms>"

    @property
    def count(self) -> int:
        return int(self._histogram.get_total_count())

    @property
    def mean(self) -> float:
        return float(self._histogram.get_mean_value()) / 1e6

    def record(self, seconds: float) -> None:
        """What lies outside an hour counts as an hour, and is not lost."""
        self._histogram.record_value(min(max(round(seconds * 1e6), _LEAST_US), _MOST_US))

    def merge(self, others: Iterable[Latencies]) -> None:
        for other in others:
            self._histogram.add(other._histogram)

    def at(self, percentile: float) -> float:
        """The latency that `percentile` % did not exceed; 0 if nothing was recorded."""
        return float(self._histogram.get_value_at_percentile(percentile)) / 1e6 if self.count else 0.0

    def encode(self) -> bytes:
        """HdrHistogram's own V2 format, which its other implementations read."""
        return bytes(self._histogram.encode())

    @classmethod
    def decode(cls, data: bytes) -> Latencies:
        return cls(HdrHistogram.decode(data))
