"""What faults happen to: a world, the ways to its nodes, and the router that serves it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext

from bench.errors import BenchError
from bench.faults.network import obstacle, open_network
from bench.faults.proxies import Proxies, open_proxies
from bench.world import World
from deploy.local.router import Router
from deploy.local.servers import free_ports

__all__ = ["Broken", "breakable"]


class Broken:
    """A world whose nodes the router reaches over ways that can be broken; made by `breakable`.

    Attributes:
        names: by role, of the suffering shard's nodes when the fault began; and of Redis.
        until_mended: what steps began that has to end with the fault, by `release`.
        network: a note on how a node is cut off.
    """

    def __init__(
        self, world: World, proxies: Proxies, network: str, workers: int, **settings: object
    ) -> None:
        self.world = world
        self.cluster = world.cluster
        self.proxies = proxies
        self.network = network
        self.names: dict[str, str] = {}
        self.until_mended = ExitStack()
        self.workers = workers
        self._settings = {"port": free_ports(1)[0], "redis": True, "workers": workers, **settings}
        self._served = ExitStack()
        self.router = self._start()

    def __repr__(self) -> str:
        return f"<Broken {self.router!r} on {self.world!r}>"

    def look(self, shard: str) -> None:
        """Who is who now, on the shard that is to suffer; a promotion has changed it."""
        self.cluster.status()
        nodes = [node for node in self.cluster.nodes if node.shard == shard]
        self.names = {"redis": "redis", **{node.role: node.name for node in nodes}}

    def dsn(self, role: str) -> str:
        return self.cluster.node(self.names[role]).dsn

    def release(self) -> None:
        self.until_mended.close()

    def restart(self) -> None:
        """End the router, and start another on its port."""
        self.close()
        self.router = self._start()

    def close(self) -> None:
        self._served.close()

    def _start(self) -> Router:
        return self._served.enter_context(self.world.serve(**self._settings))  # type: ignore[arg-type]


@contextmanager
def breakable(world: World, *, workers: int = 1, **settings: object) -> Iterator[Broken]:
    """`world` behind proxies, over a link of its own for each node where the machine allows that.

    It is served by a router with these settings.
    """
    ports = {node.name: node.port for node in world.cluster.nodes}
    without = obstacle()
    note = (
        "each node is reached over a link of its own to a network namespace; it is cut at the far end"
        if without is None
        else f"the network is cut by the bench's own proxy, which drops what it gets: {without}"
    )
    with (
        nullcontext() if without else open_network(list(ports)) as network,
        open_proxies(ports, network) as proxies,
    ):
        text = world.map_path.read_text()
        for name, (host, port) in proxies.addresses.items():
            before = text
            text = text.replace(f"127.0.0.1:{ports[name]}/", f"{host}:{port}/")
            if text == before:
                raise BenchError(f"{name} is not in {world.map_path}")
        path = world.folder / "behind_proxies.yaml"
        path.write_text(text)
        broken = Broken(world, proxies, note, workers, map_path=path, **settings)
        try:
            yield broken
        finally:
            broken.close()
