"""The models by name, and the handler of each route.

Invariant: no answer names another model than the one that made it, and a request without a name is only
answered where there is no choice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeVar

import msgspec

from router.model_service.answers import cohere_answer, embeddings_answer, tei_answer
from router.model_service.backend import Embedder, Output, Pair, Reranker
from router.model_service.bodies import Wanted, read_embeddings, read_rerank, read_tei
from router.model_service.errors import InvalidBodyError, UnknownModelError
from router.model_service.limits import Limits
from router.model_service.metrics import Metrics
from router.model_service.worker import Job, Worker

__all__ = ["ModelService"]

# Larger bodies are read in a thread; this much takes a tenth of a millisecond.
_READ_AT_ONCE = 1 << 16
# Seconds for calls under way when the service ends.
_JOIN_SECONDS = 5.0

_M = TypeVar("_M")
_RankAnswer = Callable[[str, Reranker, Wanted, Output], bytes]


class ModelService:
    """Made and closed in a running event loop; `embedders` and `rerankers` have no name in common."""

    def __init__(
        self,
        embedders: Mapping[str, Embedder],
        rerankers: Mapping[str, Reranker],
        limits: Limits,
        metrics: Metrics,
    ) -> None:
        self._limits = limits
        self._embedders = embedders
        self._rerankers = rerankers
        watchers = metrics.of_models([*embedders, *rerankers])
        self._embedding: dict[str, Worker[str]] = {
            name: Worker(name, model, limits, watchers[name]) for name, model in embedders.items()
        }
        self._reranking: dict[str, Worker[Pair]] = {
            name: Worker(name, model, limits, watchers[name]) for name, model in rerankers.items()
        }

    def __repr__(self) -> str:
        return f"<ModelService of {', '.join([*self._embedders, *self._rerankers])}>"

    @property
    def waiting(self) -> dict[str, int]:
        """Of each model, the texts that wait for it."""
        return {worker.name: worker.waiting for worker in self._workers()}

    @property
    def stuck(self) -> list[str]:
        """Models whose call under way takes longer than any request waits."""
        return [worker.name for worker in self._workers() if worker.stuck(self._limits.request_timeout)]

    async def close(self) -> list[str]:
        """Stop all models; those whose call under way did not end in time."""
        workers = self._workers()
        for worker in workers:
            worker.stop()
        ended = await asyncio.gather(*(asyncio.to_thread(worker.join, _JOIN_SECONDS) for worker in workers))
        return [worker.name for worker, in_time in zip(workers, ended, strict=True) if not in_time]

    async def embeddings(self, data: bytes) -> bytes:
        """
        Raises:
            ServiceError
        """
        wanted = await self._read(read_embeddings, data)
        name, model = _chosen(self._embedders, wanted.model, "embedder", "--embedder NAME=BACKEND")
        _check_dimensions(name, model, wanted.dimensions)
        finish = partial(embeddings_answer, name, wanted)
        job = Job(wanted.texts, list(map(len, wanted.texts)), finish)
        return await self._embedding[name].answer(job, self._limits.request_timeout)

    async def rerank(self, data: bytes) -> bytes:
        """Cohere's and Jina's form.

        Raises:
            ServiceError
        """
        return await self._rank(await self._read(read_rerank, data), cohere_answer)

    async def tei_rerank(self, data: bytes) -> bytes:
        """
        Raises:
            ServiceError
        """
        return await self._rank(await self._read(read_tei, data), tei_answer)

    def models(self) -> bytes:
        """OpenAI's list of models, with what a client of this service has to know of each."""
        return msgspec.json.encode({"object": "list", "data": self._described()})

    def model(self, name: str) -> bytes:
        """
        Raises:
            UnknownModelError
        """
        found = [one for one in self._described() if one["id"] == name]
        if not found:
            raise _unknown(name, [*self._embedders, *self._rerankers])
        return msgspec.json.encode(found[0])

    def _described(self) -> list[dict[str, object]]:
        described: list[dict[str, object]] = [
            {
                **_entry(name, "embedder", model.backend),
                "dimensions": model.dimensions,
                "shorter_dimensions": list(model.shorter),
            }
            for name, model in self._embedders.items()
        ]
        return described + [_entry(name, "reranker", one.backend) for name, one in self._rerankers.items()]

    async def _rank(self, wanted: Wanted, answer: _RankAnswer) -> bytes:
        name, model = _chosen(self._rerankers, wanted.model, "re-ranker", "--reranker NAME=BACKEND")
        pairs = [(wanted.query, text) for text in wanted.texts]
        sizes = [len(wanted.query) + len(text) for text in wanted.texts]
        job = Job(pairs, sizes, partial(answer, name, model, wanted))
        return await self._reranking[name].answer(job, self._limits.request_timeout)

    async def _read(self, read: Callable[[bytes, Limits], Wanted], data: bytes) -> Wanted:
        if len(data) <= _READ_AT_ONCE:
            return read(data, self._limits)
        return await asyncio.to_thread(read, data, self._limits)

    def _workers(self) -> list[Worker[str] | Worker[Pair]]:
        return [*self._embedding.values(), *self._reranking.values()]


def _entry(name: str, kind: str, backend: str) -> dict[str, object]:
    return {
        "id": name,
        "object": "model",
        "created": 0,
        "owned_by": "pgscatter",
        "kind": kind,
        "backend": backend,
    }


def _chosen(models: Mapping[str, _M], name: str | None, kind: str, flag: str) -> tuple[str, _M]:
    if not models:
        raise UnknownModelError(f"this service has no {kind}; it was started without {flag}", param="model")
    if name is None:
        if len(models) > 1:
            raise InvalidBodyError(f"model: required, since there are {', '.join(models)}", param="model")
        return next(iter(models.items()))
    found = models.get(name)
    if found is None:
        raise _unknown(name, list(models), kind)
    return name, found


def _unknown(name: str, known: list[str], kind: str = "model") -> UnknownModelError:
    shown = name if len(name) <= 100 else name[:97] + "..."
    return UnknownModelError(f"no {kind} {shown!r}; there are {', '.join(known)}", param="model")


def _check_dimensions(name: str, model: Embedder, dimensions: int | None) -> None:
    if dimensions is None or dimensions == model.dimensions or dimensions in model.shorter:
        return
    shorter = f", or {', '.join(map(str, model.shorter[-8:]))}" if model.shorter else " and no others"
    raise InvalidBodyError(
        f"dimensions: model {name!r} has {model.dimensions}{shorter}, got {dimensions}", param="dimensions"
    )
