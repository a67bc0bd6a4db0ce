"""Vectors for rows that came as text: several batches at once, and again while the model's service fails.

Invariant: rows leave with a vector each, or refused, by the checks or by the model. While the service fails
none leave; when it has made no vector for `patience` seconds the load ends and says at which row.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence

from router.bulk.batch import Batch, Refused, Source, Unembedded
from router.bulk.errors import EmbeddingError
from router.bulk.rows import batch_of
from router.decode.embedded import with_vector
from router.documents.types import Document, TextDocument
from router.models.repeated import EmbedTexts, embed_repeatedly
from router.query.errors import InvalidError, MisconfiguredError, RequestError, RouterError
from shard_config.model import Collection, EmbeddingService

__all__ = ["Embedding", "rows_together"]

# The service's batches in one call, and calls at once: while the last batch of one call is awaited, the next
# call has its own under way.
_BATCHES = 4
_CALLS = 2
# Batches in a chunk: few enough for a slow model to commit every few seconds.
_CHUNK_BATCHES = 32
# Seconds for a call, of which each request has the map's `timeout`; beyond any that makes progress.
_LONGEST = 86_400.0


def rows_together(service: EmbeddingService) -> int:
    """How many rows to embed and commit together, where nobody says."""
    return _CHUNK_BATCHES * service.batch


class Embedding:
    """Completes the chunks of one load."""

    def __init__(
        self,
        collection: Collection,
        source: Source,
        embed: EmbedTexts,
        patience: float,
        say: Callable[[str], None],
    ) -> None:
        """`patience` in seconds; `say` tells the user that the service fails."""
        assert collection.embedder is not None
        self._collection = collection
        self._service = collection.embedder
        self._source = source
        self._embed = embed
        self._patience = patience
        self._say = say
        self._failing = False

    def __repr__(self) -> str:
        return f"<Embedding by {self._service.name}{', which fails' if self._failing else ''}>"

    async def batch(self, rows: Unembedded) -> Batch:
        """The rows with their vectors.

        Raises:
            EmbeddingError
        """
        outcomes = await self.outcomes(rows)
        return await asyncio.to_thread(self.completed, rows, outcomes)

    async def outcomes(self, rows: Unembedded) -> dict[int, bytes | RequestError]:
        """Of each text, by its place in the file: the vector, or why the model refuses it.

        Raises:
            EmbeddingError: the service fails for too long.
        """
        texts = [document for document in rows.documents if isinstance(document, TextDocument)]
        outcomes: dict[int, bytes | RequestError] = {}
        size = _BATCHES * self._service.batch
        parts = iter([texts[first : first + size] for first in range(0, len(texts), size)])

        async def work(parts: Iterator[Sequence[TextDocument]]) -> None:
            for part in parts:
                outcomes.update(await self._part(part))

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(_CALLS):
                    group.create_task(work(parts))
        except* EmbeddingError as failed:
            raise failed.exceptions[0] from None
        return outcomes

    async def _part(self, part: Sequence[TextDocument]) -> dict[int, bytes | RequestError]:
        loop = asyncio.get_running_loop()
        began = loop.time()
        texts = [document.text for document in part]
        answers = await embed_repeatedly(
            self._embed, self._service, texts, began + _LONGEST, self._patience, self._tell
        )
        found: dict[int, bytes | RequestError] = {}
        left: list[tuple[TextDocument, RouterError]] = []
        for document, answer in zip(part, answers, strict=True):
            if isinstance(answer, bytes | RequestError):
                found[document.index] = answer
            else:
                left.append((document, answer))
        if left:
            raise self._given_up(left, loop.time() - began)
        self._failing = False
        return found

    def completed(self, rows: Unembedded, outcomes: Mapping[int, bytes | RequestError]) -> Batch:
        """The rows with the vectors of `outcomes`; those that got none are refused."""
        documents: list[Document] = []
        refused = list(rows.refused)
        for document in rows.documents:
            if isinstance(document, Document):
                documents.append(document)
                continue
            outcome = outcomes[document.index]
            if isinstance(outcome, bytes):
                try:
                    documents.append(with_vector(self._collection, document, outcome))
                    continue
                except InvalidError as exc:
                    outcome = exc
            reason = outcome.problems[0].message if outcome.problems else outcome.detail
            refused.append(Refused(document.index, reason))
        refused.sort(key=lambda row: row.row)
        return batch_of(self._collection, documents, refused)

    def _tell(self, fault: RouterError) -> None:
        if not self._failing:
            self._failing = True
            self._say(f"{fault.detail}; trying again, for {self._patience:g} s at most")

    def _given_up(self, left: Sequence[tuple[TextDocument, RouterError]], tried: float) -> EmbeddingError:
        lasting = next((one for one in left if isinstance(one[1], MisconfiguredError)), None)
        document, fault = lasting or left[0]
        place = self._source.place(document.index)
        lines = [f"{self._source.path}, {place}: not embedded: {fault.detail}"]
        if len(left) > 1:
            lines.append(f"nor were {len(left) - 1} other rows, in {tried:.1f} s")
        return EmbeddingError(*lines)
