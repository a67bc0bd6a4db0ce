"""Clients that write, read and check: each answer against the ledger, and against all rows when it is quiet.

Writers have documents of their own, and read them back after each write. Readers search, read and count
whatever there is. Invariant: every request leaves an event, and every acknowledged write is in the ledger
before its answer is.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Awaitable, Callable, Sequence
from time import perf_counter
from typing import Any
from urllib.parse import quote

import msgspec
import numpy as np

from bench.datasets import Dataset, Vectors
from bench.errors import BenchError, SearchError
from bench.faults.load import FIRST_ID
from bench.http_client import Connections, request_bytes
from bench.soak.ledger import End, Ledger, Version
from bench.soak.verdict import Event, Operation, Said, said
from bench.truth import exact
from bench.world import COLLECTION

__all__ = ["COLUMNS", "Clients", "version_of"]

# What the collection has, beside ids and vectors.
COLUMNS: dict[str, Any] = {"content": "content", "columns": {"owner": "bigint"}}

_WRITERS, _READERS = 4, 6
# Seconds between two requests of one client, on average.
_WRITE_PAUSE, _READ_PAUSE = 0.25, 0.12
# Documents that a writer has at the same time, the most of one write, and ids until the next writer's.
_SLOTS, _TOGETHER, _IDS_EACH = 60, 3, 1_000_000
_DELETES, _REPEATED = 0.3, 1.1
# More than a write has at the router.
_ANSWER_SECONDS = 60.0
_QUIET_SECONDS = 90.0
_COMPARED = 4
# An index scan that gave up has missed rows, and says so.
_SHORT = ("scan_limit", "coverage")


class Clients:
    """All clients of one router; `events` and `wrong` grow while they run."""

    def __init__(self, url: str, ledger: Ledger, dataset: Dataset, seed: int) -> None:
        self.ledger = ledger
        self.events: list[Event] = []
        self.wrong: list[str] = []
        self.compared = 0  # times with all rows
        self._url = url
        self._dataset = dataset
        self._seed = seed
        self._connections = Connections(url, answer_seconds=_ANSWER_SECONDS, headers=True)
        self._versions = itertools.count(1)
        self._open = asyncio.Event()
        self._open.set()
        self._ending = False
        self._writing = 0
        # Of each writer, the ids that it writes at present.
        firsts = [FIRST_ID + owner * _IDS_EACH for owner in range(_WRITERS)]
        self._slots = [list(range(first, first + _SLOTS)) for first in firsts]
        self._tasks: list[asyncio.Task[None]] = []

    def __repr__(self) -> str:
        return f"<Clients of {self._url}: {len(self.events)} requests, {self.ledger!r}>"

    def start(self) -> None:
        clients = [self._write_on(i) for i in range(_WRITERS)] + [self._read_on(i) for i in range(_READERS)]
        self._tasks = [asyncio.create_task(client) for client in clients]

    async def stop(self) -> None:
        """Begin no request any more, and wait for those under way, each of which has its time."""
        self._ending = True
        self._open.set()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=2 * _ANSWER_SECONDS)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._connections.close()

    def _check(self) -> None:
        for task in self._tasks:
            if task.done() and (error := task.exception()) is not None:
                raise BenchError(f"a client ended by {error!r}") from error

    async def pause(self) -> None:
        """Let no write begin, and wait for those under way; `resume` ends that.

        Raises:
            BenchError: a client has ended.
            TimeoutError: a write under way has not.
        """
        self._check()
        self._open.clear()
        async with asyncio.timeout(_QUIET_SECONDS):
            while self._writing:  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    def resume(self) -> None:
        self._open.set()

    async def compare_with_all_rows(self) -> None:
        """While nothing is written, exact searches must find what comparing every row finds."""
        rng = random.Random(f"{self._seed} {len(self.events)}")
        certain = [(id_, version) for id_, version in self.ledger.certain() if version is not None]
        queries = self._dataset.queries[rng.sample(range(len(self._dataset.queries)), _COMPARED)]
        # One of them among the tracked documents.
        queries[-1] = self._vector(rng.choice(certain)[1]) if certain else queries[-1]
        base = [self._dataset.base, *(self._vector(version)[None] for _, version in certain)]
        known = Dataset("known", self._dataset.metric, np.concatenate(base), queries)
        places = {id_: len(self._dataset.base) + i for i, (id_, _) in enumerate(certain)}
        skipped = list(self.ledger.uncertain())
        filter_ = {"filter": {"id": {"$nin": skipped}}} if skipped else {}
        answers: list[list[int]] = []
        for query in queries:
            body = self._body(query, exact=True, cache=False, **filter_)
            what, answer, _, _ = await self._ask("search", "POST", "search", body)
            if what.what != "full":
                return  # an event tells of it, and it is not counted
            answers.append([places.get(hit["id"], hit["id"]) for hit in answer["hits"]])
        self.compared += 1
        for found in answers:
            if max(found, default=0) >= len(known.base):
                self.wrong.append(f"an exact search found what is not stored: {found}")
                return
        share = (await asyncio.to_thread(exact, known, 10)).recall_of_each(known, answers)
        if share < 1:
            self.wrong.append(
                f"{_COMPARED} exact searches found {share:.2%} of what all rows hold: {answers}"
            )

    # -- writing

    async def _write_on(self, owner: int) -> None:
        rng = random.Random(f"{self._seed} writer {owner}")
        slots = self._slots[owner]
        ids = itertools.count(slots[-1] + 1)
        stored: dict[int, Version] = {}
        while not self._ending:
            await asyncio.sleep(rng.expovariate(1 / _WRITE_PAUSE))
            await self._open.wait()
            places = rng.sample(range(_SLOTS), rng.randint(1, _TOGETHER))
            delete = rng.random() < _DELETES
            wanted: dict[int, Version] = {slots[i]: None if delete else next(self._versions) for i in places}
            before = {id_: stored.get(id_) for id_ in wanted}
            now = perf_counter()
            for id_, version in wanted.items():
                self.ledger.begin(id_, owner, version, now)
            self._writing += 1
            try:
                ends = await (self._delete(before) if delete else self._upsert(wanted, owner))
            finally:
                self._writing -= 1
            now = perf_counter()
            for i in places:
                id_ = slots[i]
                self.ledger.end(id_, wanted[id_], ends[id_], before[id_], now)
                if ends[id_] == "unknown":
                    slots[i] = next(ids)
                elif ends[id_] == "acknowledged":
                    stored[id_] = wanted[id_]
            for id_ in wanted:
                await rng.choice((self._read_one, self._search_exactly))(id_)

    async def _upsert(self, wanted: dict[int, Version], owner: int) -> dict[int, End]:
        documents = [
            {"id": id_, "vector": self._vector(version).tolist(), "content": f"v{version}", "owner": owner}
            for id_, version in wanted.items()
        ]
        what, answer, _, _ = await self._ask("write", "PUT", "documents", {"documents": documents})
        if "stored" not in answer:
            return dict.fromkeys(wanted, _end(what))
        reasons = {one["id"]: one["reason"] for one in answer["failures"]}
        ends: dict[str | None, End] = {None: "acknowledged", "unknown": "unknown"}
        return {id_: ends.get(reasons.get(id_), "refused") for id_ in wanted}

    async def _delete(self, stored: dict[int, Version]) -> dict[int, End]:
        if len(stored) > 1:
            what, answer, *_ = await self._ask("write", "POST", "documents/delete", {"ids": list(stored)})
        else:
            what, answer, *_ = await self._ask("write", "DELETE", f"documents/{next(iter(stored))}")
        end, expected = _end(what), sum(version is not None for version in stored.values())
        if end == "acknowledged" and (number := answer.get("deleted", 0)) != expected:
            self.wrong.append(f"{number} documents deleted, but {expected} of {stored} were stored")
        # Of several shards, one may have deleted what another refused.
        return dict.fromkeys(stored, "unknown" if end == "refused" and len(stored) > 1 else end)

    # -- reading

    async def _read_on(self, number: int) -> None:
        rng = random.Random(f"{self._seed} reader {number}")
        while not self._ending:
            await asyncio.sleep(rng.expovariate(1 / _READ_PAUSE))
            await self._read_some(rng)

    async def _read_some(self, rng: random.Random) -> None:
        owner = rng.randrange(_WRITERS)
        ids = rng.sample(self._slots[owner], 8)
        id_ = ids[0]
        # Some are asked again and again, so that caches answer.
        popular = int(rng.paretovariate(_REPEATED)) % len(self._dataset.queries)
        body = self._body(self._dataset.queries[popular])
        reads: dict[Callable[[], Awaitable[None]], int] = {
            lambda: self._search([body]): 5,
            lambda: self._read_one(id_): 3,
            lambda: self._search_exactly(id_): 3,
            lambda: self._search_exactly(*ids[:4]): 1,
            lambda: self._search([body | {"filter": {"id": {"$in": ids}}}], [dict.fromkeys(ids)]): 1,
            lambda: self._search([body | {"filter": {"owner": owner}}], owner=owner): 1,
            lambda: self._count(owner): 1,
        }
        await rng.choices(list(reads), list(reads.values()))[0]()

    async def _read_one(self, id_: int) -> None:
        what, answer, start, end = await self._ask("read", "GET", f"documents/{id_}?include=content")
        if what.what in ("full", "absent"):
            shown = {id_: version_of(answer["content"])} if what.what == "full" else {}
            self.wrong += self.ledger.wrong(shown, [id_], start, end)

    async def _search_exactly(self, *ids: int) -> None:
        """Search for where these documents are by the ledger, all in one request."""
        now = perf_counter()
        asked = {id_: self.ledger.allowed(id_, now, now) for id_ in ids}
        versions = {id_: min(allowed, key=lambda v: v or 0) for id_, allowed in asked.items()}
        bodies = [self._body(self._vector(v or id_), k=3, exact=True) for id_, v in versions.items()]
        await self._search(bodies, [{id_: v} if v is not None else {} for id_, v in versions.items()])

    async def _count(self, owner: int) -> None:
        filter_ = quote(msgspec.json.encode({"owner": owner}))
        what, answer, start, end = await self._ask("count", "GET", f"count?filter={filter_}")
        if what.what == "full":
            self.wrong += self.ledger.wrong_number(owner, answer["count"], start, end)

    async def _search(
        self, bodies: list[Any], asked: Sequence[dict[int, Version]] = (), owner: int | None = None
    ) -> None:
        """Send one search, or several as a batch, and check what they show.

        Each must show what is `asked` of it, as far as it is stored all the time: in the version that is
        named there, or in any. Of an `owner`'s documents it must show as many as it has room for.
        """
        if len(bodies) == 1:
            what, answer, start, end = await self._ask("search", "POST", "search", bodies[0])
            answers = [(what, answer)]
        else:
            what, batch, start, end = await self._ask("search", "POST", "search/batch", {"searches": bodies})
            answers = [self._of_batch(one, start, end) for one in batch.get("results", ())]
            if what.what == "full" and len(answers) != len(bodies):
                self.wrong.append(f"a batch of {len(bodies)} searches has {len(answers)} results")
        for number, (what, answer) in enumerate(answers):
            wanted = asked[number] if asked else {}
            if what.what not in ("full", "partial") or answer["coverage"].get("stale"):
                continue
            ids = [hit["id"] for hit in answer["hits"]]
            if len(ids) != len(set(ids)):
                self.wrong.append(f"a search shows a document twice: {ids}")
            shown = {h["id"]: version_of(h["content"]) for h in answer["hits"] if h["id"] >= FIRST_ID}
            whole = what.what == "full" and "unsettled" not in answer
            whole = whole and answer.get("short", {}).get("reason") not in _SHORT
            due = []
            for id_, version in wanted.items():
                allowed = self.ledger.allowed(id_, start, end)
                # One that is written meanwhile may have moved away from where it was looked for.
                if whole and (allowed == {version} or version is None):
                    due.append(id_)
            found = self.ledger.wrong(shown, due, start, end)
            if whole and owner is not None:
                found += self.ledger.wrong_number(owner, len(ids), start, end, most=10)
            cache = answer["cache"]
            self.wrong += [f"{one} (cache {cache}, {what.what}, {start:.3f} to {end:.3f})" for one in found]

    def _of_batch(self, result: dict[str, Any], start: float, end: float) -> tuple[Said, dict[str, Any]]:
        if (error := result.get("error")) is not None:
            # A batch as a whole has the header; its searches have no room for one.
            what = said(error["status"], {"retry-after": "batch"}, error)
        else:
            what = said(200, {}, result)
        self.events.append(Event(start, end - start, "search", what))
        return what, result

    # -- asking

    def _body(self, vector: Vectors, **fields: Any) -> dict[str, Any]:
        return {"vector": vector.tolist(), "k": 10, "include": ["content"], **fields}

    def _vector(self, version: Version) -> Vectors:
        """Of a document in this version: near some row of the data set, and no other's."""
        rng = np.random.default_rng(version or 0)
        row = self._dataset.base[rng.integers(len(self._dataset.base))]
        moved: Vectors = (row + rng.normal(0, 0.05 * row.std() + 1e-3, row.shape)).astype(np.float32)
        return moved

    async def _ask(
        self, operation: Operation, method: str, path: str, body: object = None
    ) -> tuple[Said, dict[str, Any], float, float]:
        """What the answer says of itself, its body, and when the request was sent and answered."""
        encoded = b"" if body is None else msgspec.json.encode(body)
        request = request_bytes(f"{self._url}/v1/collections/{COLLECTION}/{path}", encoded, method)
        start, answer, id_ = perf_counter(), {}, ""
        try:
            status, data, headers = await self._connections.ask(request)
        except SearchError as exc:
            kinds = {"no connection": "refused", "connection lost": "lost"}
            said_ = Said(kinds.get(str(exc).partition(":")[0], "silent"), detail=str(exc))
        else:
            id_ = headers.get("x-request-id", "")
            answer = msgspec.json.decode(data, type=dict[str, Any])
            said_ = said(status, headers, answer)
        end = perf_counter()
        # That there is no such document is an answer, and the ledger judges it.
        absent = said_.what == "absent" and operation in ("read", "write")
        shown = Said("full") if absent else said_
        self.events.append(Event(start, end - start, operation, shown, id_))
        return said_, answer, start, end


def version_of(content: str | None) -> Version:
    """
    Raises:
        BenchError: it is none that a client here has written.
    """
    if content is None or not content.startswith("v"):
        raise BenchError(f"a tracked document has the content {content!r}")
    return int(content[1:])


def _end(what: Said) -> End:
    if what.what in ("full", "absent"):
        return "acknowledged"
    # Nothing was sent to a router that does not listen; all else that is no clear refusal may have been done.
    return "refused" if what.what in ("refused", "unavailable", "overloaded") else "unknown"
