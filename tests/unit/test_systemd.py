from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from router.http.systemd import inherited_listener, notify

CHILD = """
import os
from router.http.systemd import inherited_listener
os.environ["LISTEN_PID"] = str(os.getpid())
try:
    print(inherited_listener(os.environ).getsockname()[1], os.environ.get("LISTEN_FDS"))
except ValueError as exc:
    print(exc)
"""


def child(count: str, given: socket.socket | None) -> str:
    """What a process says that was started as systemd starts it: with `given` as its descriptor 3."""

    def place() -> None:
        if given is not None:
            os.dup2(given.fileno(), 3)

    done = subprocess.run(
        [sys.executable, "-c", CHILD],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "LISTEN_FDS": count},
        pass_fds=[] if given is None else [3],
        preexec_fn=place,
        check=True,
    )
    return done.stdout.strip()


def test_a_socket_that_systemd_holds_is_taken_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        assert child("1", held) == f"{held.getsockname()[1]} None"
        assert child("2", held) == "LISTEN_FDS=2, and the router listens on one socket"


def test_what_is_no_tcp_socket_is_refused_with_the_reason() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        assert child("1", udp) == "LISTEN_FDS=1, and descriptor 3 is no TCP socket"


@pytest.mark.parametrize(
    "env", [{}, {"LISTEN_FDS": "1", "LISTEN_PID": "1"}, {"LISTEN_PID": str(os.getpid())}]
)
def test_what_was_meant_for_another_process_is_left_alone(env: dict[str, str]) -> None:
    assert inherited_listener(env) is None


def test_the_service_manager_is_told(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(5)
        notify("READY=1", {"NOTIFY_SOCKET": str(tmp_path / "notify")})
        assert manager.recv(100) == b"READY=1"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0pgscatter-test-{os.getpid()}")  # as of systemd in a container
        manager.settimeout(5)
        notify("STOPPING=1", {"NOTIFY_SOCKET": f"@pgscatter-test-{os.getpid()}"})
        assert manager.recv(100) == b"STOPPING=1"
    for unreachable in (str(tmp_path / "gone"), str(tmp_path), "@gone", "vsock:2:1234", f"/{'x' * 200}"):
        notify("READY=1", {"NOTIFY_SOCKET": unreachable})
    notify("READY=1", {})
