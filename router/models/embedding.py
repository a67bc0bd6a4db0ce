"""Texts become vectors: by a service of the map, or by what it answered before.

Invariants: a vector that leaves here is the service's own for this text, whole and finite, of the length that
the map says; equal texts in flight are asked for once; a batch that fails takes no other with it, and a text
that a service refuses takes none of its batch with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from hashlib import blake2b
from typing import TYPE_CHECKING, Literal, Protocol

import msgspec

from router.flights import Flights
from router.models.messages import embedding_request, is_usual, read_embeddings
from router.models.status import RefusedError, ServiceListener, ServiceStatus
from router.models.vectors import VectorCache
from router.network.dial import Network
from router.query.errors import DeadlineError, Problem, RouterError
from router.settings import Settings
from shard_config.model import EmbeddingService

if TYPE_CHECKING:
    from router.freshness.redis_link import RedisLink
    from router.models.service import Service

__all__ = ["Embedded", "EmbeddingListener", "Embeddings"]

# Batches of one call that are under way together: the service has queries to answer as well.
_BATCHES = 4
# A call in flight that ends earlier than a caller by no more than this share of its time is joined all the
# same.
_EARLIER_SHARE = 0.2
# Seconds: a call ends by its own deadline, and says better why.
_GRACE = 0.01


class Embedded(msgspec.Struct, frozen=True):
    """The vector of a text as little-endian float32; `tier` says where it was known from, if it was."""

    vector: bytes
    model: str
    tier: Literal["l1", "l2", "miss"] = "miss"

    @property
    def cached(self) -> bool:
        return self.tier != "miss"


class EmbeddingListener(ServiceListener, Protocol):
    """Is told of every text that is searched for as well."""

    def text_embedded(self, name: str, tier: str) -> None: ...


class _Model:
    """A service, and what is known of it that its map does not say."""

    def __init__(self, config: EmbeddingService, service: Service) -> None:
        self.config = config
        self.service = service
        # What decides the vector of a query's text; the map's version does not.
        decides = (config.url, config.model, config.dimensions, config.query_prefix, config.send_dimensions)
        self.key = blake2b(msgspec.msgpack.encode(decides), digest_size=16).digest()
        # Whether it takes `encoding_format: base64`; None until it has answered. Older releases of Ollama
        # leave it unread and send numbers, others refuse what they do not know.
        self.takes_base64: bool | None = None


class Embeddings:
    """All embedding services that maps have named, each with its connections and its circuit."""

    def __init__(
        self,
        settings: Settings,
        network: Network | None = None,
        link: RedisLink | None = None,
        listener: EmbeddingListener | None = None,
    ) -> None:
        self._settings = settings
        self._network = network or Network()
        self._listener = listener
        self._models: dict[EmbeddingService, _Model] = {}
        self._cache = VectorCache(settings.embedding_cache_bytes, settings.embedding_cache_ttl, link)
        self._flights: Flights[bytes, Embedded] = Flights(_worth_joining, _GRACE)

    def __repr__(self) -> str:
        return f"<Embeddings of {len(self._models)} models, {self._cache!r}, {self._flights!r}>"

    async def query(self, service: EmbeddingService, text: str, deadline: float) -> bytes:
        """The vector to search by for `text`; see `embed`."""
        return (await self.embed(service, text, deadline)).vector

    async def embed(self, service: EmbeddingService, text: str, deadline: float) -> Embedded:
        """The vector to search by for `text`, with the service's query prefix before it.

        Raises:
            RefusedError, UnavailableError, DeadlineError, OverloadedError, MisconfiguredError: each names
                the service.
        """
        model = self._model(service)
        key = blake2b(text.encode("utf-8", "surrogatepass"), key=model.key, digest_size=20).digest()
        vector = self._cache.get(key)
        if vector is not None:
            found = Embedded(vector, service.name, "l1")
        else:
            start = partial(self._look_up, model, key, text, deadline)
            found = await self._flights.result(key, start, deadline, partial(_late, service))
        if self._listener is not None:
            self._listener.text_embedded(service.name, found.tier)
        return found

    async def documents(
        self, service: EmbeddingService, texts: Sequence[str], deadline: float
    ) -> list[bytes | RouterError]:
        """The vector of each text that is to be stored, or why there is none.

        Vectors are little-endian float32; whether the collection's metric takes them is not checked.
        """
        model = self._model(service)
        prefixed = [service.document_prefix + text for text in texts]
        outcomes: list[bytes | RouterError] = [_late(service)] * len(texts)
        batches = iter(range(0, len(texts), service.batch))

        async def work(starts: Iterator[int]) -> None:
            for start in starts:
                batch = prefixed[start : start + service.batch]
                outcomes[start : start + len(batch)] = await self._outcomes(model, batch, deadline)

        async with asyncio.TaskGroup() as group:
            for _ in range(min(_BATCHES, -(-len(texts) // service.batch))):
                group.create_task(work(batches))
        return outcomes

    def statuses(self, services: Iterable[EmbeddingService]) -> list[ServiceStatus]:
        """Of each of `services`, whether it was asked or not."""
        return [self._model(service).service.status() for service in services]

    async def close(self) -> None:
        await self._cache.close()
        await asyncio.gather(*(model.service.close() for model in self._models.values()))

    async def _look_up(self, model: _Model, key: bytes, text: str, deadline: float) -> Embedded:
        config = model.config
        vector = await self._cache.shared(key, config.dimensions)
        tier: Literal["l2", "miss"] = "l2"
        if vector is None:
            tier = "miss"
            (vector,) = await self._ask(model, [config.query_prefix + text], deadline)
            if not is_usual(vector):
                return Embedded(vector, config.name)
            self._cache.share(key, vector)
        self._cache.put(key, vector)
        return Embedded(vector, config.name, tier)

    async def _outcomes(
        self, model: _Model, texts: Sequence[str], deadline: float
    ) -> Sequence[bytes | RouterError]:
        """Of a batch; one that is refused is halved, until those that are refused stand alone."""
        try:
            return await self._ask(model, texts, deadline)
        except RefusedError as exc:
            if len(texts) == 1:
                return [exc]
        except RouterError as exc:
            return [exc] * len(texts)
        half = len(texts) // 2
        first = await self._outcomes(model, texts[:half], deadline)
        return [*first, *await self._outcomes(model, texts[half:], deadline)]

    async def _ask(self, model: _Model, texts: Sequence[str], deadline: float) -> list[bytes]:
        """
        Raises:
            RouterError
        """

        def read(data: bytes) -> list[bytes]:
            return read_embeddings(data, model.config, len(texts))

        if any(_unencodable(text) for text in texts):
            message = "it holds half of a surrogate pair, for which UTF-8 has no bytes"
            raise RefusedError(f"text: {message}", [Problem("text", message)])
        base64 = model.takes_base64 is not False
        try:
            body = embedding_request(model.config, texts, base64=base64)
            vectors = await model.service.post(body, read, deadline)
        except RefusedError:
            if not base64 or model.takes_base64:
                raise
            # It may be the form that it refuses, and not the text.
            body = embedding_request(model.config, texts, base64=False)
            vectors = await model.service.post(body, read, deadline)
            model.takes_base64 = False
        else:
            model.takes_base64 = base64
        return vectors

    def _model(self, config: EmbeddingService) -> _Model:
        model = self._models.get(config)
        if model is None:
            from router.models.service import Service

            service = Service(
                config.name,
                "embedding",
                config.url.rstrip("/") + "/embeddings",
                config.model,
                key=config.api_key,
                api_version=config.api_version,
                timeout=config.timeout,
                settings=self._settings,
                network=self._network,
                listener=self._listener,
            )
            model = self._models[config] = _Model(config, service)
        return model


def _unencodable(text: str) -> bool:
    if text.isascii():
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _late(service: EmbeddingService) -> DeadlineError:
    return DeadlineError(f"the embedding service {service.name} did not answer before time ran out")


def _worth_joining(flight_deadline: float, deadline: float, now: float) -> bool:
    return flight_deadline >= deadline - _EARLIER_SHARE * (deadline - now)
