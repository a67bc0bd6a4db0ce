"""A network between the router and the nodes that can be cut, where the machine lets us make one.

A thread of this process has a network namespace of its own, and in it one end of a link per node; what
listens there is reached over that link alone. A link whose far end is down loses what is sent, in both
directions, and tells nobody: what a pulled cable looks like. Invariant: namespace and links are gone when
their process is, however it ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import random
import shutil
import socket
import subprocess
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import psutil

from bench.errors import BenchError

__all__ = ["Network", "obstacle", "open_network"]

_SECONDS = 10.0
_CLONE_NEWNET = 0x40000000


def obstacle() -> str | None:
    """Why there can be no network of our own here; None if there can."""
    if shutil.which("ip") is None:
        return "no ip here"
    if os.geteuid() != 0:
        return "only root may make links"
    try:
        with ThreadPoolExecutor(1) as thread:
            thread.submit(_leave).result(_SECONDS)
    except OSError as exc:  # TimeoutError is one
        return f"no network namespaces here: {exc or 'too late'}"
    return None


class Network:
    """One link per name; made by `open_network`."""

    def __init__(self, names: Sequence[str]) -> None:
        # RFC 2544 keeps these addresses for benchmarks; only other runs of this one have some of them.
        used = {link.address.rpartition(".")[0] for near in psutil.net_if_addrs().values() for link in near}
        free = {f"198.{second}.{third}" for second in (18, 19) for third in range(256)} - used
        prefix = random.choice(sorted(free))
        self._links = {name: f"pgs{os.getpid():x}.{i}" for i, name in enumerate(names)}
        self._near = {name: f"{prefix}.{4 * i + 1}" for i, name in enumerate(names)}
        self.hosts = {name: f"{prefix}.{4 * i + 2}" for i, name in enumerate(names)}
        # Its thread's namespace is that of the sockets and processes that it makes, and ends with them.
        self._far = ThreadPoolExecutor(1, "network")

    def __repr__(self) -> str:
        return f"<Network {self.hosts}>"

    def listen(self, name: str, port: int) -> socket.socket:
        """A listening socket at the far end of a link; port 0 for any."""
        made = self._far.submit(socket.create_server, (self.hosts[name], port), backlog=100)
        try:
            return made.result(_SECONDS)
        except OSError as exc:  # TimeoutError is one
            raise BenchError(f"no socket in the namespace: {exc or 'too late'}") from exc

    def cut(self, name: str) -> None:
        """Nothing passes the link, and nobody is told."""
        self._ip_far(f"link set {self._links[name]} down")

    def mend(self, name: str) -> None:
        self._ip_far(f"link set {self._links[name]} up")

    def connect(self) -> None:
        """Make the links."""
        self._far.submit(_leave).result(_SECONDS)
        near: list[str] = []
        far: list[str] = []
        for name, link in self._links.items():
            far.append(f"link add {link} type veth peer name {link} netns {os.getpid()}")
            for ends, host in ((far, self.hosts[name]), (near, self._near[name])):
                ends += [f"addr add {host}/30 dev {link}", f"link set {link} up"]
        self._ip_far(*far)
        _ip(*near)

    def disconnect(self) -> None:
        with contextlib.suppress(BenchError):
            _ip(*(f"link del {link}" for link in self._links.values()))
        self._far.shutdown()

    def _ip_far(self, *commands: str) -> None:
        self._far.submit(_ip, *commands).result(2 * _SECONDS)


@contextlib.contextmanager
def open_network(names: Sequence[str]) -> Iterator[Network]:
    """A link for each of `names` while the block runs.

    Raises:
        BenchError, OSError: see `obstacle`.
    """
    network = Network(names)
    try:
        network.connect()
        yield network
    finally:
        network.disconnect()


def _leave() -> None:
    """Give the calling thread a network namespace of its own."""
    # os.unshare is there from Python 3.12 on.
    if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNET):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _ip(*commands: str) -> None:
    words, text = ["ip", "-batch", "-"], "\n".join(commands)
    done = subprocess.run(words, input=text, capture_output=True, text=True, timeout=_SECONDS)
    if done.returncode:
        raise BenchError(f"ip failed: {done.stderr.strip()}")
