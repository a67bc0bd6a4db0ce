"""Which errors of a soak a fault explains, and what else is called wrong."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from bench.datasets import Dataset
from bench.errors import BenchError
from bench.faults.caller import FIRST_ID, Answer, Caller
from bench.faults.health import seen
from bench.faults.kinds import EARLY, SOAKED
from bench.faults.outcomes import Event, Operation, Said, said
from bench.faults.verdict import RECOVERY, Window, grown, unexplained
from bench.soak.clients import Clients
from bench.soak.course import QUICK, _errors
from bench.soak.ledger import Ledger
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
        event(12.0, "full", "search", 7.0),  # long after its deadline
        event(9.0, "partial", "search", 7.0, "s1"),
    ],
)
def test_nothing_else_is_explained(error: Event) -> None:
    assert unexplained([event(12.0, "full"), error], [WINDOW]) == [error]


def test_what_was_never_answered_is_not_called_slow() -> None:
    assert event(1.0, "silent", "search", 60.0).name == "search:silent"


def test_no_fault_explains_everything_nor_any_outcome_that_no_fault_may_have() -> None:
    faults = (*EARLY, *SOAKED)
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


WELL: dict[str, Any] = {
    "nodes": [
        {"name": name, "shard": "s0", "state": "up", "role": role, "reason": None}
        for name, role in (("s0-a", "primary"), ("s0-b", "replica"))
    ],
    "shards": {"s0": True},
    "caches": {"l2_enabled": True, "l2_on": True, "l2_writable": True},
    "disagreements": [],
    "lost_bytes": {},
}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, ""),
        ({"caches": {"l2_enabled": False}}, ""),
        ({"nodes": []}, "s0 has 0 primaries"),
        ({"nodes": [WELL["nodes"][0], WELL["nodes"][1] | {"role": "primary"}]}, "s0 has 2 primaries"),
        (
            {"nodes": [WELL["nodes"][0], WELL["nodes"][1] | {"state": "down", "reason": "timed out"}]},
            "s0-b down: timed out",
        ),
        ({"caches": WELL["caches"] | {"l2_on": False, "l2_reason": "late"}}, "Redis is not used: late"),
        ({"caches": WELL["caches"] | {"l2_writable": False, "l2_reason": "OOM"}}, "Redis is not used: OOM"),
        ({"lost_bytes": {"s0": 7}}, "lost_bytes: {'s0': 7}"),
        ({"disagreements": [{"shard": "s0"}]}, "disagreements: [{'shard': 's0'}]"),
    ],
)
def test_all_is_well_only_when_nodes_redis_and_shards_are(change: dict[str, Any], said: str) -> None:
    found = seen(1.0, 200, msgspec.json.encode(WELL | change))
    assert found.ill == said
    assert set(found.states) <= {"s0-a", "s0-b"} and ("down" in found.states.values()) == ("down" in said)
    assert seen(1.0, 503, b"").ill == "/health answers 503"


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ('{"level":"info","event":"request","status":200}', False),
        ('{"level":"warning","event":"node state","to":"down"}', False),
        ('{"level":"error","event":"worker 7 did not end in time and is killed"}', True),
        ('{"level":"warning","event":"unexpected error","traceback":"..."}', True),
        ("Traceback (most recent call last):", True),
        ("RuntimeWarning: coroutine 'f' was never awaited", True),
    ],
)
def test_errors_in_the_routers_log_are_found(tmp_path: Path, line: str, found: bool) -> None:
    (tmp_path / "serve-1.log").write_text(f"pgscatter serves map version 1\n{line}\n")
    assert _errors(tmp_path) == ([f"the router's log has an error: {line}"] if found else [])


class Lying(Caller):
    """Of a router that answers each request with the next of `answers`."""

    def __init__(self, *answers: dict[str, Any]) -> None:
        super().__init__("http://127.0.0.1:1", 1.0)
        self.answers = list(answers)

    async def ask(self, *_: object, **__: object) -> Answer:
        answer = self.answers.pop(0)
        status = answer.pop("status", 200)
        return Answer(said(status, RETRY, answer), answer, 50.0, 51.0)


class Lied(Clients):
    """Clients of such a router."""

    def __init__(self, *answers: dict[str, Any]) -> None:
        base = np.eye(30, 4, dtype=np.float32) + np.arange(30, dtype=np.float32)[:, None]
        dataset = Dataset("some", Metric.L2, base, base[:20])
        super().__init__(Lying(*answers), Ledger(0.0), dataset, 1)

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
        (1, answer(3, unsettled=["s1"]), False),
        (1, answer(3, short={"reason": "exhausted"}), True),
    ],
)
async def test_wrong_searches_are_caught(stored: int | None, found: dict[str, Any], wrong: bool) -> None:
    clients = Lied(found)
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
    clients = Lied(found)
    clients.store(stored)
    await clients._read_one(FIRST_ID)
    assert bool(clients.wrong) == wrong


@pytest.mark.parametrize(("number", "wrong"), [(0, True), (1, False), (2, True)])
async def test_wrong_counts_are_caught(number: int, wrong: bool) -> None:
    clients = Lied({"count": number, "coverage": {"full": True, "failures": []}})
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
    clients = Lied(found)
    await clients._delete({FIRST_ID: stored})
    assert bool(clients.wrong) == wrong


@pytest.mark.parametrize(("others", "end"), [((), "refused"), ((FIRST_ID + 1,), "unknown")])
async def test_of_a_refused_delete_one_shard_may_have_done_its_part(
    others: tuple[int, ...], end: str
) -> None:
    clients = Lied({"status": 503, "errors": []})
    stored: dict[int, int | None] = dict.fromkeys((FIRST_ID, *others), 1)
    assert await clients._delete(stored) == dict.fromkeys(stored, end)


async def test_a_document_whose_write_ended_as_unknown_is_given_up_for_another() -> None:
    clients = Lied()

    async def late(*_: object) -> Answer:
        clients._ending = True
        return Answer(Said("late"), {}, 50.0, 51.0)

    clients._caller.ask = late  # type: ignore[method-assign]
    await clients._write_on(0)
    given_up = clients.ledger.uncertain()
    assert given_up and not given_up & set(clients._slots[0])
    assert len(set(clients._slots[0])) == 60 and max(clients._slots[0]) == FIRST_ID + 59 + len(given_up)


@pytest.mark.parametrize(("hits", "wrong"), [((), True), ((FIRST_ID,), False)])
async def test_a_search_by_owner_that_shows_too_few_is_caught(hits: tuple[int, ...], wrong: bool) -> None:
    clients = Lied(answer(*hits))
    clients.store(1)
    await clients._search([{}], owner=0)
    assert bool(clients.wrong) == wrong


async def test_a_batch_whose_results_are_not_as_many_as_its_searches_is_caught() -> None:
    clients = Lied({"results": [answer(3)]})
    await clients._search_exactly(FIRST_ID, FIRST_ID + 1)
    assert clients.wrong == ["a batch of 2 searches has 1 results"]


@pytest.mark.parametrize("lost", [0, 1])
async def test_an_exact_search_that_lacks_a_row_is_caught(lost: int) -> None:
    """By comparing all rows, the tracked document's among them."""
    clients = Lied()
    clients.store(1)
    asked: list[dict[str, Any]] = []

    async def right(*arguments: Any, **_: Any) -> Answer:
        asked.append(arguments[3])
        places = np.vstack([clients._dataset.base, clients._vector(1)[None]])
        nearest = np.argsort(((places - np.array(asked[-1]["vector"])) ** 2).sum(axis=1), kind="stable")
        ids = [FIRST_ID if i == 30 else int(i) for i in nearest if lost == 0 or i != nearest[lost]][:10]
        return Answer(Said("full"), answer(*ids), 50.0, 51.0)

    clients._caller.ask = right  # type: ignore[method-assign]
    await clients.compare_with_all_rows()
    assert len(asked) == 4 and bool(clients.wrong) == bool(lost)
    assert clients.compared == 1


