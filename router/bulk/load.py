"""The order of a load: start, pump, index, check, finish, and wait for replicas."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec

from router.bulk import finish, resume
from router.bulk.batch import Source
from router.bulk.embed import Embedding, rows_together
from router.bulk.errors import LoadError
from router.bulk.pump import pump
from router.bulk.resume import Job
from router.bulk.skipped import Skipped
from router.bulk.sources import open_source
from router.bulk.start import find_primaries, start
from router.bulk.target import Target
from router.models.embedding import Embeddings
from router.schema.build import BuildLimits
from router.schema.replicas import Lag
from router.settings import Settings
from router.terminal import Display
from shard_config.model import Collection, ShardMap

__all__ = ["Options", "Summary", "load"]


class Options(msgspec.Struct, frozen=True):
    """What the command line says; `None` leaves it to the load."""

    chunk_rows: int | None = None
    jobs: int = 2
    dataset: str = "train"
    limit: int | None = None
    skip_bad: int = 0
    embed_patience: float = 60.0  # seconds that a model's service may fail
    restart: bool = False
    replay_timeout: float = 120.0
    index: bool = True
    build: BuildLimits = BuildLimits()


class Summary(msgspec.Struct, frozen=True):
    """What this run has done.

    Attributes:
        copied: rows by shard.
        earlier: rows that earlier runs of the same load had brought.
        copy_seconds: until the last row was in; `seconds` until all was done.
        skipped: bad rows, of all runs; `skipped_lines` explains the first of this one.
        late: replicas that do not have everything.
    """

    copied: dict[str, int]
    earlier: int
    copy_seconds: float
    seconds: float
    skipped: int
    skipped_lines: list[str]
    notes: list[str]
    late: list[Lag]
    idle: bool

    @property
    def rows(self) -> int:
        return sum(self.copied.values())


async def load(
    shard_map: ShardMap, collection: Collection, path: Path, options: Options, display: Display
) -> Summary:
    """Load the file at `path`, or what is missing of it.

    Raises:
        LoadError: what was committed before stays, and the same call goes on from there.
    """
    source = open_source(path, collection, options.dataset, options.limit)
    digest = resume.options_digest(collection, options.dataset, options.limit)
    job = Job(source.fingerprint, digest)
    began = time.monotonic()
    primaries = await find_primaries(shard_map, collection)
    embeddings = None
    try:
        service = collection.embedder
        targets = await start(
            collection,
            primaries,
            job,
            chunk_rows=options.chunk_rows,
            usual_rows=rows_together(service) if service is not None and source.as_text else None,
            restart=options.restart,
        )
        embedding = None
        if service is not None:
            embeddings = Embeddings(Settings())
            patience = options.embed_patience
            embedding = Embedding(collection, source, embeddings.documents, patience, display.say)
        run = _Run(shard_map, collection, source, targets, options, display, began, embedding)
        try:
            return await run.run()
        except LoadError as exc:
            exc.begun = True
            raise
    finally:
        for primary in primaries.values():
            primary.close()
        if embeddings is not None:
            await embeddings.close()


class _Run:
    """A load that has begun on every shard."""

    def __init__(
        self,
        shard_map: ShardMap,
        collection: Collection,
        source: Source,
        targets: list[Target],
        options: Options,
        display: Display,
        began: float,
        embedding: Embedding | None,
    ) -> None:
        self._map = shard_map
        self._collection = collection
        self._source = source
        self._targets = targets
        self._options = options
        self._display = display
        self._began = began
        self._embedding = embedding
        self._skipped = Skipped(source, options.skip_bad, _refused_earlier(targets))

    async def run(self) -> Summary:
        idle = all(target.load.finished for target in self._targets)
        if not idle:
            await self._copy()
        copied = time.monotonic()
        notes = [] if idle else await self._complete()
        late = await finish.replay(self._map, self._targets, self._options.replay_timeout, self._display)
        return Summary(
            copied={target.shard: target.copied for target in self._targets},
            earlier=sum(target.earlier for target in self._targets),
            copy_seconds=copied - self._began,
            seconds=time.monotonic() - self._began,
            skipped=self._skipped.count,
            skipped_lines=self._skipped.lines(),
            notes=notes,
            late=late,
            idle=idle,
        )

    async def _copy(self) -> None:
        meter = self._display.meter("loading", self._source.extent, "rows")
        rows = self._targets[0].load.chunk_rows
        await pump(
            self._collection,
            self._source,
            rows,
            self._targets,
            self._options.jobs,
            self._skipped,
            meter,
            self._embedding,
        )
        meter.end()

    async def _complete(self) -> list[str]:
        if self._options.index:
            notes = await finish.index(self._collection, self._targets, self._options.build, self._display)
        elif any(target.load.deferred_index for target in self._targets):
            notes = [f"{self._collection.table} has no HNSW index; `pgscatter schema apply` creates it"]
        else:
            notes = []
        await finish.check_ids(self._collection, self._targets)
        await finish.mark_finished(self._targets)
        return notes


def _refused_earlier(targets: list[Target]) -> int:
    """Bad rows of chunks that every shard has, and that are not read again; rows that shards refused."""
    whole = set.intersection(*(set(target.chunks) for target in targets))
    marks = targets[0].load.chunks
    rejected = sum(mark.rejected for target in targets for mark in target.load.chunks.values())
    return rejected + sum(marks[chunk].refused for chunk in whole)
