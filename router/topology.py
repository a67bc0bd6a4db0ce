"""Everything that serves one shard map, put together in one place and one order.

`Parts` are what outlives a shard map: nodes, the prober, what was written, the caches' entries, the line to
Redis, the measurement of recall. `assemble` puts the stages for one map on top of them; nothing else
constructs a stage. The `Snapshot` that it returns is what a request uses from its beginning to its end.

Invariant: parts know of no snapshot, so that several may stand on them at once. While one map replaces
another, requests end on the snapshot on which they began, and closing that one leaves the other whole.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

import msgspec

from router.documents.facets import Facets
from router.documents.listing import Listing
from router.documents.operations import DocumentOperations
from router.documents.primary import Primaries
from router.documents.reader import Reader
from router.documents.unconfirmed import UnconfirmedWrites
from router.documents.vectors import StoredVectors
from router.documents.writer import Writer
from router.freshness.freshness import Freshness
from router.models.embedding import EmbeddingListener, Embeddings
from router.models.reranking import Reranking
from router.models.status import ServiceStatus
from router.network.dial import Network
from router.network.names import Names
from router.nodes.agreement import Agreement
from router.nodes.node import Node
from router.nodes.opening import Turns
from router.nodes.prober import Prober
from router.nodes.state_log import StateLog
from router.nodes.statistics import Statistics
from router.nodes.status import NodeStatus
from router.policy.batches import AdmittedBatch, Batches
from router.policy.budget import Budget
from router.policy.limit import Limit
from router.policy.selection import Health, Reads
from router.policy.ways import Ways
from router.query.ranked import RankedAnswer
from router.query.types import Found, Probe, SearchQuery, ShardRows
from router.recall.live import LiveRecall, RecallListener, Sampled
from router.recall.sampling import RecallSampler, RecallSeen
from router.schema.watch import SchemaState, SchemaWatch
from router.settings import Settings
from router.stages.answer_memory import AnswerMemory, BatchRoom
from router.stages.coalesce import Coalesced
from router.stages.columns import ColumnReader
from router.stages.compose import Composed
from router.stages.encode import Encoded
from router.stages.fanout import Fanout
from router.stages.fulltext import FulltextScatter
from router.stages.legs import searches_of
from router.stages.local_cache import LocalCache, Store
from router.stages.paged import Paged
from router.stages.rankings import Rankings, RankingStore
from router.stages.replicas import ReplicaSet
from router.stages.scatter import Scatter
from router.stages.stage import Figures, Stage
from shard_config import model
from shard_config.dsn import server
from shard_config.identity import Disagreement
from shard_config.model import ShardMap

# Where nothing needs it, a router does without the client of Redis, a fifth of its start.
if TYPE_CHECKING:
    from router.freshness.redis_link import RedisLink
    from router.stages.shared_cache import SharedCache

__all__ = ["Parts", "Snapshot", "Topology", "assemble"]


# All that is under way on a node when it dies is tried elsewhere.
_RETRIES_AT_ONCE = 1000.0
# A connection is opened in ten milliseconds, but hundreds of nodes have one each.
_WARMING_SECONDS = 2.0


class Topology:
    """The parts of a router, and the snapshot that requests take now; valid between `open` and `close`."""

    def __init__(self, shard_map: ShardMap, parts: Parts) -> None:
        """
        Raises:
            KeyError: the parts were not made for one of the map's nodes or collections.
        """
        self.parts = parts
        self.snapshot = assemble(shard_map, parts)

    def __repr__(self) -> str:
        return f"<Topology {self.snapshot!r}, {self.parts!r}>"

    async def open(self) -> None:
        """Probe every node once, connect to those that are up, and read their statistics."""
        if self.parts.link is not None:
            await self.parts.link.check()
        await self.snapshot.read_tokens()
        await self.parts.open()

    async def close(self) -> None:
        """Let go of everything, within the bounds of each part."""
        await self.snapshot.close()
        await self.parts.close()


class Parts:
    """What outlives a shard map. `shard_map` says which nodes and collections there are."""

    def __init__(
        self,
        shard_map: ShardMap,
        settings: Settings,
        *,
        redis_url: str | None = None,
        shared_path: Path | None = None,
        recall_listener: RecallListener | None = None,
        redis_took: Callable[[float], None] = lambda _: None,
        service_listener: EmbeddingListener | None = None,
    ) -> None:
        """`redis_took` is told the seconds of each call of Redis, `service_listener` of texts."""
        self.settings = settings
        limits = _limits(shard_map, settings)
        self.state_log = StateLog()
        network, turns = _network(settings), Turns(settings.node_opens)
        self._nodes = {
            (shard.name, node): Node(
                node,
                shard.name,
                settings,
                limits[node.name],
                network=network,
                turns=turns,
                changed=self.state_log.node,
            )
            for shard in shard_map.shards.values()
            for node in shard.nodes
        }
        self.link: RedisLink | None = None
        if redis_url is not None:
            from router.freshness.redis_link import RedisLink

            self.link = RedisLink(
                redis_url,
                budget=settings.l2_timeout,
                pause=settings.l2_pause,
                changed=self.state_log.redis,
                took=redis_took,
                # Its own: names that are not answered for Redis must not delay those of nodes.
                network=_network(settings),
            )
        self.freshness = Freshness(shard_map, self.link, shared_path)
        # Their own names, as Redis's: services are elsewhere than the nodes.
        services = _network(settings)
        self.embeddings = Embeddings(settings, services, self.link, service_listener)
        self.reranking = Reranking(settings, services, service_listener)
        self._warming: asyncio.Task[None] | None = None
        self.hedges = Budget(settings.hedge_budget) if settings.hedge_quantile else None
        self.retries = Budget(settings.retry_budget, _RETRIES_AT_ONCE)
        self.store = Store(settings.l1_bytes)
        self.rankings = RankingStore(settings.ranking_bytes)
        self.memory = AnswerMemory(settings.max_answer_bytes, settings.answer_memory_bytes)
        self.batches = Batches(settings.node_queue)
        self.prober = Prober(self.nodes, settings, self.freshness)
        self.statistics = Statistics(self.nodes, shard_map.collections.values(), settings)
        self.schema = SchemaWatch(self.nodes, shard_map, settings, self.freshness.counters)
        self.unconfirmed = UnconfirmedWrites(self.freshness, self.prober, settings.write_timeout)
        self.recall = LiveRecall(
            RecallSampler(settings.recall_sample_rate, settings.recall_budget),
            self.freshness.version,
            recall_listener,
        )

    def __repr__(self) -> str:
        return f"<Parts {len(self._nodes)} nodes, {self.freshness!r}>"

    @property
    def nodes(self) -> list[Node]:
        """All of them, in the map's order."""
        return list(self._nodes.values())

    def nodes_of(self, shard: model.Shard) -> list[Node]:
        """The nodes of `shard`; maps that describe a node alike share it, with its connections.

        Raises:
            KeyError: the parts were not made for one of them.
        """
        return [self._nodes[shard.name, node] for node in shard.nodes]

    async def open(self) -> None:
        """Probe every node once, connect to those that are up, and read their statistics."""
        await self.prober.start()
        self.state_log.begin(self.nodes)
        self._warming = asyncio.create_task(self._warm(), name="warm connections")
        # Whatever is left then goes on beside the first searches.
        await asyncio.wait([self._warming], timeout=_WARMING_SECONDS)
        self.recall.start()
        await asyncio.gather(self.statistics.start(), self.schema.start())

    async def _warm(self) -> None:
        up = [node for node in self.nodes if node.state.health is Health.UP]
        # One that fails here is no worse than one that fails later: its searches will say so.
        await asyncio.gather(*(node.warm() for node in up), return_exceptions=True)

    async def close(self) -> None:
        """Let go of everything; snapshots are closed before."""
        self.state_log.close()
        if self._warming is not None:
            self._warming.cancel()
            await asyncio.gather(self._warming, return_exceptions=True)
        await self.recall.close()
        await self.statistics.close()
        await self.schema.close()
        await self.prober.close()
        # Before the nodes: each unconfirmed write is followed through its node's connections.
        await self.unconfirmed.close()
        await asyncio.gather(*(node.close() for node in self.nodes))
        await self.freshness.close()
        await self.embeddings.close()
        await self.reranking.close()
        if self.link is not None:
            await self.link.close()


