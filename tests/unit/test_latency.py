from __future__ import annotations

from random import Random

import numpy as np
import pytest

from router.policy.latency import Latency


@pytest.mark.parametrize("scale", [1e-4, 1e-2, 10.0])
@pytest.mark.parametrize(("quantile", "within"), [(0.5, 0.1), (0.95, 0.15), (0.99, 0.35)])
def test_a_quantile_is_close_at_any_scale(quantile: float, within: float, scale: float) -> None:
    """As close as some hundred values can tell, which are what has not faded."""
    rng = Random(1)
    latency = Latency(quantile)
    values = [scale * rng.lognormvariate(0, 1) for _ in range(512 * 4 + 32)]
    for i, value in enumerate(values):
        latency.add(value, float(i))
    assert latency.quantile == pytest.approx(np.quantile(values, quantile), rel=within)


def test_of_equal_values_every_quantile_is_that_value() -> None:
    latency = Latency(0.95)
    for i in range(100):
        latency.add(0.0123, float(i))
    assert latency.quantile == pytest.approx(0.0123, rel=0.05)


def test_nothing_is_known_before_there_is_enough() -> None:
    latency = Latency(0.95)
    assert (latency.quantile, latency.mean(0.0)) == (None, 0.0)
    assert repr(latency) == "<Latency p95 unknown>"
    for i in range(20):
        assert latency.quantile is None
        latency.add(0.002, float(i))
    assert latency.quantile == pytest.approx(0.002, rel=0.05)


def test_the_past_fades() -> None:
    latency = Latency(0.95)
    for i in range(10_000):
        latency.add(1.0, i / 1000)
    for i in range(12_000):
        latency.add(0.001, 10 + i / 1000)
    assert latency.quantile == pytest.approx(0.001, rel=0.05)
    assert latency.mean(22.0) == pytest.approx(0.001, rel=0.01)


def test_a_slow_node_gets_another_chance_in_time() -> None:
    latency = Latency(0.95)
    for _ in range(20):
        assert latency.mean(5.0) == 0.0
        latency.add(0.1, 5.0)
    assert latency.mean(5.0) == pytest.approx(0.1)
    assert latency.mean(20.0) < 0.1 / 100


def test_nothing_is_too_small_or_too_large_for_it() -> None:
    latency = Latency(0.5)
    for value in [0.0, -1.0, 1e-9, 1e6] * 10:
        latency.add(value, 0.0)
    assert latency.quantile is not None
    assert latency.quantile < 2e-5


def test_one_value_after_a_long_silence_is_the_mean_at_once() -> None:
    latency = Latency(0.95)
    latency.restart(0.1, 0.0)
    assert latency.mean(0.0) == pytest.approx(0.1)
    assert latency.quantile is None
    for i in range(30):
        latency.add(0.002, float(i))
    latency.restart(0.1, 30.0)
    assert latency.mean(30.0) == pytest.approx(0.1)
    assert latency.mean(40.0) < 0.004
    assert latency.quantile == pytest.approx(0.002, rel=0.05)
