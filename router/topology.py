"""Everything that serves one shard map, put together in one place and one order.

`Topology` owns what has a lifetime: nodes, the prober, the cache's entries, the line to Redis, the
measurement of recall.
`Snapshot` is what a request uses from its beginning to its end; nothing else constructs a stage.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path

import msgspec

from router.documents.primary import Primaries
from router.documents.reader import Reader
from router.documents.types import CountAnswer, DeleteOutcome, Document, ReadAnswer, UpsertOutcome
from router.documents.writer import Writer
from router.freshness.redis_link import RedisLink
from router.freshness.worker_counters import Shared
from router.nodes.node import Node
from router.nodes.prober import Prober
from router.nodes.status import NodeStatus
from router.policy.budget import Budget
from router.policy.limit import Limit
from router.policy.selection import Health, Reads, Role
from router.query.filter import Filter
from router.query.types import Found, SearchQuery, VectorFormat
from router.recall.live import LiveRecall, RecallListener, Sampled
from router.recall.sampling import RecallSampler, RecallSeen
from router.settings import Settings
from router.stages.answer_memory import AnswerMemory, BatchRoom
from router.stages.coalesce import Coalesced
from router.stages.columns import ColumnReader
from router.stages.encode import Encoded
from router.stages.fanout import Fanout
from router.stages.local_cache import LocalCache, Store
from router.stages.replicas import ReplicaSet
from router.stages.scatter import Scatter
from router.stages.shared_cache import Invalidations, SharedCache
from router.stages.stage import Stage
from shard_config.dsn import server
from shard_config.model import Collection, ShardMap

__all__ = ["Snapshot", "Topology"]


# All that is under way on a node when it dies is tried elsewhere.
_RETRIES_AT_ONCE = 1000.0


class Topology:
    """Opens and closes what a router runs on; `snapshot` is valid in between."""

    def __init__(
        self,
        shard_map: ShardMap,
        settings: Settings,
        *,
        redis_url: str | None = None,
        shared_path: Path | None = None,
        recall_listener: RecallListener | None = None,
    ) -> None:
        self.settings = settings
        limits = _limits(shard_map, settings)
        self.nodes = [
            Node(node, shard.name, settings, limits[node.name])
            for shard in shard_map.shards.values()
            for node in shard.nodes
        ]
        self.shared = Shared(shard_map, shared_path)
        self.hedges = Budget(settings.hedge_budget) if settings.hedge_quantile else None
        self.retries = Budget(settings.retry_budget, _RETRIES_AT_ONCE)
        self.store = Store(settings.l1_bytes)
        self.memory = AnswerMemory(settings.max_answer_bytes, settings.answer_memory_bytes)
        self.prober = Prober(self.nodes, settings)
        self.recall = LiveRecall(
            RecallSampler(settings.recall_sample_rate, settings.recall_budget),
            self.shared.version,
            recall_listener,
        )
        self.link = (
            None
            if redis_url is None
            else RedisLink(redis_url, budget=settings.l2_timeout, pause=settings.l2_pause)
        )
        self.snapshot = Snapshot(shard_map, self)

    def __repr__(self) -> str:
        return f"<Topology {self.snapshot!r}, {len(self.nodes)} nodes>"

    async def open(self) -> None:
        """Probe every node once and connect to those that are up."""
        await self.snapshot.prepare()
        await self.prober.start()
        up = [node for node in self.nodes if node.state.health is Health.UP]
        # One that fails here is no worse than one that fails later: its searches will say so.
        await asyncio.gather(*(node.reads.warm() for node in up), return_exceptions=True)
        self.recall.start()

    async def close(self) -> None:
        """Let go of everything, within the bounds of each part."""
        await self.recall.close()
        await self.prober.close()
        await self.snapshot.close()
        await asyncio.gather(*(node.close() for node in self.nodes))
        if self.link is not None:
            await self.link.close()
        self.shared.close()


class Snapshot:
    """The router for one shard map; satisfies `router.http.backend.Backend`.

    The order of stages: L1 is outermost, because a hit there must cost neither a task nor a wait.
    Coalescing comes before L2, so that equal misses cost one GET. Encoding stands below the caches, which
    keep bytes; all below it speak of ranked rows. Recall is measured of what was searched, not of what a
    cache repeats. Scatter is last: it alone speaks of shards.
    """

    def __init__(self, shard_map: ShardMap, topology: Topology) -> None:
        self.shard_map = shard_map
        self._topology = topology
        shared = topology.shared
        namespace = _namespace(shard_map)
        sets = {
            name: ReplicaSet(
                name,
                [node for node in topology.nodes if node.shard == name],
                reads=_reads(topology.settings),
                hedges=topology.hedges,
                retries=topology.retries,
            )
            for name in shard_map.shards
        }
        self.fanout = fanout = Fanout(sets)
        self.scatter = Scatter(shard_map, fanout, shared)
        self._recall = topology.recall
        ranked = Sampled(self.scatter, topology.recall)
        search: Stage[SearchQuery, Found] = Encoded(ranked, ColumnReader(fanout, shared), topology.memory)
        invalidations = None
        self._shared_cache = None
        if topology.link is not None:
            invalidations = Invalidations(topology.link, shared, shard_map.collections.values())
            search = self._shared_cache = SharedCache(
                search,
                topology.link,
                invalidations,
                shard_map,
                namespace,
                sets,
                topology.prober.look,
                topology.settings.l2_max_entry_bytes,
            )
        search = self._coalesced = Coalesced(search, shared.version)
        self._search = LocalCache(search, topology.store, namespace, shared.version)
        self._primaries = Primaries(
            sets,
            shared,
            topology.prober,
            invalidations,
            wait=topology.settings.failover_wait,
            statement_timeout=topology.settings.write_timeout,
        )
        self._writer = Writer(shard_map, self._primaries)
        self._reader = Reader(shard_map, fanout, shared, topology.memory)
        self._sets = sets

    def __repr__(self) -> str:
        return f"<Snapshot map {self.shard_map.version}: {self._search!r}>"

    async def prepare(self) -> None:
        """What has to be done before the nodes are probed for the first time."""
        if self._shared_cache is not None:
            await self._shared_cache.meet_tokens()

    async def search(self, query: SearchQuery, deadline: float) -> Found:
        return await self._search.search(query, deadline)

    async def upsert(
        self, collection: Collection, documents: Sequence[Document], deadline: float
    ) -> UpsertOutcome:
        return await self._writer.upsert(collection, documents, deadline)

    async def read(
        self,
        collection: Collection,
        id: object,
        include: frozenset[str],
        deadline: float,
        vector_format: VectorFormat = "float",
    ) -> ReadAnswer | None:
        return await self._reader.read(collection, id, include, deadline, vector_format)

    async def delete(self, collection: Collection, ids: Sequence[object], deadline: float) -> DeleteOutcome:
        return await self._writer.delete(collection, ids, deadline)

    async def delete_matching(self, collection: Collection, filter: Filter, deadline: float) -> DeleteOutcome:
        return await self._writer.delete_matching(collection, filter, deadline)

    async def count(self, collection: Collection, filter: Filter | None, deadline: float) -> CountAnswer:
        return await self._reader.count(collection, filter, deadline)

    def batch_room(self) -> BatchRoom:
        return BatchRoom(self._topology.memory)

    def nodes(self) -> list[NodeStatus]:
        heads = {name: _head(replicas) for name, replicas in self._sets.items()}
        return [_status(node, heads[node.shard]) for node in self._topology.nodes]

    def ready(self) -> tuple[bool, dict[str, bool]]:
        """Whether a search has a chance, and which shards can be read."""
        readable = {name: replicas.readable for name, replicas in self._sets.items()}
        return any(readable.values()), readable

    def cache_stats(self) -> dict[str, int | float | bool]:
        store, shared = self._topology.store, self._shared_cache
        stats: dict[str, int | float | bool] = {
            "l1_entries": len(store),
            "l1_bytes": store.size_bytes,
            "l1_hits": store.hits,
            "l1_misses": store.misses,
            "coalesced": self._coalesced.joined,
            "l2_enabled": shared is not None,
        }
        if shared is not None and self._topology.link is not None:
            link = self._topology.link
            stats |= {
                "l2_hits": shared.hits,
                "l2_misses": shared.misses,
                "l2_failures": link.failures,
                "l2_on": link.on,
            }
        return stats

    def recall(self, collection: str) -> RecallSeen | None:
        """What repeating real searches exactly has shown lately, if anything."""
        return self._recall.seen(collection)

    async def close(self) -> None:
        await self._primaries.close()
        for replicas in self._sets.values():
            replicas.close()
        if self._shared_cache is not None:
            await self._shared_cache.close()


def _limits(shard_map: ShardMap, settings: Settings) -> dict[str, Limit]:
    """Each node's limit by its name: one for all that share a host, since they share its cores.

    A node that measured for itself would find that one statement more wins it time, at the others' cost,
    and so would they.
    """
    least, most = min(settings.node_statements, settings.node_connections), settings.node_connections
    hosts = {node.name: server(node.dsn).host for shard in shard_map.shards.values() for node in shard.nodes}
    limits = {host: Limit(least, most, nodes) for host, nodes in Counter(hosts.values()).items()}
    return {name: limits[host] for name, host in hosts.items()}


def _reads(settings: Settings) -> Reads:
    return Reads(
        settings.primary_reads,
        settings.max_lag,
        settings.lag_policy,
        settings.zone,
        settings.max_ejected,
    )


def _namespace(shard_map: ShardMap) -> str:
    """A short name for all that an answer depends on: two maps that differ share no cache entries."""
    return blake2b(msgspec.msgpack.encode(shard_map), digest_size=8).hexdigest()


def _head(replicas: ReplicaSet) -> int | None:
    """The position that the shard's primary had written when it was last probed."""
    primary = replicas.primary()
    return None if primary is None else primary.state.lsn


def _status(node: Node, head: int | None) -> NodeStatus:
    state = node.state
    ejected = node.ejected
    replica = state.role is Role.REPLICA and state.health is Health.UP
    behind = max(0, head - state.lsn) if replica and head is not None else None
    return NodeStatus(
        name=node.config.name,
        shard=node.shard,
        zone=node.config.zone,
        role=state.role,
        state="deposed" if state.deposed else "ejected" if ejected else state.health.value,
        reason=state.reason or (f"{node.ejected_for}; it is tried again soon" if ejected else None),
        since=node.ejected_since if ejected else state.since,
        ejections=node.ejection.count,
        role_changes=node.role_changes,
        in_flight=node.reads.in_flight + node.writes.in_flight,
        waiting=node.dispatcher.waiting + node.writes.waiting,
        connections=node.reads.connections + node.writes.connections,
        replay_lag_bytes=behind,
        replay_lag_s=state.lag if replica else None,
        timeline=state.timeline or None,
    )
