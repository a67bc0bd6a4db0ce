"""A real Patroni cluster of two PostgreSQL servers over a real etcd."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml

from deploy.local.account import Account
from deploy.local.environment import environment
from deploy.local.servers import binary, free_ports
from deploy.tied_to_parent import tied_to_parent

__all__ = ["Members", "etcd_binary", "members"]

# The least that Patroni takes: how long a dead leader keeps the lock.
TTL = 20
_START_SECONDS = 60.0


def etcd_binary(folder: Path) -> Path | None:
    """The machine's etcd, or Debian's, unpacked into `folder`; None where neither can be had."""
    if (found := shutil.which("etcd")) is not None:
        return Path(found)
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        return None
    try:
        download = ["apt-get", "download", "etcd-server"]
        subprocess.run(download, cwd=folder, capture_output=True, timeout=60, check=True)
        (package,) = folder.glob("etcd-server*.deb")
        subprocess.run(["dpkg-deb", "-x", package, folder], capture_output=True, timeout=60, check=True)
    except (subprocess.SubprocessError, ValueError):
        return None
    path = folder / "usr" / "bin" / "etcd"
    return path if path.exists() else None


class Members:
    """Two members, `a` and `b`; whichever is started first bootstraps the cluster."""

    def __init__(self, folder: Path, etcd_port: int, stack: contextlib.ExitStack) -> None:
        self._folder = folder
        self._stack = stack
        self._account = Account()
        ports = iter(free_ports(4))
        self._ports = {name: (next(ports), next(ports)) for name in ("a", "b")}
        self._watchers: dict[str, subprocess.Popen[bytes]] = {}
        for name in self._ports:
            self._config(name).write_text(yaml.safe_dump(self._settings(name, etcd_port)))
            self._config(name).chmod(0o644)

    def dsn(self, name: str) -> str:
        return f"postgresql://postgres@127.0.0.1:{self._ports[name][0]}/postgres"

    def api(self, name: str) -> str:
        return f"http://127.0.0.1:{self._ports[name][1]}"

    def start(self, name: str) -> None:
        home = self._folder / name
        command = self._account.command([sys.executable, "-m", "patroni", str(self._config(name))], home)
        started = tied_to_parent(command, self._log(name), environment(home))
        self._watchers[name] = self._stack.enter_context(started)

    def kill(self, name: str) -> None:
        """End Patroni and its PostgreSQL, as the loss of their machine would."""
        (patroni,) = psutil.Process(self._watchers[name].pid).children()
        postmaster = int((self._folder / name / "data" / "postmaster.pid").read_text().split()[0])
        for pid in (patroni.pid, postmaster):
            os.kill(pid, signal.SIGKILL)

    def ask(self, name: str, path: str, body: dict[str, str] | None = None) -> Any:
        """Patroni's answer, or its refusal; None if it does not answer."""
        method = "GET" if body is None else "POST"
        try:
            answer = httpx.request(method, self.api(name) + path, json=body, timeout=TTL, trust_env=False)
        except httpx.HTTPError:
            return None
        try:
            return answer.json()
        except ValueError:
            return answer.text

    def until(self, name: str, within: float = _START_SECONDS, **wanted: object) -> None:
        """Wait until Patroni says so of its node."""
        end = time.monotonic() + within
        while True:
            status = self.ask(name, "/patroni") or {}
            if all(status.get(field) == value for field, value in wanted.items()):
                return
            assert time.monotonic() < end, f"{status}\n{self._log(name).read_text()[-3000:]}"
            time.sleep(0.05)

    def _config(self, name: str) -> Path:
        return self._folder / f"{name}.yaml"

    def _log(self, name: str) -> Path:
        return self._folder / f"{name}.log"

    def _settings(self, name: str, etcd_port: int) -> dict[str, Any]:
        port, api = self._ports[name]
        home = self._folder / name
        return {
            "scope": "s0",
            "name": name,
            "restapi": {"listen": f"127.0.0.1:{api}", "connect_address": f"127.0.0.1:{api}"},
            "etcd3": {"hosts": [f"127.0.0.1:{etcd_port}"]},
            "bootstrap": {
                "dcs": {
                    "ttl": TTL,
                    "loop_wait": 1,
                    "retry_timeout": 3,
                    "synchronous_mode": True,
                    "postgresql": {"use_pg_rewind": True},
                },
                "initdb": [
                    {"encoding": "UTF8"},
                    {"locale-provider": "builtin"},
                    {"locale": "C.UTF-8"},
                    "data-checksums",
                    "no-sync",
                ],
            },
            "postgresql": {
                "listen": f"127.0.0.1:{port}",
                "connect_address": f"127.0.0.1:{port}",
                "data_dir": str(home / "data"),
                "bin_dir": str(binary("postgres").parent),
                "pgpass": str(home / "pgpass"),
                "authentication": {
                    "superuser": {"username": "postgres"},
                    "replication": {"username": "postgres"},
                    "rewind": {"username": "postgres"},
                },
                "parameters": {
                    "unix_socket_directories": "",
                    "dynamic_shared_memory_type": "mmap",
                    "shared_buffers": "32MB",
                    "wal_retrieve_retry_interval": "200ms",
                },
                "pg_hba": ["host all all 127.0.0.1/32 trust", "host replication all 127.0.0.1/32 trust"],
            },
        }


@contextlib.contextmanager
def members(folder: Path, etcd: Path) -> Iterator[Members]:
    """A cluster that nobody has started yet; all of it is gone after the block."""
    client, peer = (f"http://127.0.0.1:{port}" for port in free_ports(2))
    command = [str(etcd), "--data-dir", str(folder / "etcd"), "--log-level", "error"]
    command += [f"--listen-client-urls={client}", f"--advertise-client-urls={client}"]
    command += [f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}"]
    command += [f"--initial-cluster=default={peer}"]
    with contextlib.ExitStack() as stack:
        stack.enter_context(tied_to_parent(command, folder / "etcd.log"))
        yield Members(folder, int(client.rsplit(":", 1)[1]), stack)
