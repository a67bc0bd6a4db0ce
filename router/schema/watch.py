"""Every shard's tables compared with the map while the router runs, in the background.

Invariant: no search waits for a check, and none is kept from a shard by one: what is found is told, so that
readiness and alerts do not stay green while searches fail. A shard on which a statement fails for a reason
that lasts is looked at within a second, and one on which something is wrong every few, until it is mended.
Each worker looks for itself, and where one finds a change, the others look as well.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial

import msgspec

from router.freshness.worker_counters import WorkerCounters
from router.nodes.node import Node
from router.policy.selection import Health
from router.postgres.connection import POSTGRES_ERRORS, ErrorKind, NodeError, node_error
from router.query.errors import OverloadedError
from router.schema.alike import Traits, shard_differences, traits_of
from router.schema.check import collections_by_shard, read_facts
from router.schema.findings import Finding, NodeFacts, Severity, Versions, shard_findings, version_findings
from router.schema.session import connect
from router.settings import Settings
from shard_config.model import Collection, ShardMap

__all__ = ["SchemaState", "SchemaWatch"]

_logger = logging.getLogger(__name__)

# Shards at once: a check takes some milliseconds of this process, which searches would wait for.
_AT_ONCE = 4
# Of one node, all its collections.
_NODE_SECONDS = 5.0
# A locked table keeps one of the node's connections for so long.
_LOCK_MS = 200
# Of a router that starts: it says whether it is ready for searches a little later, and still does.
_FIRST_SECONDS = 3.0
# Between two checks of a shard on which something is wrong, and at least between any two.
_SOON, _LEAST = 2.0, 1.0
# Until a change that another worker has found is heard of.
_LISTEN = 1.0
# Seconds more for each shard on which something is wrong: a map whose tables are missing everywhere costs a
# hundredth of a processor, and not all of it.
_SOON_EACH, _LEAST_EACH = 0.2, 0.05
# Of the least time, while looks that failing statements ask for find nothing new: up to 16 s.
_DOUBLINGS = 4
_JITTER = 0.1
_LISTED = 10


class SchemaState(msgspec.Struct, frozen=True):
    """What was found last.

    Attributes:
        unsearchable: by collection, and then by shard, why every search of it there fails.
    """

    findings: tuple[Finding, ...] = ()
    unsearchable: Mapping[str, Mapping[str, str]] = {}

    @property
    def wrong(self) -> bool:
        """Whether searches or writes fail, or are wrong."""
        return any(finding.severity is Severity.ERROR for finding in self.findings)


class SchemaWatch:
    """What is known of each shard; changed only by the shard's own task."""

    def __init__(
        self,
        nodes: Iterable[Node],
        shard_map: ShardMap,
        settings: Settings,
        counters: WorkerCounters,
        *,
        ask: Callable[[Node, list[Collection]], Awaitable[NodeFacts]] | None = None,
        rng: Callable[[float, float], float] = random.uniform,
    ) -> None:
        """`ask` takes the place of the servers, where they are simulated."""
        self._ask = ask or _ask
        self._counters = counters
        self._interval = settings.schema_check_interval
        self._rng = rng
        self._collections = collections_by_shard(shard_map, list(shard_map.collections.values()))
        self._nodes: dict[str, list[Node]] = {}
        for node in nodes:
            if node.shard in self._collections:
                self._nodes.setdefault(node.shard, []).append(node)
        self._found: dict[str, list[Finding]] = {}
        self._versions: dict[tuple[str, str], Versions] = {}
        self._traits: dict[str, Traits] = {}
        self._differences: list[Finding] | None = []  # None: to be found anew, which is dear with many shards
        self._state: SchemaState | None = SchemaState()  # None: to be made anew
        self._wanting: set[str] = set()  # shards on which something is wrong, or that could not be looked at
        self._unasked: dict[str, str] = {}  # by node, why it could not be asked, as it was said last
        self._woken = {shard: asyncio.Event() for shard in self._nodes}
        self._places = asyncio.Semaphore(_AT_ONCE)
        self._tasks: list[asyncio.Task[None]] = []

    def __repr__(self) -> str:
        return f"<SchemaWatch of {len(self._nodes)} shards, {len(self._wanting)} to be looked at again soon>"

    @property
    def state(self) -> SchemaState:
        """The same object until something has changed."""
        if self._state is None:
            told = [finding for shard in self._nodes for finding in self._found.get(shard, [])]
            if self._differences is None:
                self._differences = shard_differences(self._traits)
            self._state = SchemaState(
                (*told, *self._differences, *version_findings(self._versions)),
                _unsearchable(self._found.values()),
            )
        return self._state

    async def start(self) -> None:
        """Look from now on; returns when all shards have been looked at once, or after a few seconds."""
        if self._interval <= 0 or self._tasks:
            return
        looked = [asyncio.Event() for _ in self._nodes]
        self._tasks = [
            asyncio.create_task(self._run(shard, first), name=f"check the schema of {shard}")
            for shard, first in zip(self._nodes, looked, strict=True)
        ]
        if self._counters.shared:
            self._tasks.append(asyncio.create_task(self._listen(), name="hear of changed schemas"))
        with suppress(TimeoutError):
            async with asyncio.timeout(_FIRST_SECONDS):
                await asyncio.gather(*(first.wait() for first in looked))

    def suspect(self, shard: str) -> None:
        """A statement has failed there for a reason that lasts: look soon."""
        if (woken := self._woken.get(shard)) is not None:
            woken.set()

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []

    async def _run(self, shard: str, first: asyncio.Event) -> None:
        woken = self._woken[shard]
        # Spread, so that shards are not all looked at in the same moment ever after.
        usual = self._rng(0.0, self._interval)
        in_vain = 0
        while True:
            suspected, before = woken.is_set(), self._found.get(shard)
            woken.clear()
            async with self._places:
                await self._look(shard)
            first.set()
            # What fails for good may be the request itself: not each of its kind is worth a look.
            in_vain = in_vain + 1 if suspected and self._found.get(shard) == before else 0
            least = _LEAST * 2 ** min(in_vain, _DOUBLINGS) + _LEAST_EACH * len(self._wanting)
            soon = _SOON + _SOON_EACH * len(self._wanting)
            pause = min(soon, self._interval) if shard in self._wanting else usual
            usual = self._interval * self._rng(1 - _JITTER, 1 + _JITTER)
            await asyncio.sleep(min(least, pause))
            with suppress(TimeoutError):
                async with asyncio.timeout(pause - least):
                    await woken.wait()

    async def _listen(self) -> None:
        """Look where another worker has found a change: the search that failed may have been that one's."""
        noted, heard = 0, dict.fromkeys(self._nodes, 0)
        while True:
            if (latest := self._counters.schemas_noted()) != noted:
                noted = latest
                for shard, before in heard.items():
                    heard[shard] = self._counters.schemas_noted(shard)
                    if heard[shard] != before:
                        self.suspect(shard)
            await asyncio.sleep(_LISTEN)

    async def _look(self, shard: str) -> None:
        facts: list[NodeFacts] = []
        for node in self._nodes[shard]:
            if node.state.health is not Health.UP or node.state.deposed:
                continue
            try:
                async with asyncio.timeout(_NODE_SECONDS):
                    facts.append(await self._ask(node, self._collections[shard]))
            except (NodeError, OverloadedError, *POSTGRES_ERRORS) as exc:
                self._not_asked(node.config.name, _reason(exc))
            except Exception:
                # The task outlives a fault of ours, which must not end the checks in silence.
                _logger.exception("schema not checked", extra={"node": node.config.name})
            else:
                self._unasked.pop(node.config.name, None)
        if not facts:
            self._wanting.add(shard)
            return
        held = self._collections[shard]
        found = shard_findings(shard, held, facts, nodes=len(self._nodes[shard]))
        self._versions |= {(shard, one.node): one.versions for one in facts}
        known, traits = self._traits.get(shard), traits_of(held, facts)
        if traits != known:
            self._traits[shard], self._differences = traits, None
        self._state = None
        if found != self._found.get(shard, []) or known not in (None, traits):
            self._counters.note_schema(shard)
        self._tell(shard, _graver(self._found.get(shard, [])), _graver(found))
        self._found[shard] = found
        if any(finding.severity is Severity.ERROR for finding in found):
            self._wanting.add(shard)
        else:
            self._wanting.discard(shard)

    def _not_asked(self, node: str, reason: str) -> None:
        # Whether it is up is the prober's to say. It is tried every few seconds, and said once.
        if self._unasked.get(node) != reason:
            self._unasked[node] = reason
            _logger.info("schema not checked", extra={"node": node, "reason": reason})

    def _tell(self, shard: str, before: list[str], now: list[str]) -> None:
        if now == before:
            return
        if not now:
            _logger.info("schema as the map says", extra={"shard": shard})
            return
        listed = {"findings": now[:_LISTED], "more": max(0, len(now) - _LISTED)}
        _logger.warning("schema not as the map says", extra={"shard": shard, **listed})


