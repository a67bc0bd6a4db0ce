"""What the HTTP edge asks of the router behind it, and nothing more.

The edge reads one backend per request and uses it to the end, so that a reload in between cannot mix
two shard maps in one answer.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol, TypeAlias

from router.documents.types import CountAnswer, DeleteOutcome, Document, ReadAnswer, UpsertOutcome
from router.models.embedding import Embedded
from router.models.status import ServiceStatus
from router.nodes.status import NodeStatus
from router.policy.batches import AdmittedBatch
from router.query.filter import Filter
from router.query.types import Consistency, Found, SearchQuery, VectorFormat
from router.recall.sampling import RecallSeen
from router.schema.watch import SchemaState
from router.stages.answer_memory import BatchRoom
from shard_config.identity import Disagreement
from shard_config.model import Collection, ShardMap

__all__ = ["Backend", "Embed", "Embedded", "NodeStatus", "ServiceStatus"]

# Turns a search's text into a vector by the collection's embedder, until a deadline; raises InvalidError,
# about `text`, if it has none.
Embed: TypeAlias = Callable[[Collection, str, float], Awaitable[Embedded]]


class Backend(Protocol):
    """One snapshot of the router. Deadlines are absolute, of the running loop's clock."""

    @property
    def shard_map(self) -> ShardMap: ...

    async def search(self, query: SearchQuery, deadline: float) -> Found: ...

    async def upsert(
        self, collection: Collection, documents: Sequence[Document], deadline: float
    ) -> UpsertOutcome: ...

    async def read(
        self,
        collection: Collection,
        id: object,
        include: frozenset[str],
        deadline: float,
        vector_format: VectorFormat = "float",
    ) -> ReadAnswer | None: ...

    async def vectors(
        self, collection: Collection, ids: Sequence[object], consistency: Consistency, deadline: float
    ) -> Mapping[object, bytes | None]:
        """The stored vectors of those documents that exist, as little-endian float32; None for NULL."""
        ...

    async def delete(
        self, collection: Collection, ids: Sequence[object], deadline: float
    ) -> DeleteOutcome: ...

    async def delete_matching(
        self, collection: Collection, filter: Filter, deadline: float
    ) -> DeleteOutcome: ...

    async def count(self, collection: Collection, filter: Filter | None, deadline: float) -> CountAnswer: ...

    def admit(self, sample: Sequence[SearchQuery], searches: int, available: float) -> AdmittedBatch:
        """Take on a batch of so many searches, of which `sample` are some; it may take `available` seconds.

        Raises:
            OverloadedError: it would take longer.
        """
        ...

    def batch_room(self) -> BatchRoom:
        """For one batch: what its answers may take together."""
        ...

    def nodes(self) -> list[NodeStatus]:
        """Every node of the map, in the map's order."""
        ...

    def services(self) -> list[ServiceStatus]:
        """Every service for texts of the map."""
        ...

    def disagreements(self) -> list[tuple[str, Disagreement]]:
        """In what the map and its shards differ, by what they say of themselves; with the shards' names."""
        ...

    def unidentified(self) -> list[str]:
        """The shards that have a node up and do not say who they are."""
        ...

    def ready(self) -> tuple[bool, dict[str, bool]]:
        """Whether a search can be answered at all, and which shards can be searched for all they hold."""
        ...

    def schema(self) -> SchemaState:
        """What was found last of the shards' tables."""
        ...

    def recall(self, collection: str) -> RecallSeen | None:
        """Recall as measured lately on real searches, None where nothing has been."""
        ...

    def cache_stats(self) -> Mapping[str, int | float | str | bool]:
        """Figures of the caches; `l1_bytes` and `l1_entries` become metrics."""
        ...
