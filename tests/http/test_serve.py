"""`pgscatter serve` as a process of its own, over a map whose nodes do not answer."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest

from router.cli import main
from router.http.supervisor import pause
from tests.http.fake import MAP
from tests.http.running import failed, serving, until, workers_of

SEARCH = "/v1/collections/documents/search"


def test_each_request_is_one_line_of_json_without_secrets(tmp_path: Path) -> None:
    with serving(tmp_path) as router:
        body = {"vector": [0.125, 0.25, 0.5], "timeout_ms": 20_000}
        assert httpx.post(router.url + SEARCH, json=body, timeout=30).status_code == 503
        assert router.stop() == 0
        assert "Traceback" not in router.log
        (line,) = [line for line in router.lines() if line["event"] == "request"]
        assert (line["status"], line["level"]) == (503, "warning")
        assert "hunter2" not in router.log and "0.125" not in router.log


def test_workers_share_a_port_and_end_together(tmp_path: Path) -> None:
    with serving(tmp_path, "--workers", "2") as router:
        for _ in range(20):
            assert router.get("/livez").status_code == 200
        # Whichever worker is asked, it soon knows of the requests that both have answered.
        counted = 'pgscatter_requests_total{method="GET",route="/livez",status="200"} 20.0'
        until(lambda: counted in router.get("/metrics").text)
        (shared,) = tmp_path.glob("pgscatter-*")
        # What clears temporary folders passes over one that is locked.
        descriptor = os.open(shared, os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(descriptor)
        assert router.stop() == 0
        assert not list(tmp_path.glob("pgscatter-*"))
        assert "Traceback" not in router.log
        # Each says what it sees itself.
        probed = [line for line in router.lines() if line["event"] == "nodes probed"]
        assert len({line["pid"] for line in probed}) == 2


def test_a_redis_that_cannot_be_used_is_told_of_and_its_password_is_not(tmp_path: Path) -> None:
    url = "redis://:${SECRET}@127.0.0.1:1/0"
    with serving(tmp_path, "--redis", url, SECRET="s3cret") as router:
        assert b"s3cret" not in Path(f"/proc/{router.process.pid}/cmdline").read_bytes()
        health = router.get("/health")
        caches = health.json()["caches"]
        assert (caches["l2_on"], caches["l2_cause"]) == (False, "connection")
        metrics = router.get("/metrics").text
        assert 'pgscatter_l2_on{use="reads"} 0.0' in metrics
        assert router.stop() == 0
        (line,) = [line for line in router.lines() if line["event"] == "redis"]
        assert (line["level"], line["from"], line["to"]) == ("warning", None, "off")
        assert line["cause"] == "connection"
        # Nor do the nodes of the map exist.
        nodes = {line["node"]: line for line in router.lines() if line["event"] == "node state"}
        assert {name: (one["to"], one["cause"]) for name, one in nodes.items()} == {
            "s0-a": ("down", "unreachable"),
            "s1-a": ("down", "unreachable"),
        }
        for text in (router.log, health.text, metrics):
            assert "s3cret" not in text


def test_a_password_in_the_arguments_is_pointed_out(tmp_path: Path) -> None:
    with serving(tmp_path, "--redis", "redis://:s3cret@127.0.0.1:1/0") as router:
        assert router.stop() == 0
        (line,) = [line for line in router.log.splitlines() if "list of processes" in line]
        assert "--redis-password-file" in line and "s3cret" not in router.log


@pytest.mark.parametrize("asked", [pytest.param(False, marks=pytest.mark.full), True])
def test_a_dead_worker_is_replaced(tmp_path: Path, asked: bool) -> None:
    with serving(tmp_path, "--workers", "2") as router:
        workers = workers_of(router)
        assert len(workers) == 2
        if asked:
            # It dies while its supervisor waits for its answer; it is asked every half second.
            os.kill(int(workers[0]), signal.SIGSTOP)
            time.sleep(1.5)
        os.kill(int(workers[0]), signal.SIGKILL)
        until(lambda: "died and is replaced" in router.log)
        assert router.get("/livez").status_code == 200
        assert router.stop() == 0


@pytest.mark.parametrize(
    "edited",
    [MAP.replace("version: 12", "version: 13"), pytest.param("version: x\n", marks=pytest.mark.full)],
)
def test_workers_that_replace_others_serve_the_map_of_the_start(tmp_path: Path, edited: str) -> None:
    with serving(tmp_path, "--workers", "2") as router:
        (tmp_path / "map.yaml").write_text(edited)
        before = workers_of(router)
        for pid in before:
            os.kill(int(pid), signal.SIGKILL)
        until(lambda: router.log.count("died and is replaced") == 2)
        assert not set(before) & set(workers_of(router))
        versions = {router.get("/v1/shard-map").json()["version"] for _ in range(10)}
        assert versions == {12}
        assert "Traceback" not in router.log
        assert router.stop() == 0


def test_workers_that_die_young_are_replaced_ever_more_slowly() -> None:
    assert [pause(lives) for lives in (0, 1, 2, 3, 7, 100_000)] == [0, 0.5, 1, 2, 30, 30]


def test_a_worker_that_cannot_be_started_again_ends_no_other(tmp_path: Path) -> None:
    with serving(tmp_path, "--workers", "2") as router:
        (copy,) = tmp_path.glob("pgscatter-*/map.yaml")
        copy.rename(tmp_path / "away")  # as if cleaned up
        os.kill(int(workers_of(router)[0]), signal.SIGKILL)
        end = time.monotonic() + 60
        while "did not start, and is tried again" not in router.log:
            assert time.monotonic() < end and router.process.poll() is None, router.log
            assert router.get("/livez").status_code == 200
            time.sleep(0.1)
        (tmp_path / "away").rename(copy)
        until(lambda: router.log.count("nodes probed") == 3, 60)
        told = [line["replaced_in_s"] for line in router.lines() if "replaced_in_s" in line]
        assert told[:2] == [0, 0.5]
        assert router.stop() == 0


KEYS = 'keys: [{name: app, key: "${SERVE_TEST_KEY}", scopes: [admin]}, {name: b, key: other, scopes: [read]}]'
KEY = "key-of-the-start"


@pytest.mark.full
def test_workers_that_replace_others_take_the_keys_in_force(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SERVE_TEST_KEY", KEY)
    path = tmp_path / "keys.yaml"
    path.write_text(KEYS)
    with serving(tmp_path, "--workers", "2", "--api-keys", str(path)) as router:
        path.write_text("keys:\n  - {name: ap")
        for pid in workers_of(router):
            os.kill(int(pid), signal.SIGKILL)
        until(lambda: router.log.count("died and is replaced") == 2)
        for key, status in ((KEY, 200), ("another", 401)):
            for _ in range(6):
                assert router.get("/v1/nodes", **{"x-api-key": key}).status_code == status
        assert "Traceback" not in router.log
        assert router.stop() == 0


@pytest.mark.parametrize("workers", ["1", "2"])
def test_the_file_of_keys_is_read_once(tmp_path: Path, workers: str) -> None:
    """So it may come through a pipe, as from `--api-keys <(decrypt keys)`."""
    pipe = tmp_path / "keys.pipe"
    os.mkfifo(pipe)
    text = KEYS.replace("${SERVE_TEST_KEY}", KEY)
    writer = threading.Thread(target=pipe.write_text, args=(text,), daemon=True)
    writer.start()
    with serving(tmp_path, "--workers", workers, "--api-keys", str(pipe)) as router:
        writer.join(5)
        for key, status in ((KEY, 200), ("wrong", 401)):
            assert router.get("/v1/nodes", **{"x-api-key": key}).status_code == status
        assert router.stop() == 0


BROKEN = """
from router.http.life import Life
from router.http.server import Bounds, listen, serve
from router.http.supervisor import supervise

