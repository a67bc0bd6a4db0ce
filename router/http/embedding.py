"""Documents that came as text get their vectors, before any of them is stored.

Invariant: of documents that came in, each leaves either with a vector or as a failure that says why not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Literal

import msgspec

from router.decode.embedded import with_vector
from router.documents.types import Document, DocumentFailure, TextDocument
from router.models.repeated import EmbedTexts, embed_repeatedly
from router.query.errors import (
    InvalidError,
    MisconfiguredError,
    OverloadedError,
    RequestError,
    RouterError,
    UnavailableError,
)
from shard_config.model import Collection

__all__ = ["EmbeddedDocuments", "embed_documents"]

# Of the time for a write, what its texts may take. The rest is for storing what has a vector: a service that
# does not answer must not keep that from the shards.
_SHARE = 0.75
# A vector is checked in a few microseconds; others get a turn after this many.
_VECTORS_PER_TURN = 256


class EmbeddedDocuments(msgspec.Struct, frozen=True):
    """Documents with vectors in the order in which they came, and those that got none.

    Attributes:
        count: how many of the documents have got theirs here.
        failures: in the words that the caller may read.
        retry_after: seconds after which another attempt may help, if any may.
    """

    documents: list[Document]
    count: int = 0
    failures: tuple[DocumentFailure, ...] = ()
    retry_after: float = 0.0


async def embed_documents(
    collection: Collection,
    documents: Sequence[Document | TextDocument],
    embed: EmbedTexts,
    deadline: float,
    patience: float,
    *,
    inside: bool,
) -> EmbeddedDocuments:
    """Have a vector made for each document that has none.

    Args:
        deadline: for storing them as well.
        patience: seconds in which the service must make a vector.
        inside: the caller may see the inside of the cluster.
    """
    waiting = [document for document in documents if isinstance(document, TextDocument)]
    if not waiting:
        return EmbeddedDocuments([document for document in documents if isinstance(document, Document)])
    assert collection.embedder is not None, "the reader takes texts for an embedder only"
    now = asyncio.get_running_loop().time()
    stop = now + _SHARE * max(0.0, deadline - now)
    texts = [document.text for document in waiting]
    outcomes = await embed_repeatedly(embed, collection.embedder, texts, stop, patience)
    made: dict[int, Document] = {}
    failures: list[DocumentFailure] = []
    retry_after = 0.0
    for i, (document, outcome) in enumerate(zip(waiting, outcomes, strict=True)):
        if i % _VECTORS_PER_TURN == _VECTORS_PER_TURN - 1:
            await asyncio.sleep(0)
        completed = outcome if isinstance(outcome, RouterError) else _completed(collection, document, outcome)
        if isinstance(completed, Document):
            made[document.index] = completed
            continue
        failures.append(_failure(document, completed, inside=inside))
        if isinstance(completed, OverloadedError | UnavailableError):
            retry_after = max(retry_after, completed.retry_after)
    ready = [made.get(each.index) if isinstance(each, TextDocument) else each for each in documents]
    return EmbeddedDocuments(
        [each for each in ready if each is not None], len(made), tuple(failures), retry_after
    )


def _completed(collection: Collection, document: TextDocument, vector: bytes) -> Document | RouterError:
    try:
        return with_vector(collection, document, vector)
    except InvalidError as exc:
        return exc


def _failure(document: TextDocument, error: RouterError, *, inside: bool) -> DocumentFailure:
    detail, problems = error.told(inside=inside)
    # A service's refusal of a text says the place of a search's text, which a document does not have.
    message = problems[0].message if isinstance(error, InvalidError) and problems else detail
    return DocumentFailure(document.index, document.id, _reason(error), message)


def _reason(error: RouterError) -> Literal["invalid", "unavailable", "misconfigured"]:
    if isinstance(error, RequestError):
        return "invalid"
    return "misconfigured" if isinstance(error, MisconfiguredError) else "unavailable"
