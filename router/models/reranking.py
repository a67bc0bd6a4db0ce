"""Scores of texts against a query, by a service of the map that has read both (a cross-encoder)."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from router.models.messages import read_scores, rerank_request
from router.models.status import ServiceListener, ServiceStatus
from router.network.dial import Network
from router.settings import Settings
from shard_config.model import RerankingService

if TYPE_CHECKING:
    from router.models.service import Service

__all__ = ["Reranking"]


class Reranking:
    """All re-ranking services that maps have named, each with its connections and its circuit."""

    def __init__(
        self,
        settings: Settings,
        network: Network | None = None,
        listener: ServiceListener | None = None,
    ) -> None:
        self._settings = settings
        self._network = network or Network()
        self._listener = listener
        self._services: dict[RerankingService, Service] = {}

    def __repr__(self) -> str:
        return f"<Reranking by {len(self._services)} services>"

    async def scores(
        self, service: RerankingService, query: str, texts: Sequence[str], deadline: float
    ) -> list[float]:
        """How well each of `texts` answers `query`, in their order; greater is better.

        Raises:
            RefusedError, UnavailableError, DeadlineError, OverloadedError, MisconfiguredError: each names
                the service.
        """
        if not texts:
            return []
        body = rerank_request(service, query, texts)
        return await self._service(service).post(
            body, lambda data: read_scores(data, service, len(texts)), deadline
        )

    def statuses(self, services: Iterable[RerankingService]) -> list[ServiceStatus]:
        """Of each of `services`, whether it was asked or not."""
        return [self._service(service).status() for service in services]

    async def close(self) -> None:
        await asyncio.gather(*(service.close() for service in self._services.values()))

    def _service(self, config: RerankingService) -> Service:
        service = self._services.get(config)
        if service is None:
            from router.models.service import Service

            service = self._services[config] = Service(
                config.name,
                "reranking",
                config.url.rstrip("/") + "/rerank",
                config.model,
                key=config.api_key,
                api_version=None,
                timeout=config.timeout,
                settings=self._settings,
                network=self._network,
                listener=self._listener,
            )
        return service
