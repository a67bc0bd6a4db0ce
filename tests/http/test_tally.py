from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Histogram

from router.http import app as app_module
from router.http.message import Reply
from router.http.metrics import Metrics
from router.http.tally import TallyCounter, TallyHistogram, Unwritten
from tests.http.fake import FakeBackend

BOUNDS = (0.25, 0.5, 1.0)
SECONDS = st.sampled_from((0.0, 0.25, 0.250001, 0.5, 0.7, 1.0, 1.5, math.inf)) | st.floats(0, 2)


@given(st.lists(st.tuples(st.sampled_from("ab"), SECONDS) | st.none(), max_size=40))
def test_what_is_written_is_what_prometheus_client_would_have_counted(
    events: list[tuple[str, float] | None],
) -> None:
    """None in the events: somebody looks."""
    registry, expected, unwritten = CollectorRegistry(), CollectorRegistry(), Unwritten()
    counter = TallyCounter("parts", "Parts.", ["shard"], registry=registry)
    histogram = TallyHistogram("seconds", "Time.", ["shard"], registry=registry, buckets=BOUNDS)
    plain = Counter("parts", "Parts.", ["shard"], registry=expected)
    plain_seconds = Histogram("seconds", "Time.", ["shard"], registry=expected, buckets=BOUNDS)
    for child in (*map(counter.labels, "ab"), *map(histogram.labels, "ab")):
        child.unwritten = unwritten
    for label in "ab":
        plain.labels(label)
        plain_seconds.labels(label)
    for event in (*events, None):
        if event is None:
            unwritten.write()
            assert _samples(registry) == _samples(expected)
        else:
            label, seconds = event
            counter.labels(label).inc(2)
            histogram.labels(label).observe(seconds)
            plain.labels(label).inc(2)
            plain_seconds.labels(label).observe(seconds)


async def test_what_was_counted_last_is_written_when_the_process_ends() -> None:
    metrics = Metrics()
    async with app_module._sampling(metrics, FakeBackend):
        for _ in range(3):
            metrics.begin()
            metrics.end("GET", "/livez", Reply(b""), 0.01)
    labels = {"method": "GET", "route": "/livez", "status": "200"}
    assert metrics.registry.get_sample_value("pgscatter_requests_total", labels) == 3


async def test_a_sample_that_fails_still_writes_what_was_counted() -> None:
    metrics = Metrics()
    metrics.reject("concurrency")

    class Broken(FakeBackend):
        def cache_stats(self) -> dict[str, int | float | str]:
            raise RuntimeError("no snapshot")

    with pytest.raises(RuntimeError):
        metrics.sample(Broken())
    labels = {"reason": "concurrency"}
    assert metrics.registry.get_sample_value("pgscatter_requests_rejected_total", labels) == 1


def _samples(registry: CollectorRegistry) -> dict[str, float]:
    """Without the times of creation, and rounded: sums are added up in another order."""
    return {
        f"{sample.name} {sorted(sample.labels.items())}": round(sample.value, 9)
        for family in registry.collect()
        for sample in family.samples
        if not sample.name.endswith("_created")
    }