async def test_an_exact_search_that_finds_what_nobody_stored_is_caught() -> None:
    clients = Lied(*(answer(3, FIRST_ID + 9) for _ in range(4)))
    await clients.compare_with_all_rows()
    assert clients.wrong == [f"an exact search found what is not stored: [3, {FIRST_ID + 9}]"]


async def test_a_comparison_that_could_not_be_made_is_not_counted() -> None:
    clients = Lied(*(answer(3, coverage=MISSING) for _ in range(4)))
    await clients.compare_with_all_rows()
    assert clients.compared == 0


async def test_a_request_under_way_at_the_end_is_waited_for() -> None:
    clients = Lied()
    asked, answered = asyncio.Event(), asyncio.Event()
    begun, ended = 0, 0

    async def late(*_: object) -> Answer:
        nonlocal begun, ended
        begun += 1
        asked.set()
        await answered.wait()
        ended += 1
        return Said("silent"), {}, 50.0, 51.0

    clients._caller.ask = late  # type: ignore[method-assign]
    clients.start()
    await asked.wait()
    stopping = asyncio.create_task(clients.stop())
    done, _ = await asyncio.wait([stopping], timeout=0.05)
    assert not done
    answered.set()
    await stopping
    assert begun == ended > 0


async def test_readers_ask_for_what_writers_have_now() -> None:
    """A document whose write ended as unknown is given up, and nothing would be wrong about it any more."""
    clients = Lied()
    clients._slots = [[FIRST_ID + 500 + i for i in range(60)] for _ in range(4)]
    asked: list[str] = []

    async def note(*arguments: Any, **_: Any) -> Answer:
        asked.append(arguments[2])
        return Answer(Said("unavailable"), {}, 50.0, 51.0)

    clients._caller.ask = note  # type: ignore[method-assign]
    rng = random.Random(1)
    for _ in range(50):
        await clients._read_some(rng)
    read = [
        int(path[len("documents/") :].partition("?")[0]) for path in asked if path.startswith("documents/")
    ]
    assert read and all(FIRST_ID + 500 <= id_ < FIRST_ID + 560 for id_ in read)


async def test_a_client_that_has_ended_is_noticed() -> None:
    clients = Lied()  # with no answer left
    clients.start()
    await asyncio.wait(clients._tasks, timeout=30, return_when="FIRST_COMPLETED")
    with pytest.raises(BenchError, match="a client ended by IndexError"):
        await clients.pause()
    await clients.stop()