def assemble(shard_map: ShardMap, parts: Parts) -> Snapshot:
    """The router for `shard_map`, on `parts`.

    The order of stages: L1 is outermost, because a hit there must cost neither a task nor a wait.
    Coalescing comes before L2, so that equal misses cost one GET. Encoding stands below the caches, which
    keep bytes; all below it speak of ranked rows. Pages of kept rankings are made around it, since they are
    written as any answer is, but of rows that were ranked before. Recall is measured of what was searched,
    not of what a cache repeats, and of nearest rows alone, since a search for words is exact. The scatters
    are last: they alone speak of shards.

    Raises:
        KeyError: the parts were not made for one of the map's nodes or collections.
    """
    settings, freshness = parts.settings, parts.freshness
    namespace = _namespace(shard_map)
    # What the parts were not made for is found now, and not by requests; and before the first set is made,
    # since a set is told of its nodes' news until it is closed.
    for name in shard_map.collections:
        freshness.version(name)
    nodes = {name: parts.nodes_of(shard) for name, shard in shard_map.shards.items()}
    sets = {
        name: ReplicaSet(
            name,
            members,
            reads=_reads(settings),
            hedges=parts.hedges,
            retries=parts.retries,
            suspect=parts.schema.suspect,
            behind=parts.prober.expect,
        )
        for name, members in nodes.items()
    }
    fanout = Fanout(sets)
    ways = Ways(parts.statistics.of, sharing=parts.settings.node_together > 1)
    scatter = Scatter(shard_map, fanout, freshness, ways)
    fulltext = FulltextScatter(shard_map, fanout, freshness)
    columns = ColumnReader(fanout, freshness)
    ranked = Composed(
        shard_map,
        vector=Sampled(scatter, parts.recall),
        fulltext=fulltext,
        columns=columns,
        rerank=parts.reranking,
        settings=settings,
    )
    encoded = Encoded(ranked, columns, parts.memory)
    rankings = Rankings(
        parts.rankings,
        parts.link,
        namespace,
        ttl=settings.ranking_ttl,
        max_shared_bytes=settings.l2_max_entry_bytes,
        several=freshness.counters.shared,
        patience=settings.ranking_timeout,
    )
    search: Stage[SearchQuery, Found] = Paged(encoded, ranked, columns, rankings, settings)
    shared_cache = None
    if parts.link is not None:
        from router.stages.shared_cache import SharedCache

        search = shared_cache = SharedCache(
            search,
            parts.link,
            freshness,
            shard_map,
            namespace,
            sets,
            parts.prober.probe_soon,
            settings.l2_max_entry_bytes,
        )
    search = Coalesced(search, freshness.version)
    search = LocalCache(search, parts.store, namespace, freshness.version)
    primaries = Primaries(sets, freshness, parts.prober, parts.unconfirmed, wait=settings.failover_wait)
    return Snapshot(
        shard_map,
        parts,
        sets,
        fanout,
        search=search,
        scatter=scatter,
        fulltext=fulltext,
        shared_cache=shared_cache,
        writer=Writer(shard_map, primaries),
        reader=Reader(shard_map, fanout, freshness, parts.memory),
        vectors=StoredVectors(shard_map, fanout, freshness),
        listing=Listing(shard_map, fanout, freshness, parts.memory),
        facets=Facets(shard_map, fanout, freshness, settings.max_facet_values),
        agreement=Agreement(shard_map, nodes),
    )


