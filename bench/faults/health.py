"""Whether all is well, by the router's own account at `/health`, asked all the time."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, deque
from collections.abc import AsyncIterator
from time import perf_counter
from typing import Any

import msgspec

from bench.errors import SearchError
from bench.faults.broken import Broken
from bench.http_client import Connections, request_bytes

__all__ = ["WELL_SECONDS", "Health", "Seen", "seen"]

# All well in so many answers in a row, whichever worker gives them; and how long that may take.
_WELL, WELL_SECONDS = 8, 30.0
_POLL_SECONDS, _ANSWER_SECONDS = 0.1, 5.0
# Hours of them.
_MOST_SEEN = 100_000


class Seen(msgspec.Struct, frozen=True):
    """At a moment: states of nodes by name, and what is not well, empty if all is."""

    at: float
    states: dict[str, str]
    ill: str


class Health:
    """Of the router that serves `broken`; `seen` grows during `watched`."""

    def __init__(self, broken: Broken) -> None:
        self.seen: deque[Seen] = deque(maxlen=_MOST_SEEN)
        self._broken = broken

    def __repr__(self) -> str:
        return f"<Health: {self.seen[-1] if self.seen else 'not seen yet'}>"

    @contextlib.asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        watching = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

    async def well(self) -> float | None:
        """When all was; None if it was not for `WELL_SECONDS`."""
        end, good, since = perf_counter() + WELL_SECONDS, 0, 0.0
        while perf_counter() < end:
            found = await self.look()
            good, since = (0, 0.0) if found.ill else (good + 1, since or found.at)
            if good == _WELL:
                return since
            await asyncio.sleep(_POLL_SECONDS)
        return None

    async def look(self) -> Seen:
        # A connection of its own, so that any worker may answer.
        url = self._broken.router.url
        connections = Connections(url, answer_seconds=_ANSWER_SECONDS)
        try:
            answer = await connections.send(request_bytes(f"{url}/health", method="GET"))
        except SearchError as exc:
            return Seen(perf_counter(), {}, str(exc))
        finally:
            connections.close()
        return seen(perf_counter(), *answer)

    async def _watch(self) -> None:
        last: dict[str, str] = {}
        while True:
            found = await self.look()
            # Hours of the same states are one object.
            last = found.states if found.states != last else last
            self.seen.append(Seen(found.at, last, found.ill))
            await asyncio.sleep(_POLL_SECONDS)


def seen(at: float, status: int, body: bytes) -> Seen:
    """What an answer says of nodes, primaries, the use of Redis, and what shards hold."""
    if status != 200:
        return Seen(at, {}, f"/health answers {status}")
    health: dict[str, Any] = msgspec.json.decode(body, type=dict[str, Any])
    nodes, caches = health["nodes"], health["caches"]
    primaries = Counter(one["shard"] for one in nodes if one["role"] == "primary")
    found = [f"{one['name']} {one['state']}: {one['reason']}" for one in nodes if one["state"] != "up"]
    found += [f"{s} has {primaries[s]} primaries" for s in health["shards"] if primaries[s] != 1]
    if caches["l2_enabled"] and not (caches["l2_on"] and caches["l2_writable"]):
        found.append(f"Redis is not used: {caches['l2_reason']}")
    found += [f"{name}: {health[name]}" for name in ("disagreements", "lost_bytes") if health.get(name)]
    return Seen(at, {one["name"]: one["state"] for one in nodes}, "; ".join(found))