async def _ask(node: Node, collections: list[Collection]) -> NodeFacts:
    """Over a connection that is there for searches; where none can be, as without the extension, its own."""
    name = node.config.name
    try:
        return await node.reads.run(partial(read_facts, node=name, collections=collections, lock_ms=_LOCK_MS))
    except NodeError as exc:
        if exc.kind is not ErrorKind.FATAL:
            raise
    connection = await connect(node.config, "pgscatter schema check", default_transaction_read_only="on")
    try:
        return await read_facts(connection, name, collections, lock_ms=_LOCK_MS)
    finally:
        connection.terminate()


def _graver(found: list[Finding]) -> list[str]:
    """All but notes, as the log has them."""
    return [str(finding) for finding in found if finding.severity is not Severity.NOTE]


def _reason(exc: BaseException) -> str:
    if isinstance(exc, TimeoutError):
        return "timed out"
    return str(exc if isinstance(exc, NodeError | OverloadedError) else node_error(exc))


def _unsearchable(found: Iterable[list[Finding]]) -> dict[str, dict[str, str]]:
    """A finding of some nodes alone leaves the others to be searched."""
    told: dict[str, dict[str, str]] = {}
    for findings in found:
        for finding in findings:
            if finding.collection is not None and not finding.searchable and not finding.nodes:
                told.setdefault(finding.collection, {}).setdefault(finding.shard, finding.message)
    return told
