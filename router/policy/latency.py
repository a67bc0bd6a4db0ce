"""How long a node takes lately: a mean to compare nodes by, and a quantile after which to hedge. Pure.

The quantile is read off a histogram with buckets of equal ratio, so that its error is a share of the value
whatever the scale (Masson, Rim and Lee, "DDSketch", VLDB 2019); counts are halved now and then, so that old
values lose their weight. The mean decays towards 0 while a node is not asked, so that one that was slow when
it was last asked is asked again (as in Finagle's peak EWMA).
"""

from __future__ import annotations

from math import ceil, exp, log

__all__ = ["Latency"]

_RATIO = 1.1  # a quantile is within 5 %
_LOG_RATIO = log(_RATIO)
_SMALLEST = 1e-5
_HALVE_EVERY = 512
_READ_EVERY = 32
# Answers before mean and quantile are used: the first take longest, on a new connection and with cold caches.
_ENOUGH = 20
_WEIGHT = 0.1
_FADE_SECONDS = 3.0


class Latency:
    """Recent latencies of one node; changed by `add` and `restart` alone.

    Attributes:
        quantile: in seconds, None until there are values enough.
        last: when the last answer came, by the caller's clock.
    """

    def __init__(self, quantile: float) -> None:
        self.quantile: float | None = None
        self.last = float("-inf")
        self._share = quantile
        self._mean = 0.0
        self._known = False
        self._buckets: dict[int, float] = {}
        self._added = 0

    def __repr__(self) -> str:
        known = "unknown" if self.quantile is None else f"{self.quantile * 1000:.1f} ms"
        return f"<Latency p{self._share * 100:g} {known}>"

    def add(self, seconds: float, now: float) -> None:
        seconds = max(seconds, _SMALLEST)
        self._mean = seconds if not self._added else self._mean + _WEIGHT * (seconds - self._mean)
        self.last = now
        bucket = ceil(log(seconds / _SMALLEST) / _LOG_RATIO)
        self._buckets[bucket] = self._buckets.get(bucket, 0.0) + 1
        self._added += 1
        if self._added % _HALVE_EVERY == 0:
            self._buckets = {bucket: count / 2 for bucket, count in self._buckets.items() if count > 0.5}
        if self._added % _READ_EVERY == 0 or self._added == _ENOUGH:
            self.quantile = self._read()

    def restart(self, seconds: float, now: float) -> None:
        """Let the mean be `seconds` alone, of the first answer after a long silence."""
        self._mean, self.last = max(seconds, _SMALLEST), now
        self._known = True

    def mean(self, now: float) -> float:
        """Seconds, fading while nothing comes; 0 until enough has."""
        if self._added < _ENOUGH and not self._known:
            return 0.0
        age = now - self.last
        # The decay would be less than a hundredth, and this is asked for every node of every search.
        return self._mean if age < _FADE_SECONDS / 100 else self._mean * exp(-age / _FADE_SECONDS)

    def _read(self) -> float:
        wanted = self._share * sum(self._buckets.values())
        seen = 0.0
        for bucket in sorted(self._buckets):
            seen += self._buckets[bucket]
            if seen >= wanted:
                break
        # The middle of its bucket, by ratio.
        return _SMALLEST * 2 * _RATIO**bucket / (1 + _RATIO)
