from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest

from tests.http.fake import FakeBackend, application


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend()


@pytest.fixture
async def connect() -> AsyncIterator[Callable[[Any], httpx.AsyncClient]]:
    """Clients of applications in this process, closed at the end."""
    clients: list[httpx.AsyncClient] = []

    def open_client(app: Any) -> httpx.AsyncClient:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        clients.append(httpx.AsyncClient(transport=transport, base_url="http://router"))
        return clients[-1]

    yield open_client
    for client in clients:
        await client.aclose()


@pytest.fixture
def client(backend: FakeBackend, connect: Callable[[Any], httpx.AsyncClient]) -> httpx.AsyncClient:
    return connect(application(backend))
