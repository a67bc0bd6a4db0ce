"""A network between the router and the nodes that can be cut, where the machine lets us make one.

A network namespace holds one end of a link per node; what listens there is reached over that link alone.
A link whose far end is down loses what is sent, in both directions, and tells nobody: what a pulled cable
looks like. Invariant: namespace and links are gone when their process is, however it ends.
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
from pathlib import Path

import psutil

from bench.errors import BenchError
from deploy.tied_to_parent import tied_to_parent

__all__ = ["Network", "obstacle", "open_network"]

_TOOLS = ("ip", "nsenter", "unshare")
_SECONDS = 10.0
_CLONE_NEWNET = 0x40000000


def obstacle() -> str | None:
    """Why there can be no network of our own here; None if there can."""
    missing = [tool for tool in _TOOLS if shutil.which(tool) is None]
    if missing:
        return f"no {missing[0]} here"
    if os.geteuid() != 0:
        return "only root may make links"
    tried = subprocess.run(["unshare", "--net", "true"], capture_output=True, text=True, timeout=_SECONDS)
    return tried.stderr.strip() or "no network namespaces here" if tried.returncode else None


class Network:
    """One link per name; made by `open_network`."""

    def __init__(self, names: Sequence[str], holder: int) -> None:
        self._holder = holder
        # RFC 2544 keeps these addresses for benchmarks; only other runs of this one have some of them.
        used = {link.address.rpartition(".")[0] for near in psutil.net_if_addrs().values() for link in near}
        free = {f"198.{second}.{third}" for second in (18, 19) for third in range(256)} - used
        prefix = random.choice(sorted(free))
        self._links = {name: f"pgs{os.getpid():x}.{i}" for i, name in enumerate(names)}
        self._near = {name: f"{prefix}.{4 * i + 1}" for i, name in enumerate(names)}
        self.hosts = {name: f"{prefix}.{4 * i + 2}" for i, name in enumerate(names)}

    def __repr__(self) -> str:
        return f"<Network {self.hosts}>"

    def listen(self, name: str, port: int) -> socket.socket:
        """A listening socket at the far end of a link, for this process; port 0 for any."""
        return _listen_inside(self._holder, self.hosts[name], port)

    def cut(self, name: str) -> None:
        """Nothing passes the link, and nobody is told."""
        self._far(f"link set {self._links[name]} down")

    def mend(self, name: str) -> None:
        self._far(f"link set {self._links[name]} up")

    def connect(self) -> None:
        """Make the links."""
        near, far = [], []
        for name, link in self._links.items():
            near.append(f"link add {link} type veth peer name {link} netns {self._holder}")
            near += [f"addr add {self._near[name]}/30 dev {link}", f"link set {link} up"]
            far += [f"addr add {self.hosts[name]}/30 dev {link}", f"link set {link} up"]
        _ip(near)
        self._far(*far)

    def disconnect(self) -> None:
        with contextlib.suppress(BenchError):
            _ip([f"link del {link}" for link in self._links.values()])

    def _far(self, *commands: str) -> None:
        _ip(commands, "nsenter", f"--net=/proc/{self._holder}/ns/net")


@contextlib.contextmanager
def open_network(names: Sequence[str], folder: Path) -> Iterator[Network]:
    """A link for each of `names` while the block runs; `folder` is for the log.

    Raises:
        BenchError: see `obstacle`.
    """
    with tied_to_parent(["unshare", "--net", "sleep", "infinity"], folder / "network.log") as watcher:
        network = Network(names, _holder(watcher))
        network.connect()
        try:
            yield network
        finally:
            network.disconnect()


def _holder(watcher: subprocess.Popen[bytes]) -> int:
    """The process in the new namespace: its tool has become what it was told to run."""
    ours = os.stat("/proc/self/ns/net").st_ino
    for _ in range(int(_SECONDS * 100)):
        for child in psutil.Process(watcher.pid).children():
            with contextlib.suppress(OSError):
                if os.stat(f"/proc/{child.pid}/ns/net").st_ino != ours:
                    return child.pid
        with contextlib.suppress(subprocess.TimeoutExpired):
            watcher.wait(0.01)
    raise BenchError("no network namespace was made")


def _ip(commands: Sequence[str], *within: str) -> None:
    done = subprocess.run(
        [*within, "ip", "-batch", "-"],
        input="\n".join(commands),
        capture_output=True,
        text=True,
        timeout=_SECONDS,
    )
    if done.returncode:
        raise BenchError(f"ip failed: {done.stderr.strip()}")


def _listen_inside(pid: int, host: str, port: int) -> socket.socket:
    """A socket in the network namespace of `pid`: it stays in that of its making."""

    def listen() -> socket.socket:
        with open(f"/proc/{pid}/ns/net") as space:
            # os.setns is there from Python 3.12 on. A thread's namespace ends with the thread.
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.setns(space.fileno(), _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
        return socket.create_server((host, port), backlog=100)

    try:
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(listen).result(_SECONDS)
    except OSError as exc:  # TimeoutError is one
        raise BenchError(f"no socket in the namespace: {exc or 'too late'}") from exc