def create_app(life):
    raise RuntimeError("this application does not start")

if __name__ == "__main__":
    with listen("127.0.0.1", 0) as listener:
        life, bounds = Life(), Bounds(0, 1)
        life.obey_signals()
        if {workers} == 1:
            raise SystemExit(serve(create_app, listener, life, bounds, ready=exit))
        app = "broken:create_app"
        raise SystemExit(supervise(app, listener, life, bounds, workers={workers}, ready=exit))
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_an_application_that_does_not_start_is_not_tried_for_ever(tmp_path: Path, workers: int) -> None:
    script = tmp_path / "broken.py"
    script.write_text(BROKEN.format(workers=workers))
    env = {**os.environ, "PYTHONPATH": str(tmp_path), "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=110, env=env)
    assert done.returncode == 1
    assert "this application does not start" in done.stderr


def test_a_port_in_use_is_said_before_anything_else(tmp_path: Path) -> None:
    (tmp_path / "map.yaml").write_text(MAP)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, message = failed("serve", "--map", str(tmp_path / "map.yaml"), "--port", str(port))
    assert (status, message) == (1, f"cannot listen on 127.0.0.1 port {port}: Address already in use\n")


def test_a_faulty_map_or_key_file_ends_it_with_status_1(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("version: x\nshards: {}\n")
    status, message = failed("serve", "--map", str(tmp_path / "bad.yaml"))
    assert status == 1 and len(message.splitlines()) > 1
    (tmp_path / "map.yaml").write_text(MAP)
    (tmp_path / "keys.yaml").write_text("keys: [{name: a, key: s3cret, scopes: [all]}]")
    status, message = failed(
        "serve", "--map", str(tmp_path / "map.yaml"), "--api-keys", str(tmp_path / "keys.yaml")
    )
    assert status == 1
    assert message.endswith("keys[0].scopes[0]: unknown scope 'all'; known are read, write, admin\n")


def test_without_keys_it_listens_on_loopback_only(tmp_path: Path) -> None:
    (tmp_path / "map.yaml").write_text(MAP)
    status, message = failed("serve", "--map", str(tmp_path / "map.yaml"), "--host", "0.0.0.0", "--port", "0")
    assert status == 1
    assert message.startswith("0.0.0.0 can be reached from other machines, and there are no keys")


@pytest.mark.parametrize(
    "flags",
    [
        ["--port", "70000"],
        ["--workers", "0"],
        ["--workers", "65"],
        ["--redis", "memcached://localhost"],
        ["--redis", "redis://127.0.0.1:99999/0"],
        ["--redis", "redis://127.0.0.1:abc/0"],
        ["--redis", "redis://[::1/0"],
        ["--redis", "redis://h/abc"],
        ["--redis", "redis://h?db=x"],
        ["--redis", "redis://h?foo=1"],
        ["--redis", "unix://"],
        ["--redis", "redis://:${NOT_SET}@h"],
        ["--redis", "rediss://h?ssl_ca_certs=/nowhere"],
        ["--redis-password-file", "/nowhere"],
        ["--max-batch", "none"],
        ["--log-level", "loud"],
        ["--unknown"],
    ],
)
def test_wrong_usage_is_status_2(
    flags: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("router.commands.serve.raise_limit", lambda: None)
    before = signal.getsignal(signal.SIGHUP)
    try:
        with pytest.raises(SystemExit) as left:
            main(["serve", "--map", "map.yaml", *flags])
    finally:
        signal.signal(signal.SIGHUP, before)
    assert left.value.code == 2
    usage, *reason = capsys.readouterr().err.splitlines()
    assert usage.startswith("usage: pgscatter ")
    assert flags[0] in reason[-1]
    assert len(reason) == 1 or flags == ["--unknown"]


def test_the_head_of_a_request_is_bounded(tmp_path: Path) -> None:
    with serving(tmp_path) as router:
        host, port = router.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=30) as connection:
            connection.sendall(b"GET /livez HTTP/1.1\r\n")
            with contextlib.suppress(ConnectionError):
                for _ in range(20):
                    connection.sendall(b"x-filler: " + b"x" * 10_000 + b"\r\n")
                assert connection.recv(100).startswith(b"HTTP/1.1 431 ")
        assert router.get("/livez", **{"x-filler": "x" * 10_000}).status_code == 200
        assert router.stop() == 0


def test_the_command_says_its_version_and_what_it_can_do(capsys: pytest.CaptureFixture[str]) -> None:
    said = []
    for argument, status in (("--version", 0), ("--help", 0), ("brew", 2)):
        with pytest.raises(SystemExit) as left:
            main([argument])
        assert (left.value.code or 0) == status
        said.append(capsys.readouterr().out)
    assert re.fullmatch(r"pgscatter \d+\.\d+\.\d+\n", said[0])
    for command in ("map", "cluster", "schema", "load", "serve", "search"):
        assert re.search(rf"^    {command} ", said[1], re.MULTILINE)
