"""Rows as JSON: what JSON has no number for is named."""

from __future__ import annotations

import json
import math
from decimal import Decimal
from typing import Any

import pytest

from router.query.answer import joined
from router.query.filter import And, parse
from router.query.hits import encode_hits, fields_of
from router.query.types import Hedge, ShardReport, ShardState
from router.recall.measure import recall
from router.settings import Settings
from shard_config.times import DistantTime
from tests.unit.queries import collection, query

INF = math.inf


def hits(distances: list[float], **columns: Any) -> list[dict[str, Any]]:
    kept = [((i, distance, *columns.values()), "s0") for i, distance in enumerate(distances)]
    raw = encode_hits(kept, fields_of(collection(), list(columns)))
    decoded: list[dict[str, Any]] = json.loads(bytes(raw), parse_constant=lambda word: pytest.fail(word))
    return decoded


@pytest.mark.parametrize(
    ("distances", "shown"),
    [
        ([0.5, 1.5], [0.5, 1.5]),
        ([-INF, -INF, 0.5, INF, INF], ["-Infinity", "-Infinity", 0.5, "Infinity", "Infinity"]),
        ([INF, INF], ["Infinity", "Infinity"]),
        ([-INF], ["-Infinity"]),
        ([], []),
    ],
)
def test_infinite_distances_are_named_wherever_they_stand(distances: list[float], shown: list[Any]) -> None:
    assert [hit["distance"] for hit in hits(distances)] == shown


def test_recall_counts_infinite_distances() -> None:
    distances = [-INF, 0.5, INF]
    assert recall(distances, distances) == 1
    assert recall([0.5], [-INF]) == 0


def test_values_without_a_number_in_json_are_words() -> None:
    (hit,) = hits([0.0], price=math.nan, day=DistantTime("date", 2**31 - 1), tenant="NaN", active=None)
    assert hit == {
        "id": 0,
        "distance": 0.0,
        "shard": "s0",
        "price": "NaN",
        "day": "infinity",
        "tenant": "NaN",
        "active": None,
    }


def test_filters_by_different_words_or_digits_never_share_a_cached_answer() -> None:
    raw: list[dict[str, Any]] = [
        {"price": "NaN"},
        {"price": "Infinity"},
        {"price": "-Infinity"},
        {"day": "infinity"},
        {"day": "-infinity"},
        {"day": "0044-03-15 BC"},
        {"metadata.n": Decimal("0.12345678901234567890")},
        {"metadata.n": Decimal("0.12345678901234567891")},
        {"metadata.n": "0.12345678901234567890"},
    ]
    trees = [parse(collection(), one, Settings()) for one in raw]
    # A number beyond 64 bits makes the digest take another way.
    wide = parse(collection(), {"metadata.big": 2**80}, Settings())
    digests = {query(filter=tree).digest for tree in trees}
    digests |= {query(filter=And((tree, wide))).digest for tree in trees}
    assert len(digests) == 2 * len(raw)
    again = parse(collection(), {"price": "nan"}, Settings())
    assert query(filter=again).digest == query(filter=trees[0]).digest


def test_two_rounds_of_a_shard_keep_whose_fault_a_lasting_failure_is() -> None:
    first = ShardReport("s0", ShardState.OK, attempts=1)
    second = ShardReport("s0", ShardState.FAILED, attempts=1, error="no such column", fault="server")
    both = joined(first, second)
    assert (both.state, both.fault, both.attempts) == (ShardState.FAILED, "server", 2)


def test_the_account_of_two_rounds_is_that_of_the_first_named_with_the_time_and_the_doubts_of_both() -> None:
    first = ShardReport(
        "s0", ShardState.OK, "a", attempts=1, hedged=True, hedge=Hedge.LOST, stale=True, lsn=5, total_ms=3
    )
    second = ShardReport("s0", ShardState.OK, "b", attempts=2, lsn=7, queue_ms=1, execute_ms=2, total_ms=4)
    both = joined(second, first)
    assert (both.node, both.attempts, both.lsn, both.stale) == ("b", 3, 5, True)
    assert (both.hedged, both.hedge) == (True, Hedge.LOST)
    assert (both.queue_ms, both.execute_ms, both.total_ms) == (1, 2, 7)
