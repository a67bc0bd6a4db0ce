"""Servers as processes: start, find, stop, freeze. Nothing here knows what the server is.

Invariant: no signal goes to a process that is not the server it is meant for. A pid from a file may
have been given to someone else since, so its command line must name the server's directory.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

__all__ = ["alive", "family", "is_server", "kill", "launch", "listening", "send", "until", "wait_gone"]

_POLL = 0.01


def launch(argv: Sequence[str], log: Path, env: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """A process of its own session, which a Ctrl-C in our terminal does not reach."""
    with log.open("ab") as output:
        return subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            cwd="/",
            env=env,
        )


def alive(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state not in ("Z", "X")


def is_server(pid: int, marker: str) -> bool:
    """Whether `pid` lives and its command line names `marker`."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    return alive(pid) and os.fsencode(marker) in command


def family(pid: int) -> list[int]:
    """`pid` and its children: a PostgreSQL server and its backends."""
    members = [pid]
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError, ValueError):
                if int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1]) == pid:
                    members.append(int(entry.name))
    return members


def send(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def wait_gone(pids: Sequence[int], seconds: float) -> bool:
    return until(lambda: not any(alive(pid) for pid in pids), seconds)


def kill(pid: int, seconds: float = 5.0) -> bool:
    """SIGKILL the whole family, so that no orphan keeps the port or the shared memory."""
    send([pid], signal.SIGSTOP)  # a stopped parent has no further children
    members = family(pid)
    send(members, signal.SIGKILL)
    return wait_gone(members, seconds)


def listening(port: int) -> bool:
    """Whether somebody accepts connections on this port of 127.0.0.1."""
    with socket.socket() as line:
        line.settimeout(1.0)
        return line.connect_ex(("127.0.0.1", port)) == 0


def until(true: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL)
    return True
