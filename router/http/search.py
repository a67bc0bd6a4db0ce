"""Search and batch search.

A batch is several searches in one body. It is admitted or refused as a whole, by what a sample of it is
expected to take; then each is decoded, checked and answered on its own, with as many under way at a time as
the nodes can answer soon.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Container, Sequence
from time import perf_counter

import msgspec

from router.decode.bodies import BatchBody, SearchBody
from router.decode.body import Decoder
from router.decode.compositions import Draft, Examples, Wanted, draft, finished, is_plain, of_examples
from router.decode.pages import check_first_page, first_page, next_page
from router.decode.queries import search_query, timeout_of
from router.http.answers import BatchError, search_answer
from router.http.backend import Embed
from router.http.body_cache import BodyCache, CheckedSearch
from router.http.content import read_json
from router.http.message import Reply, Request
from router.http.problems import problem_body
from router.http.slow_log import SlowLog
from router.http.texts import EmbeddingView, SearchTexts
from router.policy.batches import AdmittedBatch
from router.policy.deadline import ends_of
from router.query.errors import (
    DeadlineError,
    InvalidError,
    MisconfiguredError,
    OverloadedError,
    RouterError,
    UnavailableError,
)
from router.query.paging import FIRST
from router.query.redaction import ShardFault
from router.query.types import Consistency, Found, SearchQuery
from router.settings import Settings
from router.stages.all_of import all_of
from router.stages.answer_memory import BatchRoom
from shard_config.model import Collection

__all__ = ["Searches"]

# Searches of a batch that are checked before it is admitted; the others are expected to take as long.
_SAMPLE = 8
# A batch's answer up to this size is joined before it is sent.
_JOINED_BYTES = 1 << 18
_NO_HITS = b"[]"
# What keeps a model from answering, and lets the other lists of a search stand.
_MODEL_AWAY = (DeadlineError, MisconfiguredError, OverloadedError, UnavailableError)
# Of the time that is left, what texts may take to become vectors where lists do without them.
_TEXTS, _LISTS = 2.0, 1.0
# Of the searches of a batch; the log names the first shards.
_MOST_FAULTS = 1000


class Searches:
    """The handlers of the search routes."""

    def __init__(self, settings: Settings, embed: Embed) -> None:
        self._settings = settings
        self._embed = embed
        self._decoder = Decoder(SearchBody, exact=True)
        self._batch_decoder = Decoder(BatchBody)
        self._encoder = msgspec.json.Encoder()
        self._bodies = BodyCache(settings.body_cache_bytes)
        self._slow = SlowLog(settings.slow_search)

    async def search(self, request: Request) -> Reply:
        collection = request.collection
        data = await read_json(request, self._settings)
        started = perf_counter()
        now = asyncio.get_running_loop().time()
        checked = self._bodies.get(collection, data)
        if checked is None:
            checked = await self._check(request, data, now)
            if checked.reusable:
                self._bodies.put(data, checked)
        found = await request.backend.search(checked.query, now + checked.timeout)
        took_ms = round((perf_counter() - started) * 1000, 3)
        self._slow.note(request.id, checked.query, found, took_ms)
        reply = Reply(
            self._encode(request, checked, found, took_ms),
            headers=[(b"server-timing", _server_timing(found, took_ms, checked.embedding))],
            found=((collection.name, found),),
        )
        if found.answer.more:
            reply.body, *reply.more = _in_pieces(reply.body, found)
        return reply

    async def batch(self, request: Request) -> Reply:
        collection = request.collection
        data = await read_json(request, self._settings)
        searches = self._batch_decoder.decode(data).searches
        if len(searches) > self._settings.max_batch:
            most = self._settings.max_batch
            raise InvalidError.at("searches", f"{len(searches)} searches exceed {most} per batch")
        loop = asyncio.get_running_loop()
        end = loop.time() + self._settings.max_timeout
        room = request.backend.batch_room()
        results: list[list[bytes]] = [[]] * len(searches)
        answers: list[tuple[str, Found]] = []
        faults: list[ShardFault] = []

        async def answer(i: int) -> None:
            where = f"searches[{i}]"
            results[i], found = await self._member(request, searches[i], where, end, room, batch)
            if isinstance(found, Found):
                answers.append((collection.name, found))
            elif len(faults) < _MOST_FAULTS:
                faults.extend(found.faults)

        sample = self._sample(collection, searches, request.backend.shard_map.rerankers)
        with request.backend.admit(sample, len(searches), self._settings.max_timeout) as batch:
            async with asyncio.TaskGroup() as group:
                _Workers(batch, group, len(searches), end, answer).start()
        body, more = _batch_body(results)
        return Reply(body, more=more, found=tuple(answers), reservation=room, faults=faults)

    def _sample(
        self, collection: Collection, searches: Sequence[msgspec.Raw], rerankers: Container[str]
    ) -> list[SearchQuery]:
        """Some of them, without the vectors of texts and examples, which cost a shard what others do."""
        sample: list[SearchQuery] = []
        for raw in searches[:: -(-len(searches) // _SAMPLE) or 1]:
            try:
                body = self._decoder.decode(raw)
                if is_plain(body):
                    sample.append(search_query(body, collection, self._settings))
                else:
                    sample.append(draft(body, collection, self._settings, rerankers).query)
            except RouterError:
                continue  # it is told so in its turn
        return sample

    async def _member(
        self,
        request: Request,
        raw: msgspec.Raw,
        path: str,
        end: float,
        room: BatchRoom,
        batch: AdmittedBatch,
    ) -> tuple[list[bytes], Found | RouterError]:
        """One search's result in pieces, an error included; its time counts from its own turn."""
        started = perf_counter()
        now = asyncio.get_running_loop().time()
        try:
            checked = await self._check(request, raw, now, path, caller=batch, room=room)
            found = await request.backend.search(checked.query, min(now + checked.timeout, end))
            took_ms = round((perf_counter() - started) * 1000, 3)
            self._slow.note(request.id, checked.query, found, took_ms)
            pieces = _in_pieces(self._encode(request, checked, found, took_ms), found)
            room.add(sum(map(len, pieces)), counted=found.answer.reservation is not None)
        except RouterError as exc:
            problem = problem_body(exc, request.id, inside=request.inside)
            # It outlives this frame, which it would hold.
            return [self._encoder.encode(BatchError(problem))], exc.with_traceback(None)
        return pieces, found

    async def _check(
        self,
        request: Request,
        data: bytes | msgspec.Raw,
        now: float,
        path: str = "",
        caller: AdmittedBatch | None = None,
        room: BatchRoom | None = None,
    ) -> CheckedSearch:
        """Decode and check the body of a search, which came at `now`."""
        body = self._decoder.decode(data, path)
        if body.cursor is not None:
            if room is not None:
                raise InvalidError.at(f"{path}.cursor", "a search of a batch has no pages; send it alone")
            return await self._check_page(request, body, now)
        return await self._check_body(request, body, now, path, caller, room)

    async def _check_body(
        self,
        request: Request,
        body: SearchBody,
        now: float,
        path: str = "",
        caller: AdmittedBatch | None = None,
        room: BatchRoom | None = None,
    ) -> CheckedSearch:
        collection = request.collection
        if is_plain(body):
            query = search_query(body, collection, self._settings, path, caller, room)
            return CheckedSearch(query, self._timeout(body, collection), reusable=query.cached)
        rerankers = request.backend.shard_map.rerankers
        drawn = draft(body, collection, self._settings, rerankers, path, caller, room)
        query, timeout = drawn.query, self._timeout(body, collection)
        if drawn.complete:
            return CheckedSearch(query, timeout, reusable=query.cached)
        texts = SearchTexts(self._embed)
        query = await self._finished(request, drawn, texts, now + timeout)
        # A text's vector changes with its model, and that of examples with these.
        return CheckedSearch(query, timeout, False, texts.view)

    async def _check_page(self, request: Request, body: SearchBody, now: float) -> CheckedSearch:
        """The same of a page of a ranking that is kept for the caller."""
        if body.cursor == FIRST:
            check_first_page(body)
            checked = await self._check_body(request, body, now)
            query = first_page(checked.query, body, request.caller)
            return msgspec.structs.replace(checked, query=query, reusable=False)
        query = next_page(body, request.collection, self._settings, request.caller)
        return CheckedSearch(query, self._timeout(body, request.collection), reusable=False)

    def _timeout(self, body: SearchBody, collection: Collection) -> float:
        return min(timeout_of(body.timeout_ms, collection), self._settings.max_timeout)

    async def _finished(
        self, request: Request, drawn: Draft, texts: SearchTexts, deadline: float
    ) -> SearchQuery:
        """With the vectors of its texts and examples, all found at once.

        A search of several lists does without one whose text has no vector now, and says so; to the lists
        that have one it leaves a share of the time.
        """
        missing: dict[int, RouterError] = {}
        end = deadline
        if drawn.divisible:
            end = ends_of((_TEXTS, _LISTS), deadline, asyncio.get_running_loop().time())[0]

        async def embedded(number: int, wanted: Wanted) -> bytes:
            try:
                return await texts.vector(request.collection, wanted.text, end, wanted.path)
            except _MODEL_AWAY as exc:
                if not drawn.divisible:
                    raise
                missing[number] = exc.with_traceback(None)
                return b""

        wanted = {number: embedded(number, one) for number, one in drawn.texts.items()} | {
            number: self._of_stored(request, one, drawn.query.consistency, deadline)
            for number, one in drawn.likes.items()
        }
        found = dict(zip(wanted, await all_of(wanted.values()), strict=True))
        composition = drawn.query.composition
        if missing and composition is not None and len(missing) == len(composition.legs):
            try:
                raise missing[0]
            finally:
                missing.clear()  # an error holds the frames that it passes; this one would hold it in turn
        return finished(
            drawn,
            {number: data for number, data in found.items() if number not in missing},
            {number: exc.told(inside=False)[0] for number, exc in missing.items()},
        )

    async def _of_stored(
        self, request: Request, examples: Examples, consistency: Consistency, deadline: float
    ) -> bytes:
        ids = list(dict.fromkeys((*examples.ids, *examples.others)))
        stored = await request.backend.vectors(request.collection, ids, consistency, deadline)
        return of_examples(examples, stored, request.collection)

    def _encode(self, request: Request, checked: CheckedSearch, found: Found, took_ms: float) -> bytes:
        """The answer's JSON, of a large one without its hits."""
        query, embedding = checked.query, checked.embedding
        version = request.backend.shard_map.version
        explain = request.backend.nodes() if query.explain or query.plan else None
        if found.answer.more:
            without = msgspec.structs.replace(found.answer, hits=msgspec.Raw(_NO_HITS))
            found = msgspec.structs.replace(found, answer=without)
        return self._encoder.encode(
            search_answer(
                found, took_ms, version, explain=explain, embedding=embedding, inside=request.inside
            )
        )


