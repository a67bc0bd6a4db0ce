"""Shards of PostgreSQL primaries with streaming replicas, and a Redis, in one directory.

    DIR/cluster.json     every server's name, role, address and pid, as they are now
    DIR/shard_map.yaml   the matching map
    DIR/nodes/NAME/      a server's data and log
    DIR/redis/

Invariants: one command at a time works on a directory; nothing that was started is left running when
`up` does not return; a cluster with an owner ends with its owner, however that ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from deploy.local import processes
from deploy.local.account import Account, AccountError
from deploy.local.mapfile import checked_collections, write_map
from deploy.local.servers import Postgres, Redis, ServerError, free_ports
from deploy.local.state import STATE_FILE, ClusterError, NodeInfo, RedisInfo, State, read_state, write_state
from shard_config import MapError, limits

__all__ = ["MOST_REPLICAS", "MOST_SHARDS", "Cluster", "CollectionsError"]

MOST_SHARDS = limits.SHARDS
# A server has 20 senders of its log (servers.py): one per replica, and two while one more is copied.
MOST_REPLICAS = 19

# PostgreSQL cuts paths at 1024 bytes, and its own below the directory take up to 90.
_LONGEST_PATH_BYTES = 900
_LOCK = ".lock"
_ATTEMPTS = 3  # a port may be taken between looking for it and listening on it
_STREAMING_SECONDS = 60.0
_STOP_SECONDS = 5.0
_REAP_SECONDS = 1.0
_SWEEPS = 10
_SWEEP_SECONDS = 0.2
_THREADS = 4

Report = Callable[[str], None]


class CollectionsError(ClusterError):
    """The collections that were given make no valid map; nothing was started."""


class Cluster:
    """The cluster in a directory, running or not."""

    def __init__(self, directory: Path | str, report: Report = lambda _: None, *, fsync: bool = True) -> None:
        # Resolved, since servers are told by their paths: one directory must not have two names.
        self.directory = Path(os.path.realpath(directory))
        self._report = report
        self._fsync = fsync
        self._account = Account()
        self._watchdog: subprocess.Popen[bytes] | None = None
        # Children of this process, to be reaped by it; servers that others started are not here.
        self._children: list[subprocess.Popen[bytes]] = []

    def __repr__(self) -> str:
        return f"<Cluster {self.directory}>"

    @classmethod
    @contextlib.contextmanager
    def temporary(
        cls,
        shards: int = 4,
        replicas: int = 1,
        collections: Path | None = None,
        directory: Path | None = None,
        *,
        fsync: bool = True,
    ) -> Iterator[Cluster]:
        """A cluster in `directory`, or one of its own; both are gone with the block, or with this process.

        Without `fsync` its servers lose what they stored if the machine does, but not if they are killed.

        Raises:
            ClusterError
        """
        if directory is None:
            directory = Path(tempfile.mkdtemp(prefix="pgscatter-"))
            directory.chmod(0o755)
        cluster = cls(directory, fsync=fsync)
        try:
            cluster.up(shards, replicas, collections, owned=True)
            try:
                yield cluster
            finally:
                cluster.down()
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    @property
    def map_path(self) -> Path:
        return self.directory / "shard_map.yaml"

    @property
    def redis_url(self) -> str:
        return self._state().redis_url

    @property
    def nodes(self) -> list[NodeInfo]:
        """Every node, as cluster.json has it."""
        return self._state().nodes

    def node(self, name: str) -> NodeInfo:
        """
        Raises:
            ClusterError: there is none of that name.
        """
        for node in self.nodes:
            if node.name == name:
                return node
        names = ", ".join([*(node.name for node in self.nodes), "redis"])
        raise ClusterError(f"no node {name!r} in {self.directory}; there are {names}")

    def up(self, shards: int, replicas: int, collections: Path | None = None, *, owned: bool = False) -> bool:
        """Create what is missing, start what is not running, and return when all servers are ready.

        With `owned`, the servers end when this process does. Returns whether anything had to be started.

        Raises:
            CollectionsError, ClusterError: with the reason; nothing that this call started is left running.
        """
        if not 1 <= shards <= MOST_SHARDS or not 0 <= replicas <= MOST_REPLICAS:
            raise ClusterError(f"expected 1 to {MOST_SHARDS} shards with 0 to {MOST_REPLICAS} replicas each")
        try:
            self._check_directory()
            part = checked_collections(collections, self.map_path, _names(shards), self._report)
            self.directory.mkdir(parents=True, exist_ok=True)
            with self._locked(create=True), self._guarded(owned):
                self._check_shape(shards, replicas)
                complete = len(self._running()) == shards * (replicas + 1) + 1
                self._start_all(shards, replicas)
                self._write_map(part)
                return not complete
        except MapError as exc:
            raise CollectionsError(str(exc)) from exc
        except (ServerError, AccountError) as exc:
            raise ClusterError(str(exc)) from exc
        except OSError as exc:
            raise ClusterError(f"{exc.filename}: {exc.strerror}" if exc.filename else str(exc)) from exc

    def down(self) -> None:
        """Stop every server, within seconds, frozen ones included; a second time there is nothing to do."""
        with self._locked():
            running = self._running()
            try:
                self._stop_servers()
            finally:
                self._release_watchdog()
            # Of a cluster that never came up there may be servers, but no cluster.json.
            if read_state(self.directory) is not None or not running:
                self._save()

    def stop_all(self) -> None:
        """Kill every server, without waiting for another command to end: for a watchdog whose owner is dead.

        Looks more than once: a server that was being started when its owner died has no pid file yet.
        """
        for _ in range(_SWEEPS):
            for pid in self._running():
                processes.kill(pid)
            time.sleep(_SWEEP_SECONDS)

    def status(self) -> State:
        """cluster.json with the pids of this moment."""
        with self._locked():
            return self._save()

    def stop(self, name: str) -> None:
        """Shut one server down cleanly; one that does not within seconds is killed."""
        with self._locked():
            pid = self._pid(name)
            if pid is not None:
                _shut_down([pid])
            self._save()

    def kill(self, name: str) -> None:
        """SIGKILL one server with all its processes."""
        with self._locked():
            pid = self._pid(name)
            if pid is not None:
                processes.kill(pid)
            self._save()

    def start(self, name: str) -> None:
        """Start one server that is not running, on the port it had."""
        with self._locked():
            try:
                if self._pid(name) is None:
                    if name == "redis":
                        self._children.append(self._redis.start(self._state().redis.port))
                    else:
                        node = self.node(name)
                        server = self._postgres(name)
                        self._children.append(server.start(node.port, self._primary_port(node.shard)))
            except (ServerError, AccountError) as exc:
                raise ClusterError(str(exc)) from exc
            finally:
                self._save()

    def rejoin(self, name: str) -> None:
        """Make a server that is not running a replica of its shard's present primary, from a fresh copy.

        That is what becomes of a primary after a failover: its own data may hold what its successor lacks.
        """
        with self._locked():
            node = self.node(name)
            others = [
                other
                for other in self.nodes
                if other.shard == node.shard and other.name != name and self._pid(other.name) is not None
            ]
            primaries = [other for other in others if not self._postgres(other.name).is_replica]
            if self._pid(name) is not None or len(primaries) != 1:
                running = (
                    "it is running" if self._pid(name) else f"{node.shard} has {len(primaries)} primaries"
                )
                raise ClusterError(f"{name} cannot rejoin: {running}")
            server, primary = self._postgres(name), self._postgres(primaries[0].name)
            try:
                shutil.rmtree(server.data)
                _drop_slot(primary, primaries[0].port, server.slot)
                server.create_replica(primaries[0].port)
                self._children.append(server.start(node.port, primaries[0].port))
                self._await_streaming(primary, primaries[0].port, 1)
            except (ServerError, AccountError, OSError) as exc:
                raise ClusterError(str(exc)) from exc
            finally:
                self._save()

    def pause(self, name: str) -> None:
        """SIGSTOP one server with all its processes: it accepts connections and answers nothing."""
        pid = self._pid(name)
        if pid is None:
            raise ClusterError(f"{name} is not running")
        processes.send([pid], signal.SIGSTOP)
        processes.send(processes.family(pid), signal.SIGSTOP)

    def resume(self, name: str) -> None:
        pid = self._pid(name)
        if pid is None:
            raise ClusterError(f"{name} is not running")
        processes.send(reversed(processes.family(pid)), signal.SIGCONT)

    # -- what up and down are made of

    @contextlib.contextmanager
    def _locked(self, *, create: bool = False) -> Iterator[None]:
        """Without `create`, a directory that has never had a cluster is left as it is, without a lock."""
        if not create and not any((self.directory / name).exists() for name in (STATE_FILE, _LOCK)):
            raise self._nothing()
        with (self.directory / _LOCK).open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @contextlib.contextmanager
    def _guarded(self, owned: bool) -> Iterator[None]:
        """Let a watchdog take the servers down if this process dies during the block, or ever if `owned`."""
        running = self._running()
        if running and not owned:
            yield
            return
        self._watchdog = subprocess.Popen(
            [sys.executable, "-m", "deploy.watchdog", str(self.directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
            cwd=Path(__file__).parents[2],
        )
        try:
            yield
        except BaseException:
            self._stop_servers()
            self._release_watchdog()
            raise
        if not owned:
            self._release_watchdog()

    def _release_watchdog(self) -> None:
        watchdog, self._watchdog = self._watchdog, None
        if watchdog is not None and watchdog.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                watchdog.stdin.write(b"done")
                watchdog.stdin.close()
            watchdog.wait(timeout=10)

    def _check_directory(self) -> None:
        """
        Raises:
            ClusterError: its path is too long for PostgreSQL, or a map stands there that no cluster wrote
                and that would be overwritten.
        """
        length = len(os.fsencode(self.directory))
        if length > _LONGEST_PATH_BYTES:
            raise ClusterError(
                f"the path of {self.directory} has {length} bytes; PostgreSQL takes {_LONGEST_PATH_BYTES}"
            )
        if self.map_path.exists() and not (self.directory / STATE_FILE).exists():
            raise ClusterError(
                f"{self.map_path} is not a cluster's: there is no {STATE_FILE} beside it;"
                " choose another directory, or move it away"
            )

    def _check_shape(self, shards: int, replicas: int) -> None:
        saved = read_state(self.directory)
        if saved is not None and (saved.shards, saved.replicas) != (shards, replicas):
            raise ClusterError(
                f"{self.directory} holds {saved.shards} shards with {saved.replicas} replicas each,"
                f" not {shards} with {replicas}: choose another directory, or delete this one"
            )

    def _start_all(self, shards: int, replicas: int) -> None:
        names = _names(shards)
        members = {shard: [f"{shard}-{chr(ord('a') + j)}" for j in range(replicas + 1)] for shard in names}
        ports = self._ports([name for group in members.values() for name in group])
        with ThreadPoolExecutor(_THREADS) as threads:
            jobs = [threads.submit(self._start_redis, ports)]
            jobs += [threads.submit(self._start_shard, shard, members[shard], ports) for shard in names]
            for job in jobs:
                job.result()
        self._save(members, ports)

    def _ports(self, names: list[str]) -> dict[str, int]:
        """The ports that the servers had before, and free ones for new servers."""
        saved = read_state(self.directory)
        known = {} if saved is None else saved.ports
        wanted = [name for name in [*names, "redis"] if name not in known]
        return known | dict(zip(wanted, free_ports(len(wanted)), strict=True))

    def _start_redis(self, ports: dict[str, int]) -> None:
        if self._redis.pid is None:
            self._with_port("redis", ports, self._redis.start)

    def _start_shard(self, shard: str, members: list[str], ports: dict[str, int]) -> None:
        servers = [self._postgres(name) for name in members]
        if not any(server.exists for server in servers):
            servers[0].create_primary(fsync=self._fsync)
        # Primaries first: replicas stream from them.
        servers.sort(key=lambda server: server.is_replica or not server.exists)
        primary, *replicas = servers
        if primary.pid is None:
            self._with_port(primary.name, ports, primary.start)
        self._report(f"{primary.name} accepts connections on port {ports[primary.name]}")
        for replica in replicas:
            if not replica.exists:
                _drop_slot(primary, ports[primary.name], replica.slot)
                replica.create_replica(ports[primary.name])
            if replica.pid is None:
                self._with_port(replica.name, ports, partial(replica.start, primary_port=ports[primary.name]))
        self._await_streaming(primary, ports[primary.name], len(replicas))
        for replica in replicas:
            self._report(f"{replica.name} streams from {primary.name}")

    def _await_streaming(self, primary: Postgres, port: int, count: int) -> None:
        sql = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'"

        def streaming() -> bool:
            return int(primary.query(port, sql)) >= count

        if count and not processes.until(streaming, _STREAMING_SECONDS):
            raise ServerError(f"replicas of {primary.name} do not stream after {_STREAMING_SECONDS:.0f} s")

    def _with_port(
        self, name: str, ports: dict[str, int], start: Callable[[int], subprocess.Popen[bytes]]
    ) -> None:
        for attempt in range(_ATTEMPTS):
            try:
                self._children.append(start(ports[name]))
            except ServerError:
                if attempt == _ATTEMPTS - 1 or not processes.listening(ports[name]):
                    raise
                # Another process has taken the port since.
                ports[name] = free_ports(1)[0]
            else:
                return

    def _stop_servers(self) -> None:
        _shut_down(self._running())
        for child in self._children:
            # A zombie counts as gone, but Redis has threads, and cannot be reaped before they have ended.
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(_REAP_SECONDS)
        self._children = [child for child in self._children if child.poll() is None]

    def _running(self) -> list[int]:
        servers: list[Postgres | Redis] = [
            self._postgres(home.name) for home in sorted((self.directory / "nodes").glob("*"))
        ]
        pids = [server.pid for server in [*servers, self._redis]]
        return [pid for pid in pids if pid is not None]

    # -- what cluster.json says

    @property
    def _redis(self) -> Redis:
        return Redis(self.directory / "redis", self._account)

    def _postgres(self, name: str) -> Postgres:
        return Postgres(name, self.directory / "nodes" / name, self._account)

    def _pid(self, name: str) -> int | None:
        return self._redis.pid if name == "redis" else self._postgres(self.node(name).name).pid

    def _primary_port(self, shard: str) -> int | None:
        for node in self.nodes:
            if node.shard == shard and not self._postgres(node.name).is_replica:
                return node.port
        return None

    def _state(self) -> State:
        saved = read_state(self.directory)
        if saved is None:
            raise self._nothing()
        return saved

    def _nothing(self) -> ClusterError:
        return ClusterError(f"no cluster in {self.directory}: there is no {STATE_FILE}")

    def _save(
        self, members: dict[str, list[str]] | None = None, ports: dict[str, int] | None = None
    ) -> State:
        """Write cluster.json with the roles and pids of this moment."""
        if members is None or ports is None:
            before = self._state()
            members, ports = before.members, before.ports
        nodes = [self._info(name, shard, ports[name]) for shard, names in members.items() for name in names]
        url = f"redis://127.0.0.1:{ports['redis']}/0"
        redis = RedisInfo(url, "127.0.0.1", ports["redis"], self._redis.pid)
        state = State(len(members), len(nodes) // len(members) - 1, nodes, redis, url)
        write_state(self.directory, state)
        return state

    def _info(self, name: str, shard: str, port: int) -> NodeInfo:
        server = self._postgres(name)
        return NodeInfo(
            name=name,
            shard=shard,
            role="replica" if server.is_replica else "primary",
            host="127.0.0.1",
            port=port,
            pid=server.pid,
            user="postgres",
            database="postgres",
            dsn=f"postgresql://postgres@127.0.0.1:{port}/postgres",
        )

    def _write_map(self, part: dict[str, dict[str, Any]]) -> None:
        shards: dict[str, list[dict[str, str]]] = {}
        for node in self.nodes:
            shards.setdefault(node.shard, []).append({"name": node.name, "dsn": node.dsn})
        write_map(self.map_path, shards, part)


def _names(shards: int) -> list[str]:
    return [f"s{i}" for i in range(shards)]


def _drop_slot(primary: Postgres, port: int, slot: str) -> None:
    """Drop the replication slot of an earlier replica of this name, if there is one."""
    primary.query(
        port,
        "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots"
        f" WHERE slot_name = '{slot}' AND NOT active",
    )


def _shut_down(pids: list[int]) -> None:
    """SIGINT is PostgreSQL's fast shutdown and ends Redis too; what is left after seconds is killed."""
    processes.send([member for pid in pids for member in processes.family(pid)], signal.SIGCONT)
    processes.send(pids, signal.SIGINT)
    if not processes.wait_gone(pids, _STOP_SECONDS):
        for pid in pids:
            if processes.alive(pid):
                processes.kill(pid)