class Snapshot(DocumentOperations):
    """The router for one shard map, as `assemble` makes it; satisfies `router.http.backend.Backend`."""

    def __init__(
        self,
        shard_map: ShardMap,
        parts: Parts,
        sets: Mapping[str, ReplicaSet],
        fanout: Fanout,
        *,
        search: Stage[SearchQuery, Found],
        scatter: Scatter,
        fulltext: FulltextScatter,
        shared_cache: SharedCache | None,
        writer: Writer,
        reader: Reader,
        vectors: StoredVectors,
        listing: Listing,
        facets: Facets,
        agreement: Agreement,
    ) -> None:
        """
        Args:
            search: the outermost stage.
            scatter, fulltext: the innermost, for vectors and for words.
        """
        super().__init__(writer, reader, vectors, listing, facets, agreement.require)
        self.shard_map = shard_map
        self._parts = parts
        self._sets = sets
        self._fanout = fanout
        self._search = search
        self._scatter = scatter
        self._fulltext = fulltext
        self._shared_cache = shared_cache
        self._agreement = agreement

    def __repr__(self) -> str:
        return f"<Snapshot map {self.shard_map.version}: {self._search!r}>"

    async def read_tokens(self) -> None:
        """To be called before the nodes are probed for the first time: see `SharedCache.read_tokens`."""
        if self._shared_cache is not None:
            await self._shared_cache.read_tokens()

    async def search(self, query: SearchQuery, deadline: float) -> Found:
        self._agreement.require(query.collection.name)
        return await self._search.search(query, deadline)

    async def rank(self, query: SearchQuery, deadline: float) -> RankedAnswer:
        """The ranked rows, past all caches."""
        return await self._scatter.search(query, deadline)

    async def read_statistics(self) -> None:
        """Now, instead of when their turn comes."""
        await self._parts.statistics.read()

    async def fetch(self, probes: Mapping[str, Probe], deadline: float) -> dict[str, ShardRows]:
        """Rows of each probe's shard, past all stages; see `Fanout.fetch`."""
        return await self._fanout.fetch(probes, deadline)

    def discard_plans(self) -> None:
        """Close idle connections, so that the next searches are planned anew."""
        for replicas in self._sets.values():
            for node in replicas.nodes:
                node.reads.discard_idle()

    def admit(self, sample: Sequence[SearchQuery], searches: int, available: float) -> AdmittedBatch:
        expected = [self._expected(query) for query in sample]
        return self._parts.batches.admit(
            searches,
            ahead=max([ahead for ahead, _ in expected], default=0.0),
            each=fmean([each for _, each in expected]) if expected else 0.0,
            available=available,
            timeout=min([query.collection.search.timeout for query in sample], default=available),
        )

    def _expected(self, query: SearchQuery) -> tuple[float, float]:
        """Seconds that it would wait for the nodes, and that each of many like it takes."""
        lists = [query] if query.composition is None else searches_of(query, query.composition)
        expected = [(self._scatter if one.words is None else self._fulltext).expected(one) for one in lists]
        return max([ahead for ahead, _ in expected]), sum([each for _, each in expected])

    def batch_room(self) -> BatchRoom:
        return BatchRoom(self._parts.memory)

    def nodes(self) -> list[NodeStatus]:
        """What is known of each node of the map, in the map's order."""
        return [
            node.status(head)
            for replicas in self._sets.values()
            for head in [_head(replicas)]
            for node in replicas.nodes
        ]

    def services(self) -> list[ServiceStatus]:
        """Every service for texts of the map, in the map's order."""
        shard_map = self.shard_map
        return [
            *self._parts.embeddings.statuses(shard_map.models.values()),
            *self._parts.reranking.statuses(shard_map.rerankers.values()),
        ]

    def disagreements(self) -> list[tuple[str, Disagreement]]:
        """In what the map and its shards differ, by what they say of themselves; with the shards' names."""
        misplaced = [
            (
                node.shard,
                Disagreement(
                    "shard", f"has the node {node.config.name}, which says that it is the shard {says.shard}"
                ),
            )
            for replicas in self._sets.values()
            for node in replicas.nodes
            if (says := node.state.identity) is not None and says.shard != node.shard
        ]
        return [*misplaced, *self._agreement.points()]

    def unidentified(self) -> list[str]:
        """The shards that have a node up and do not say who they are."""
        return self._agreement.unknown()

    def ready(self) -> tuple[bool, dict[str, bool]]:
        """Whether a search has a chance, and which shards can be searched for all collections they hold."""
        readable = {name: replicas.readable for name, replicas in self._sets.items()}
        broken = self._parts.schema.state.unsearchable
        if not broken:
            return any(readable.values()), readable
        chance = any(
            readable[shard] and shard not in broken.get(name, ())
            for name, collection in self.shard_map.collections.items()
            for shard in self.shard_map.shards_of(collection)
        )
        whole = {
            shard: up and not any(shard in on for on in broken.values()) for shard, up in readable.items()
        }
        return chance, whole

    def schema(self) -> SchemaState:
        """What was found last of the shards' tables."""
        return self._parts.schema.state

    def cache_stats(self) -> Figures:
        return {"l2_enabled": False} | self._search.describe()

    def recall(self, collection: str) -> RecallSeen | None:
        """What repeating real searches exactly has shown lately, if anything."""
        return self._parts.recall.seen(collection)

    async def close(self) -> None:
        """To be called when no request uses it any more; the parts stay as they are."""
        self._agreement.close()
        for replicas in self._sets.values():
            replicas.close()
        if self._shared_cache is not None:
            await self._shared_cache.close()


def _network(settings: Settings) -> Network:
    return Network(Names(settings.name_interval), settings.tcp_timeout, taking=settings.tcp_timeout)


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