class _Workers:
    """Have a batch's searches answered, as many at a time as the batch says.

    These are no closures that know each other: by their cycle, the memory of large answers would stay
    reserved until a garbage collection.
    """

    def __init__(
        self,
        batch: AdmittedBatch,
        group: asyncio.TaskGroup,
        count: int,
        end: float,
        answer: Callable[[int], Awaitable[None]],
    ) -> None:
        self._batch, self._group, self._count, self._end = batch, group, count, end
        self._answer = answer
        self._members = iter(range(count))
        self._running = 0

    def start(self) -> None:
        """As many as may be on their way and are not yet."""
        while self._running < min(self._batch.size, self._count):
            self._running += 1
            self._group.create_task(self._work())

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        for i in self._members:
            started = loop.time()
            await self._answer(i)
            self._batch.answered(loop.time() - started, self._end - loop.time())
            if self._running > self._batch.size:
                break
            self.start()
        self._running -= 1


def _in_pieces(body: bytes, found: Found) -> list[bytes]:
    """What `_encode` has made, with the hits of a large answer as the pieces that they are."""
    if not found.answer.more:
        return [body]
    before, after = body.split(_NO_HITS, 1)
    return [before + bytes(found.answer.hits), *found.answer.more, after]


def _batch_body(results: list[list[bytes]]) -> tuple[bytes, list[bytes]]:
    """The JSON of a `BatchAnswer` whose results are JSON already, in one or, of a large one, in pieces."""
    pieces = [b'{"results":[']
    for i, result in enumerate(results):
        pieces += (b",", *result) if i else result
    pieces.append(b"]}")
    if sum(map(len, pieces)) <= _JOINED_BYTES:
        return b"".join(pieces), []
    return b"", pieces


def _server_timing(found: Found, took_ms: float, embedding: EmbeddingView | None) -> bytes:
    """Where the time went: in all, on the text, and on the slowest shard."""
    reports = found.answer.reports
    before = b"total;dur=%.3f" % took_ms
    if embedding is not None:
        before += b", embed;dur=%.3f" % embedding.ms
    if not reports:
        return before
    slowest = max(reports, key=lambda report: report.total_ms)
    return before + b', queue;dur=%.3f;desc="%s", execute;dur=%.3f;desc="%s"' % (
        slowest.queue_ms,
        slowest.shard.encode(),
        slowest.execute_ms,
        slowest.shard.encode(),
    )
