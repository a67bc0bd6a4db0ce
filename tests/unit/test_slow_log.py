from __future__ import annotations

import logging
from typing import Any

import msgspec
import pytest

from router.http.slow_log import SlowLog
from router.query.filter import parse
from router.query.types import Found, ShardReport, ShardState
from router.settings import Settings
from tests.unit.queries import answer, collection, query

FILTER = {"price": {"$gt": 4711}, "metadata.lang": "secret"}


def slow(execute_ms: float) -> Found:
    reports = (
        ShardReport("s0", ShardState.OK, "s0-a", execute_ms=1.0, total_ms=1.0),
        ShardReport("s1", ShardState.OK, "s1-a", queue_ms=5.0, execute_ms=execute_ms, total_ms=800.0),
    )
    return Found(msgspec.structs.replace(answer(), reports=reports), "miss")


def noted(caplog: pytest.LogCaptureFixture, log: SlowLog, found: Found, took_ms: float) -> list[Any]:
    caplog.clear()
    asked = query(filter=parse(collection(), FILTER, Settings()))
    with caplog.at_level(logging.WARNING):
        log.note("r1", asked, found, took_ms)
    return caplog.records


def test_a_slow_search_names_its_shard_and_what_its_filter_lacks(caplog: pytest.LogCaptureFixture) -> None:
    log = SlowLog(0.5)
    assert noted(caplog, log, slow(400.0), 499.0) == []
    (line,) = noted(caplog, log, slow(700.0), 800.0)
    assert (line.collection, line.shard, line.node) == ("documents", "s1", "s1-a")
    assert line.filter_fields == ["price", "metadata.lang"]
    assert line.map_lacks == ["metadata.indexes.lang: text"]
    assert "secret" not in str(vars(line))
    assert "4711" not in str(vars(line))


def test_what_waited_for_others_lacks_no_index(caplog: pytest.LogCaptureFixture) -> None:
    (line,) = noted(caplog, SlowLog(0.5), slow(20.0), 800.0)
    assert not hasattr(line, "map_lacks")


def test_there_is_a_line_a_second_and_it_counts_the_others(caplog: pytest.LogCaptureFixture) -> None:
    now = 100.0
    log = SlowLog(0.5, lambda: now)
    assert len(noted(caplog, log, slow(700.0), 800.0)) == 1
    for _ in range(3):
        assert noted(caplog, log, slow(700.0), 800.0) == []
    now = 101.0
    (line,) = noted(caplog, log, slow(700.0), 800.0)
    assert line.others == 3


def test_zero_keeps_it_silent(caplog: pytest.LogCaptureFixture) -> None:
    assert noted(caplog, SlowLog(0.0), slow(1e6), 1e6) == []
