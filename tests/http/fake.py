"""A router in memory for the tests of the HTTP edge: it holds documents and does what it is told."""

from __future__ import annotations

import asyncio
import io
import math
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import numpy as np

from router.documents.types import (
    CountAnswer,
    DeleteOutcome,
    Document,
    DocumentFailure,
    ReadAnswer,
    ShardWrite,
    UpsertOutcome,
)
from router.http.app import create
from router.http.backend import Backend, Embed, Embedded, NodeStatus, ServiceStatus
from router.http.keys import Keys
from router.http.life import Life
from router.http.metrics import Metrics
from router.logs import AccessLog
from router.policy.batches import AdmittedBatch, Batches
from router.query.composition import Account, Group, LegAccount, StepAccount
from router.query.errors import InvalidError
from router.query.filter import Filter
from router.query.types import (
    Answer,
    Consistency,
    Coverage,
    Failure,
    Found,
    SearchQuery,
    ShardCounts,
    ShardReport,
    ShardState,
    Shortfall,
    Unsettled,
    VectorFormat,
)
from router.query.wire import base64_text, number_text, to_wire
from router.recall.sampling import RecallSeen
from router.schema.watch import SchemaState
from router.settings import Settings
from router.stages.answer_memory import AnswerMemory, BatchRoom
from shard_config import Collection, ShardMap, locate, parse
from shard_config.identity import Disagreement
from shard_config.model import VectorType

MAP = """
version: 12
rerankers: {ce: {url: "http://127.0.0.1:9/v1"}}
shards:
  s0: {nodes: [{name: s0-a, dsn: "postgresql://router:hunter2@127.0.0.1:5401/search", zone: a}]}
  s1: {nodes: [{name: s1-a, dsn: "postgresql://router:hunter2@127.0.0.1:5402/search", zone: b}]}
collections:
  documents:
    table: public.documents
    id: {column: id, type: bigint}
    vector: {column: embedding, type: vector, dimensions: 3, metric: cosine}
    content: content
    metadata: metadata
    fulltext: {columns: [content]}
    columns: {category: text, price: float8, created_at: timestamptz, amount: numeric}
    sharding: {strategy: hash, key: id, buckets: 4, placement: {s0: [0-1], s1: [2-3]}}
  halves:
    table: public.halves
    id: {column: id, type: uuid}
    vector: {column: embedding, type: halfvec, dimensions: 3, metric: l2}
    sharding: {strategy: hash, key: id, buckets: 2, placement: {s0: [0], s1: [1]}}
  coarse:
    table: public.coarse
    id: {column: id, type: bigint}
    vector: {column: embedding, type: vector, dimensions: 3, metric: cosine}
    sharding: {strategy: hash, key: id, buckets: 2, placement: {s0: [0], s1: [1]}}
    index: {quantization: halfvec}
  notes:
    table: public.notes
    id: {column: id, type: text}
    vector: {column: embedding, type: vector, dimensions: 2, metric: l2}
    columns: {tenant: text}
    sharding: {strategy: list, key: tenant, placement: {s0: [acme], s1: [umbrella]}}
"""


def shard_map() -> ShardMap:
    return parse(MAP, env={})


