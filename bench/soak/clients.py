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
from bench.errors import BenchError
from bench.faults.caller import FIRST_ID, Answer, Caller
from bench.faults.outcomes import Event, Said, said
from bench.soak.ledger import End, Ledger, Version
from bench.truth import exact

__all__ = ["ANSWER_SECONDS", "COLUMNS", "Clients", "version_of"]

# What the collection has, beside ids and vectors.
COLUMNS: dict[str, Any] = {"content": "content", "columns": {"owner": "bigint"}}

_WRITERS, _READERS = 4, 6
# Seconds between two requests of one client, on average.
_WRITE_PAUSE, _READ_PAUSE = 0.25, 0.12
# Documents that a writer has at the same time, the most of one write, and ids until the next writer's.
_SLOTS, _TOGETHER, _IDS_EACH = 60, 3, 1_000_000
_DELETES, _REPEATED = 0.3, 1.1
# More than a write has at the router.
ANSWER_SECONDS = 60.0
_QUIET_SECONDS = 90.0
_COMPARED = 4
# An index scan that gave up has missed rows, and says so.
_SHORT = ("scan_limit", "coverage")


class Clients:
    """All clients of one router, who ask by way of `caller`; `wrong` grows while they run."""

    def __init__(self, caller: Caller, ledger: Ledger, dataset: Dataset, seed: int) -> None:
        self.ledger = ledger
        self.wrong: list[str] = []
        self.compared = 0  # times with all rows
        self._caller = caller
        self._dataset = dataset
        self._seed = seed
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
        return f"<Clients of {self._caller!r}, {self.ledger!r}>"

    def start(self) -> None:
        clients = [self._write_on(i) for i in range(_WRITERS)] + [self._read_on(i) for i in range(_READERS)]
        self._tasks = [asyncio.create_task(client) for client in clients]

    async def stop(self) -> None:
        """Begin no request any more, and wait for those under way, each of which has its time."""
        self._ending = True
        self._open.set()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=2 * ANSWER_SECONDS)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._caller.close()

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
        rng = random.Random(f"{self._seed} {len(self._caller.events)}")
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
            answer = await self._caller.ask("search", "POST", "search", body)
            if answer.said.what != "full":
                return  # an event tells of it, and it is not counted
            answers.append([places.get(hit["id"], hit["id"]) for hit in answer.body["hits"]])
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
        answer = await self._caller.ask("write", "PUT", "documents", {"documents": documents})
        if "stored" not in answer.body:
            return dict.fromkeys(wanted, _end(answer.said))
        reasons = {one["id"]: one["reason"] for one in answer.body["failures"]}
        ends: dict[str | None, End] = {None: "acknowledged", "unknown": "unknown"}
        return {id_: ends.get(reasons.get(id_), "refused") for id_ in wanted}

    async def _delete(self, stored: dict[int, Version]) -> dict[int, End]:
        if len(stored) > 1:
            answer = await self._caller.ask("write", "POST", "documents/delete", {"ids": list(stored)})
        else:
            answer = await self._caller.ask("write", "DELETE", f"documents/{next(iter(stored))}")
        end, expected = _end(answer.said), sum(version is not None for version in stored.values())
        if end == "acknowledged" and (number := answer.body.get("deleted", 0)) != expected:
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
        answer = await self._caller.ask("read", "GET", f"documents/{id_}?include=content")
        if answer.said.what in ("full", "absent"):
            shown = {id_: version_of(answer.body["content"])} if answer.said.what == "full" else {}
            self.wrong += self.ledger.wrong(shown, [id_], answer.start, answer.end)

    async def _search_exactly(self, *ids: int) -> None:
        """Search for where these documents are by the ledger, all in one request."""
        now = perf_counter()
        asked = {id_: self.ledger.allowed(id_, now, now) for id_ in ids}
        versions = {id_: min(allowed, key=lambda v: v or 0) for id_, allowed in asked.items()}
        bodies = [self._body(self._vector(v or id_), k=3, exact=True) for id_, v in versions.items()]
        await self._search(bodies, [{id_: v} if v is not None else {} for id_, v in versions.items()])

    async def _count(self, owner: int) -> None:
        filter_ = quote(msgspec.json.encode({"owner": owner}))
        said_, answer, start, end = await self._caller.ask("count", "GET", f"count?filter={filter_}")
        if said_.what == "full":
            self.wrong += self.ledger.wrong_number(owner, answer["count"], start, end)

    async def _search(
        self, bodies: list[Any], asked: Sequence[dict[int, Version]] = (), owner: int | None = None
    ) -> None:
        """Send one search, or several as a batch, and check what they show.

        Each must show what is `asked` of it, as far as it is stored all the time: in the version that is
        named there, or in any. Of an `owner`'s documents it must show as many as it has room for.
        """
        if len(bodies) == 1:
            answers = [await self._caller.ask("search", "POST", "search", bodies[0])]
        else:
            answers = await self._batch(bodies)
        for number, answer in enumerate(answers):
            self._check_search(answer, asked[number] if asked else {}, owner)

    async def _batch(self, bodies: list[Any]) -> list[Answer]:
        """The answers to the searches of a batch, each of which is an event of its own, too."""
        batch = await self._caller.ask("search", "POST", "search/batch", {"searches": bodies})
        results = batch.body.get("results", ())
        if batch.said.what == "full" and len(results) != len(bodies):
            self.wrong.append(f"a batch of {len(bodies)} searches has {len(results)} results")
        answers = []
        for result in results:
            error = result.get("error")
            # A batch as a whole has the header; its searches have no room for one.
            what = said(error["status"], {"retry-after": "batch"}, error) if error else said(200, {}, result)
            answers.append(batch._replace(said=what, body=result))
            self._caller.events.append(Event(batch.start, batch.end - batch.start, "search", what))
        return answers

    def _check_search(self, answer: Answer, asked: dict[int, Version], owner: int | None) -> None:
        what, found, start, end = answer.said.what, answer.body, answer.start, answer.end
        if what not in ("full", "partial") or found["coverage"].get("stale"):
            return
        ids = [hit["id"] for hit in found["hits"]]
        if len(ids) != len(set(ids)):
            self.wrong.append(f"a search shows a document twice: {ids}")
        shown = {hit["id"]: version_of(hit["content"]) for hit in found["hits"] if hit["id"] >= FIRST_ID}
        whole = what == "full" and "unsettled" not in found
        whole = whole and found.get("short", {}).get("reason") not in _SHORT
        due = [
            id_
            for id_, version in asked.items()
            # One that is written meanwhile may have moved away from where it was looked for.
            if whole and (version is None or self.ledger.allowed(id_, start, end) == {version})
        ]
        wrong = self.ledger.wrong(shown, due, start, end)
        if whole and owner is not None:
            wrong += self.ledger.wrong_number(owner, len(ids), start, end, most=10)
        self.wrong += [f"{one} (cache {found['cache']}, {what}, {start:.3f} to {end:.3f})" for one in wrong]

    # -- what is asked

    def _body(self, vector: Vectors, **fields: Any) -> dict[str, Any]:
        return {"vector": vector.tolist(), "k": 10, "include": ["content"], **fields}

    def _vector(self, version: Version) -> Vectors:
        """Of a document in this version: near some row of the data set, and no other's."""
        rng = np.random.default_rng(version or 0)
        row = self._dataset.base[rng.integers(len(self._dataset.base))]
        moved: Vectors = (row + rng.normal(0, 0.05 * row.std() + 1e-3, row.shape)).astype(np.float32)
        return moved


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
