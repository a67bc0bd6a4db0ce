"""Which errors of a soak a fault explains, and what else is called wrong."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from bench.datasets import Dataset
from bench.errors import BenchError
from bench.faults.load import FIRST_ID
from bench.soak.clients import Clients
from bench.soak.kinds import EARLY, KINDS, QUICK
from bench.soak.ledger import Ledger
from bench.soak.verdict import RECOVERY, Event, Operation, Said, Window, grown, said, unexplained
from shard_config.model import Metric

WINDOW = Window("lock", frozenset({"search:partial", "write:unknown"}), frozenset({"s1"}), 10.0, 15.0)


def event(at: float, what: str, operation: Operation = "search", seconds: float = 0.1, *shards: str) -> Event:
    return Event(at, seconds, operation, Said(what, frozenset(shards)))


@pytest.mark.parametrize(
    "explained",
    [
        event(1.0, "full"),
        event(12.0, "partial", "search", 0.1, "s1"),
        event(9.0, "partial", "search", 2.0, "s1"),  # the fault began while it was under way
        event(15.0 + RECOVERY, "unknown", "write"),
    ],
)
def test_a_fault_explains_its_own_outcomes_while_it_lasts_and_a_little_longer(explained: Event) -> None:
    assert unexplained([explained], [WINDOW]) == []


@pytest.mark.parametrize(
    "error",
    [
        event(1.0, "partial", "search", 0.1, "s1"),  # there was no fault yet
        event(15.1 + RECOVERY, "partial", "search", 0.1, "s1"),  # the fault is over, and the error goes on
        event(12.0, "partial", "search", 0.1, "s0"),  # nothing happened to that shard
        event(12.0, "partial", "search", 0.1, "s0", "s1"),
        event(12.0, "late"),  # another outcome
        event(12.0, "unknown"),  # of another operation
        event(12.0, "503 without Retry-After", "write"),
        event(12.0, "500 internal"),
    ],
)
def test_nothing_else_is_explained(error: Event) -> None:
    assert unexplained([event(12.0, "full"), error], [WINDOW]) == [error]


def test_no_fault_explains_everything_nor_any_outcome_that_no_fault_may_have() -> None:
    faults = (*EARLY, *KINDS)
    named = {name for fault in faults for name in fault.explains}
    assert {name.partition(":")[0] for name in named} == {"search", "read", "count", "write"}
    allowed = {"stale", "partial", "late", "unavailable", "unknown", "refused", "lost", "overloaded"}
    assert {name.partition(":")[2] for name in named} == allowed
    assert all(len(fault.explains) < 0.75 * len(named) for fault in faults)
    assert sum(not fault.explains for fault in faults) >= len(faults) / 2
    assert len({fault.name for fault in faults}) == len(faults)
    assert {fault.name for fault in faults} >= set(QUICK)


RETRY = {"retry-after": "1"}
FAILED = {"shard": "s1", "state": "timed_out", "error": "no answer"}
STORED = {"stored": 1, "failures": []}
UNKNOWN = {"reason": "unknown", "message": "lost", "shard": "s1"}


@pytest.mark.parametrize(
    ("status", "headers", "answer", "expected"),
    [
        (200, {}, {"coverage": {"full": True, "failures": []}}, Said("full")),
        (200, {}, {"coverage": {"full": True, "failures": [], "stale": ["s1"]}}, "stale"),
        (200, {}, {"coverage": {"full": False, "failures": [FAILED]}}, "partial"),
        (200, {"x-stale-shard": "s1"}, {"id": 1}, "stale"),
        (200, {}, {"id": 1}, Said("full")),
        (200, {}, STORED, Said("full")),
        (200, {}, {"stored": 1, "failures": [UNKNOWN]}, "unknown"),
        (503, RETRY, {"stored": 0, "failures": [UNKNOWN | {"reason": "unavailable"}]}, "unavailable"),
        (503, {}, {"stored": 0, "failures": [UNKNOWN]}, "503 without Retry-After"),
        (422, RETRY, {"detail": "k", "type": "urn:pgscatter:problem:invalid"}, "422 invalid"),
        (500, {}, {"detail": "", "type": "urn:pgscatter:problem:internal"}, "500 internal"),
        (503, RETRY, {"errors": [{"path": "shards.s1", "message": "no node"}]}, "unavailable"),
        (503, RETRY, {"errors": [{"path": "shards.s1", "message": "unknown: lost"}]}, "unknown"),
        (503, {}, {"errors": []}, "503 without Retry-After"),
        (429, RETRY, {}, "overloaded"),
        (429, {}, {}, "429 without Retry-After"),
        (504, {}, {}, "late"),
        (404, {}, {}, "absent"),
        (200, {}, {"deleted": 1, "shards": {"s0": {"ok": True}}}, Said("full")),
        (200, {}, {"deleted": 1, "shards": {"s1": {"ok": False, "error": "", "unknown": True}}}, "unknown"),
    ],
)
def test_an_answer_is_called_what_it_is(
    status: int, headers: dict[str, str], answer: dict[str, Any], expected: Said | str
) -> None:
    found = said(status, headers, answer)
    assert found == expected if isinstance(expected, Said) else found.what == expected
    if "s1" in repr(answer) + repr(headers) and found.what[:3] != "503":
        assert found.shards == {"s1"}


def test_what_grows_beyond_its_bounds_is_found_and_what_warms_up_is_not() -> None:
    bounds = {"tasks": (0.2, 5.0)}

    def found(*tasks: float) -> list[str]:
        return grown([{"tasks": one} for one in tasks for _ in range(4)], bounds)

    assert found(1, 100, 100, 124) == []
    assert found(1, 100, 100, 126) == ["tasks grew from 100 to 126, more than 20% and 5"]


class Lying(Clients):
    """Clients of a router that answers each request with the next of `answers`."""

    def __init__(self, *answers: dict[str, Any]) -> None:
        base = np.eye(30, 4, dtype=np.float32) + np.arange(30, dtype=np.float32)[:, None]
        dataset = Dataset("some", Metric.L2, base, base[:20])
        super().__init__("http://127.0.0.1:1", Ledger(0.0), dataset, 1)
        self.answers = list(answers)

    async def _ask(self, *_: object) -> tuple[Said, dict[str, Any], float, float]:
        answer = self.answers.pop(0)
        status = answer.pop("status", 200)
        return said(status, RETRY, answer), answer, 50.0, 51.0

    def store(self, version: int | None) -> None:
        self.ledger.begin(FIRST_ID, 0, version, 1.0)
        self.ledger.end(FIRST_ID, version, "acknowledged", None, 2.0)


def answer(*ids: int, version: int = 1, **more: Any) -> dict[str, Any]:
    hits = [{"id": id_, "content": f"v{version}" if id_ >= FIRST_ID else None} for id_ in ids]
    return {"hits": hits, "cache": "miss", "coverage": {"full": True, "failures": []}} | more


MISSING = {"full": False, "failures": [FAILED]}
STALE = {"full": True, "failures": [], "stale": ["s1"]}


@pytest.mark.parametrize(
    ("stored", "found", "wrong"),
    [
        (1, answer(FIRST_ID, 3), False),
        (1, answer(3), True),  # an acknowledged document is missing
        (2, answer(FIRST_ID, version=1), True),  # it is shown as it was
        (None, answer(FIRST_ID), True),  # it was deleted
        (1, answer(FIRST_ID, 3, 3), True),
        (1, answer(3, coverage=MISSING), False),  # that answer says so
        (None, answer(FIRST_ID, coverage=MISSING), True),  # what it does show must be right
        (1, answer(3, coverage=STALE), False),
        (1, answer(3, short={"reason": "scan_limit"}), False),
        (1, answer(3, short={"reason": "exhausted"}), True),
    ],
)
async def test_wrong_searches_are_caught(stored: int | None, found: dict[str, Any], wrong: bool) -> None:
    clients = Lying(found)
    clients.store(stored)
    await clients._search_exactly(FIRST_ID)
    assert bool(clients.wrong) == wrong


@pytest.mark.parametrize(
    ("stored", "found", "wrong"),
    [
        (1, {"content": "v1"}, False),
        (2, {"content": "v1"}, True),
        (1, {"status": 404}, True),
        (None, {"status": 404}, False),
        (None, {"content": "v1"}, True),
        (1, {"status": 503}, False),
    ],
)
async def test_wrong_reads_are_caught(stored: int | None, found: dict[str, Any], wrong: bool) -> None:
    clients = Lying(found)
    clients.store(stored)
    await clients._read_one(FIRST_ID)
    assert bool(clients.wrong) == wrong


@pytest.mark.parametrize(("number", "wrong"), [(0, True), (1, False), (2, True)])
async def test_wrong_counts_are_caught(number: int, wrong: bool) -> None:
    clients = Lying({"count": number, "coverage": {"full": True, "failures": []}})
    clients.store(1)
    await clients._count(0)
    assert bool(clients.wrong) == wrong


@pytest.mark.parametrize(
    ("stored", "found", "wrong"),
    [
        (1, {"deleted": 1, "shards": {}}, False),
        (1, {"status": 404}, True),
        (None, {"status": 404}, False),
        (None, {"deleted": 1, "shards": {}}, True),
        (1, {"status": 503, "errors": []}, False),
    ],
)
async def test_wrong_deletes_are_caught(stored: int | None, found: dict[str, Any], wrong: bool) -> None:
    clients = Lying(found)
    await clients._delete({FIRST_ID: stored})
    assert bool(clients.wrong) == wrong


async def test_a_batch_whose_results_are_not_as_many_as_its_searches_is_caught() -> None:
    clients = Lying({"results": [answer(3)]})
    await clients._search_exactly(FIRST_ID, FIRST_ID + 1)
    assert clients.wrong == ["a batch of 2 searches has 1 results"]


@pytest.mark.parametrize("lost", [0, 1])
async def test_an_exact_search_that_lacks_a_row_is_caught(lost: int) -> None:
    """By comparing all rows, the tracked document's among them."""
    clients = Lying()
    clients.store(1)
    asked: list[dict[str, Any]] = []

    async def right(*arguments: Any) -> tuple[Said, dict[str, Any], float, float]:
        asked.append(arguments[3])
        places = np.vstack([clients._dataset.base, clients._vector(1)[None]])
        nearest = np.argsort(((places - np.array(asked[-1]["vector"])) ** 2).sum(axis=1), kind="stable")
        ids = [FIRST_ID if i == 30 else int(i) for i in nearest if lost == 0 or i != nearest[lost]][:10]
        return Said("full"), answer(*ids), 50.0, 51.0

    clients._ask = right  # type: ignore[method-assign]
    await clients.compare_with_all_rows()
    assert len(asked) == 4 and bool(clients.wrong) == bool(lost)


async def test_a_client_that_has_ended_is_noticed() -> None:
    clients = Lying()  # with no answer left
    clients.start()
    await asyncio.sleep(0.5)
    with pytest.raises(BenchError, match="a client ended by IndexError"):
        await clients.pause()
    await clients.stop()