class FakeBackend:
    """Satisfies `router.http.backend.Backend`; tests change its attributes and read what it was asked."""

    def __init__(self) -> None:
        self.shard_map = shard_map()
        self.documents: dict[str, dict[object, Document]] = {name: {} for name in self.shard_map.collections}
        self.queries: list[SearchQuery] = []
        self.filters: list[Filter | None] = []
        self.upserts: list[list[Document]] = []
        self.deadlines: list[float] = []
        self.error: Exception | None = None
        self.down: set[str] = set()
        self.silent: set[str] = set()  # shards that write, and do not say so
        self.stale: str | None = None
        self.conflicts: set[object] = set()
        self.gate: asyncio.Event | None = None
        self.is_ready = True
        self.schema_state = SchemaState()
        self.measured: dict[str, RecallSeen] = {}
        self.tier = "miss"
        self.service_states: list[ServiceStatus] = []
        self.unsettled: tuple[Unsettled, ...] = ()
        self.differing: list[tuple[str, Disagreement]] = []
        self.memory = AnswerMemory(64 << 20, 128 << 20)
        self.batches = Batches(512)
        self.seconds_each = 0.0  # that a search of a batch is expected to take
        self.samples: list[list[SearchQuery]] = []

    async def search(self, query: SearchQuery, deadline: float) -> Found:
        self.queries.append(query)
        self.deadlines.append(deadline)
        await self._pass()
        legs = () if query.composition is None else query.composition.legs
        vectors = [query.vector, *(leg.vector for leg in legs)]
        wanted = np.frombuffer(
            next(filter(None, vectors), bytes(4 * query.collection.vector.dimensions)), "<f4"
        )
        hits = [
            {
                "id": document.id,
                "distance": float(np.linalg.norm(wanted - np.frombuffer(document.vector, "<f4"))),
            }
            for document in self.documents[query.collection.name].values()
        ]
        hits.sort(key=lambda hit: (hit["distance"], str(hit["id"])))
        kept = hits[query.offset : query.offset + query.k]
        raw = msgspec.Raw(msgspec.json.encode([{**hit, "shard": "s0"} for hit in kept]))
        short = None if len(kept) == query.k else Shortfall(query.k, len(kept), "exhausted")
        plan = "Limit" if query.plan else None
        reports = tuple(
            ShardReport(name, ShardState.FAILED, error="no node is up")
            if name in self.down
            else ShardReport(
                name,
                ShardState.OK,
                f"{name}-a",
                "primary",
                1,
                queue_ms=0.1,
                execute_ms=1.5,
                total_ms=2.0,
                plan=plan,
            )
            for name in self.shard_map.shards
        )
        answer = Answer(raw, len(kept), self._coverage(), short, reports, cacheable=not self.down)
        answer = msgspec.structs.replace(answer, unsettled=self.unsettled, account=_account(query))
        return Found(answer, self.tier)  # type: ignore[arg-type]

    async def upsert(
        self, collection: Collection, documents: Sequence[Document], deadline: float
    ) -> UpsertOutcome:
        self.upserts.append(list(documents))
        await self._pass()
        failures: list[DocumentFailure] = []
        rows = dict.fromkeys(self.shard_map.shards_of(collection), 0)
        for document in documents:
            key = document.columns.get("tenant") if collection.name == "notes" else document.id
            shard = locate(collection.sharding, key)
            if document.id in self.conflicts:
                failures.append(DocumentFailure(document.index, document.id, "conflict", "moved", shard))
            elif shard in self.silent:
                failures.append(DocumentFailure(document.index, document.id, "unknown", "no answer", shard))
            elif shard in self.down:
                failures.append(DocumentFailure(document.index, document.id, "unavailable", "down", shard))
            else:
                rows[shard] += 1
                self.documents[collection.name][document.id] = document
        writes = tuple(
            ShardWrite(name, False, 0, "no answer", unknown=True)
            if name in self.silent
            else ShardWrite(name, name not in self.down, count, "down" if name in self.down else None)
            for name, count in rows.items()
        )
        return UpsertOutcome(sum(rows.values()), writes, tuple(failures))

    async def read(
        self,
        collection: Collection,
        id: object,
        include: frozenset[str],
        deadline: float,
        vector_format: VectorFormat = "float",
    ) -> ReadAnswer | None:
        await self._pass()
        document = self.documents[collection.name].get(id)
        if document is None:
            return None
        fields: dict[str, Any] = {"id": id}
        if "content" in include:
            fields["content"] = document.content
        if "metadata" in include:
            fields["metadata"] = (
                None if document.metadata is None else msgspec.Raw(document.metadata.encode())
            )
        if "vector" in include:
            wire = to_wire(document.vector, VectorType.VECTOR)
            text = number_text if vector_format == "float" else base64_text
            fields["vector"] = msgspec.Raw(text(wire, VectorType.VECTOR))
        fields |= {name: value for name, value in document.columns.items() if name in include}
        return ReadAnswer(fields, self.stale)

    async def vectors(
        self, collection: Collection, ids: Sequence[object], consistency: Consistency, deadline: float
    ) -> dict[object, bytes | None]:
        await self._pass()
        stored = self.documents[collection.name]
        return {id_: stored[id_].vector for id_ in ids if id_ in stored}

    async def delete(self, collection: Collection, ids: Sequence[object], deadline: float) -> DeleteOutcome:
        await self._pass()
        if self.silent:
            return DeleteOutcome(0, (ShardWrite("s0", False, 0, "no answer", unknown=True),))
        if self.down:
            return DeleteOutcome(0, (ShardWrite("s0", False, 0, "down"), ShardWrite("s1", True, 0)))
        deleted = sum(self.documents[collection.name].pop(id_, None) is not None for id_ in ids)
        return DeleteOutcome(deleted, (ShardWrite("s0", True, deleted),))

    async def delete_matching(self, collection: Collection, filter: Filter, deadline: float) -> DeleteOutcome:
        await self._pass()
        self.filters.append(filter)
        return DeleteOutcome(2, (ShardWrite("s0", True, 1), ShardWrite("s1", True, 1)))

    async def count(self, collection: Collection, filter: Filter | None, deadline: float) -> CountAnswer:
        await self._pass()
        self.filters.append(filter)
        return CountAnswer(len(self.documents[collection.name]), self._coverage())

    def admit(self, sample: Sequence[SearchQuery], searches: int, available: float) -> AdmittedBatch:
        self.samples.append(list(sample))
        return self.batches.admit(
            searches, ahead=0.0, each=self.seconds_each, available=available, timeout=2.0
        )

    def batch_room(self) -> BatchRoom:
        return BatchRoom(self.memory)

    def nodes(self) -> list[NodeStatus]:
        return [
            NodeStatus(
                name=node.name,
                shard=shard.name,
                zone=node.zone,
                role="primary",
                state="down" if shard.name in self.down else "up",
                reason="refused" if shard.name in self.down else None,
                since=0.0,
                ejections=0,
                role_changes=0,
                in_flight=1,
                waiting=0,
                connections=2,
                replay_lag_bytes=None,
                replay_lag_s=None,
                timeline=1,
            )
            for shard in self.shard_map.shards.values()
            for node in shard.nodes
        ]

    def services(self) -> list[ServiceStatus]:
        return self.service_states

    def disagreements(self) -> list[tuple[str, Disagreement]]:
        return self.differing

    def unidentified(self) -> list[str]:
        return []

    def ready(self) -> tuple[bool, dict[str, bool]]:
        return self.is_ready, {name: name not in self.down for name in self.shard_map.shards}

    def schema(self) -> SchemaState:
        return self.schema_state

    def recall(self, collection: str) -> RecallSeen | None:
        return self.measured.get(collection)

    def cache_stats(self) -> dict[str, int | float | bool]:
        return {"l1_bytes": 4096, "l1_entries": 2}

    def _coverage(self) -> Coverage:
        failures = tuple(Failure(name, ShardState.FAILED, "no node is up") for name in sorted(self.down))
        counts = ShardCounts(2, 2, 2 - len(self.down), 0, 0, len(self.down))
        return Coverage(not self.down, counts, failures)

    async def _pass(self) -> None:
        if self.gate is not None:
            await self.gate.wait()
        if self.error is not None:
            raise self.error


