from __future__ import annotations

import numpy as np
import pytest

from bench.percentiles import Latencies

SECONDS = np.random.default_rng(3).lognormal(-6, 1.2, 20_000)


def recorded(values: np.ndarray) -> Latencies:
    latencies = Latencies()
    for value in values:
        latencies.record(float(value))
    return latencies


@pytest.mark.parametrize("percentile", [1, 25, 50, 90, 99, 99.9])
def test_percentiles_agree_with_numpy(percentile: float) -> None:
    found = recorded(SECONDS).at(percentile)
    # numpy and HdrHistogram may differ by one in the rank, which in the tail is more than a rounding.
    below = np.percentile(SECONDS, percentile, method="lower")
    above = np.percentile(SECONDS, percentile, method="higher")
    assert below * 0.998 - 2e-6 <= found <= above * 1.002 + 2e-6


def test_mean_count_and_both_ends() -> None:
    latencies = recorded(SECONDS)
    assert latencies.count == len(SECONDS)
    assert latencies.mean == pytest.approx(SECONDS.mean(), rel=2e-3)
    assert latencies.at(100) == pytest.approx(SECONDS.max(), rel=2e-3)


def test_parts_add_up_to_the_whole_and_survive_a_trip() -> None:
    whole, parts = recorded(SECONDS), Latencies()
    parts.merge(Latencies.decode(recorded(part).encode()) for part in np.array_split(SECONDS, 3))
    assert parts.count == whole.count
    assert [parts.at(p) for p in (50, 99)] == [whole.at(p) for p in (50, 99)]


def test_what_is_out_of_range_is_counted() -> None:
    latencies = recorded(np.array([-1.0, 0.0, 1e6]))
    assert latencies.count == 3
    assert latencies.at(100) == pytest.approx(3600, rel=1e-3)


def test_nothing_recorded_is_zero() -> None:
    assert (Latencies().at(99), Latencies().mean, Latencies().count) == (0, 0, 0)
    assert repr(Latencies()) == "<Latencies of 0: p50 0 ms, p99 0 ms>"
