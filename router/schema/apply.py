"""Bringing every shard's server to what the map says: check all, then change all.

Invariant: as long as one shard has a table of the wrong shape, or a row that belongs elsewhere, nothing
is changed on any. A shard without a primary keeps no other from being done. Two runs at once follow
each other, on every server that they share.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import asyncpg
import msgspec

from router.postgres.connection import ErrorKind, NodeError
from router.postgres.identity import read_identity
from router.postgres.session_settings import set_search_path
from router.schema import identity
from router.schema.build import BuildLimits, build_index, graph_bytes, sort_bytes, words_bytes
from router.schema.inspect import Misplaced, inspect, misplaced
from router.schema.load_lock import load_lock
from router.schema.load_tables import create_load_tables
from router.schema.primary import Primary, on_each, primary_of
from router.schema.replicas import Lag, wait_replayed
from router.schema.session import node_errors
from router.schema.shape import Change, changes, mismatches, notes
from router.terminal import Display
from shard_config.identity import Identity, identities
from shard_config.model import Collection, ShardMap

__all__ = ["ShardResult", "apply"]

_NAME = "pgscatter schema"
_CHECK_TIMEOUT = 3600.0  # reading all rows of a table that exists
_CHANGE_TIMEOUT = 25 * 3600.0  # an index over rows that exist, and a little more
_LOCK_TIMEOUT = 60.0
_LOCK_POLL = 0.2
_REPLAY_TIMEOUT = 30.0
# Any number will do as long as all versions agree on it: "pgscatte" in ASCII.
_LOCK = 0x7067736361747465
_TABLE_LOCK_MS = 30_000


class ShardResult(msgspec.Struct):
    """What became of one shard; `errors` empty means that it is now, or was, as the map says."""

    shard: str
    done: list[str] = []
    notes: list[str] = []
    errors: list[str] = []


async def apply(
    shard_map: ShardMap,
    collections: Sequence[Collection],
    display: Display,
    *,
    with_index: bool = True,
    limits: BuildLimits = BuildLimits(),  # noqa: B008 - a frozen value
    replay_timeout: float = _REPLAY_TIMEOUT,
) -> list[ShardResult]:
    """Create what `collections` lack on the shards that hold them; one result per shard."""
    run = _Run(shard_map, collections, display, with_index, limits, replay_timeout)
    try:
        await run.connect()
        await run.lock()
        await run.check()
        await run.change()
        await run.record()
        await run.replay()
    finally:
        run.close()
    return list(run.results.values())


class _Run:
    """One run; a shard that fails leaves `_primaries` and has its errors in `results`."""

    def __init__(
        self,
        shard_map: ShardMap,
        collections: Sequence[Collection],
        display: Display,
        with_index: bool,
        limits: BuildLimits,
        replay_timeout: float,
    ) -> None:
        self._map = shard_map
        self._of: dict[str, list[Collection]] = {}
        self._collections = list(collections)
        whole = len(self._collections) == len(shard_map.collections)
        for name in shard_map.shards:
            held = [c for c in collections if name in shard_map.shards_of(c)]
            # With the whole map, also a shard that holds nothing is told which it is.
            if held or whole:
                self._of[name] = held
        self.results = {shard: ShardResult(shard) for shard in self._of}
        self._display = display
        self._with_index = with_index
        self._limits = limits
        self._replay_timeout = replay_timeout
        self._primaries: dict[str, Primary] = {}
        self._rows: dict[tuple[str, str], int] = {}
        self._expected = identities(shard_map)
        self._said: dict[str, Identity | None] = {}  # by each shard of itself

    async def connect(self) -> None:
        async def one(shard: str) -> None:
            primary = await primary_of(self._map.shards[shard], _NAME, lock_timeout=str(_TABLE_LOCK_MS))
            self._primaries[shard] = primary

        _, failed = await on_each(self._of, one, _LOCK_TIMEOUT)
        self._fail(failed)

    async def lock(self) -> None:
        """Keep other runs out, shard by shard in one order, so that no two wait for each other.

        By polling: a session that waits for a lock holds a snapshot, for which a concurrent index build of
        the lock's holder would wait in turn.
        """
        for shard in sorted(self._primaries):
            try:
                await self._lock_one(self._primaries[shard])
            except NodeError as exc:
                self._fail({shard: exc})

    async def _lock_one(self, primary: Primary) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _LOCK_TIMEOUT
        with node_errors():
            async with asyncio.timeout_at(deadline):
                while not await primary.connection.fetchval("SELECT pg_try_advisory_lock($1)", _LOCK):
                    if loop.time() + _LOCK_POLL > deadline:
                        message = f"another run has been at work for {_LOCK_TIMEOUT:g} s; try again later"
                        raise NodeError(ErrorKind.TRANSIENT, message)
                    await asyncio.sleep(_LOCK_POLL)

    async def check(self) -> None:
        """Look at everything before anything is changed."""
        _, failed = await on_each(list(self._primaries), self._check_one, _CHECK_TIMEOUT)
        self._fail(failed)
        # A shard that could not even be looked at says nothing about shapes; the others go on.
        if any(self.results[shard].errors for shard in self._primaries):
            for shard in self._primaries:
                if not self.results[shard].errors:
                    self.results[shard].notes.append("not changed, because of the other shards")
            self.close()

    async def _check_one(self, shard: str) -> None:
        connection = self._primaries[shard].connection
        result = self.results[shard]
        said = self._said[shard] = await read_identity(connection)
        result.errors += await identity.refusals(
            self._map, self._collections, self._primaries[shard], self._expected[shard], said
        )
        replicated = len(self._map.shards[shard].nodes) > 1
        for collection in self._of[shard]:
            found = await inspect(connection, collection)
            problems = mismatches(collection, found, replicated=replicated)
            result.errors += [f"{collection.name}: {problem}" for problem in problems]
            if problems or found.kind is None or found.empty:
                continue
            wrong = await misplaced(connection, collection, shard)
            self._rows[shard, collection.name] = wrong.rows
            if wrong.count:
                result.errors.append(f"{collection.name}: {_misplaced(collection, wrong)}")

    async def change(self) -> None:
        meter = self._display.meter("schema", len(self._primaries), "shards")

        async def one(shard: str) -> None:
            for collection in self._of[shard]:
                await self._change(shard, collection)
            await self._change_load_tables(shard)
            if self.results[shard].done:
                await self._primaries[shard].confirm()
            meter.add(1)

        _, failed = await on_each(list(self._primaries), one, _CHANGE_TIMEOUT)
        meter.end()
        self._fail(failed)

    async def _change(self, shard: str, collection: Collection) -> None:
        primary, result = self._primaries[shard], self.results[shard]
        found = await inspect(primary.connection, collection)
        missing = changes(collection, found, vector_index=self._with_index)
        indexes = any(change.kind == "index" for change in missing)
        if found.oid is None or not indexes:
            return await self._make(primary, collection, missing)
        lock = load_lock(found.oid)
        if not await primary.connection.fetchval("SELECT pg_try_advisory_lock($1)", lock):
            left = [change.lacking for change in missing if change.kind in ("index", "statistics")]
            result.notes.append(
                f"{collection.name}: left to the load that is at work on {collection.table}, which builds it"
                f" when the rows are in: {', '.join(left)}; run this again if the load has `--no-index`"
            )
            missing = [change for change in missing if change.kind not in ("index", "statistics")]
            return await self._make(primary, collection, missing)
        try:
            # A load may have begun and ended since.
            found = await inspect(primary.connection, collection)
            missing = changes(collection, found, vector_index=self._with_index)
            await self._make(primary, collection, missing)
        finally:
            if not primary.connection.is_closed():
                await primary.connection.execute("SELECT pg_advisory_unlock($1)", lock)

    async def _make(self, primary: Primary, collection: Collection, missing: Sequence[Change]) -> None:
        result = self.results[primary.shard]
        at_once = [change for change in missing if not change.index]
        if at_once:
            async with primary.connection.transaction():
                for change in at_once:
                    for statement in change.statements:
                        await primary.connection.execute(statement)
                    # It may have created the extension, whose types the next one names.
                    await set_search_path(primary.connection)
        result.done += [change.what for change in at_once]
        for change in missing:
            if change.index:
                await self._build(primary, collection, change)
        after = await inspect(primary.connection, collection)
        result.notes += notes(collection, after)

    async def _change_load_tables(self, shard: str) -> None:
        try:
            if await create_load_tables(self._primaries[shard].connection):
                self.results[shard].done.append("created the tables of `load` in schema pgscatter")
        except NodeError as exc:
            if exc.kind is not ErrorKind.DENIED:
                raise
            # Whoever only serves does without them.
            self.results[shard].notes.append(str(exc))

    async def _build(self, primary: Primary, collection: Collection, change: Change) -> None:
        rows = self._rows.get((primary.shard, collection.name), 0)
        meter = self._display.meter(f"{primary.shard} {collection.name} index", rows, "rows")
        result = self.results[primary.shard]
        memory = graph_bytes(collection, rows) if change.hnsw else sort_bytes(rows)
        if change.words:
            memory = words_bytes(rows)
        for statement in change.statements:
            note = await build_index(
                primary.node, primary.connection, statement, rows, memory, self._limits, meter.reach
            )
            result.notes += [note] if note else []
        meter.end()
        result.done.append(change.what)

    async def record(self) -> None:
        """Let every shard that is as the map says say so itself."""

        async def one(shard: str) -> None:
            primary, result = self._primaries[shard], self.results[shard]
            try:
                done = await identity.record(
                    self._collections, primary, self._expected[shard], self._said[shard]
                )
            except asyncpg.InsufficientPrivilegeError as exc:
                result.notes.append(
                    f"which shard this is could not be recorded ({exc.args[0]}), so that routers cannot see"
                    " that a map is wrong: let a role run this once that may create the schema pgscatter"
                )
                return
            if done is not None:
                await primary.confirm()
                result.done.append(done)

        _, failed = await on_each(list(self._primaries), one, _LOCK_TIMEOUT)
        self._fail(failed)

    async def replay(self) -> None:
        """Replicas are asked for the table as soon as the router is; they should know of it."""

        async def one(shard: str) -> list[Lag]:
            return await wait_replayed(self._map.shards[shard], self._primaries[shard], self._replay_timeout)

        changed = [shard for shard in self._primaries if self.results[shard].done]
        lags, failed = await on_each(changed, one, self._replay_timeout + _LOCK_TIMEOUT)
        for shard, late in lags.items():
            self.results[shard].notes += [f"not yet on every replica: {lag.reason}" for lag in late]
        self._fail(failed)

    def _fail(self, failed: dict[str, NodeError]) -> None:
        for shard, error in failed.items():
            self.results[shard].errors.append(str(error))
            primary = self._primaries.pop(shard, None)
            if primary is not None:
                primary.close()

    def close(self) -> None:
        """Ending the sessions lets go of their locks."""
        for primary in self._primaries.values():
            primary.close()
        self._primaries.clear()


def _misplaced(collection: Collection, wrong: Misplaced) -> str:
    rows = f"{wrong.count:,} of {wrong.rows:,} rows of {collection.table}"
    example = f"{collection.id.column} {str(wrong.example)!r}"
    return f"{rows} belong to another shard by this map, for example {example}; move them, or change the map"