def _account(query: SearchQuery) -> Account | None:
    """As if all of a composed search had been done."""
    composition = query.composition
    if composition is None:
        return None
    done = StepAccount(True, 1)
    return Account(
        tuple(
            LegAccount(leg.name, leg.mode, leg.weight, composition.candidates, 1) for leg in composition.legs
        ),
        None if composition.rerank is None else done,
        None if composition.diversity is None else done,
        None if composition.group_by is None else (Group(b'"tech"', 1, True),),
    )


async def embed(collection: Collection, text: str, deadline: float) -> Embedded:
    if collection.name != "documents":
        raise InvalidError.at("text", f"collection {collection.name} has no embedder; send a vector")
    return Embedded(np.array([len(text), 1.0, math.pi], "<f4").tobytes(), "minilm")


@asynccontextmanager
async def no_lifespan() -> AsyncIterator[None]:
    yield


class LogLines(io.StringIO):
    """Takes an access log."""

    async def lines(self) -> list[dict[str, Any]]:
        """The lines, once they are written: the log does that in the next turn of the event loop."""
        await asyncio.sleep(0)
        return [msgspec.json.decode(line) for line in self.getvalue().splitlines()]


def application(
    backend: Backend,
    settings: Settings = Settings(),  # noqa: B008 - frozen
    keys: Keys | None = None,
    log: LogLines | None = None,
    lifespan: Callable[[], Any] = no_lifespan,
    life: Life | None = None,
    embed: Embed = embed,
) -> Any:
    return create(
        lambda: backend,
        settings,
        keys,
        Metrics(),
        embed=embed,
        lifespan=lifespan,
        access_log=AccessLog(LogLines() if log is None else log),
        life=life,
    )
