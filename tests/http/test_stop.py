"""How `pgscatter serve` ends: what was told to whom before, and what is left behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from router.http.life import Life, Phase, after
from tests.http.callers import calling
from tests.http.fake import MAP
from tests.http.running import COMMAND, Router, serving, until, workers_of

TERM, INT, HUP = signal.SIGTERM, signal.SIGINT, signal.SIGHUP


@pytest.mark.parametrize(
    ("numbers", "phase"),
    [
        ([TERM], Phase.DRAINING),
        ([INT], Phase.FINISHING),
        ([TERM, TERM], Phase.FINISHING),
        ([TERM, INT], Phase.FINISHING),
        ([TERM, TERM, TERM], Phase.FINISHING),
        ([INT, TERM], Phase.FINISHING),
        ([INT, INT], Phase.LEAVING),
        ([TERM, INT, INT], Phase.LEAVING),
        ([INT, INT, TERM], Phase.LEAVING),
    ],
)
def test_each_signal_leads_further_towards_the_end(numbers: list[int], phase: Phase) -> None:
    life = Life()
    assert not life.ending
    for number in numbers:
        life.advance(after(life.phase, number))
    assert life.phase is phase and life.ending
    life.advance(Phase.SERVING)
    assert repr(life) == f"<Life {phase.name.lower()}>"


def port_of(router: Router) -> int:
    return int(router.url.rsplit(":", 1)[1])


@pytest.mark.parametrize("workers", ["1", "2"])
def test_sigterm_first_tells_everybody_and_still_answers(tmp_path: Path, workers: str) -> None:
    with serving(tmp_path, "--drain-delay", "120", "--workers", workers) as router:
        own = {"base_url": router.url, "timeout": 30}
        with httpx.Client(**own) as kept, httpx.Client(**own) as idle:
            assert "connection" not in kept.get("/livez").headers
            assert idle.get("/livez").status_code == 200
            router.process.send_signal(TERM)

            def closes(answer: httpx.Response) -> bool:
                assert answer.status_code == 200
                return answer.headers.get("connection") == "close"

            # Each worker is told in its turn, and these may be connected to different ones.
            until(lambda: router.get("/readyz").json().get("draining"))
            until(lambda: closes(kept.get("/livez")))
            until(lambda: closes(router.get("/livez")))
            ready = router.get("/readyz")
            assert (ready.status_code, ready.headers["retry-after"]) == (503, "1")
            # A second signal skips the delay, and the connection that has been idle is closed.
            assert router.stop() == 0
            with pytest.raises(httpx.ConnectError):
                idle.get("/livez")
        assert "Traceback" not in router.log and '"error"' not in router.log


def test_systemd_hears_of_the_start_and_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(30)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        with serving(tmp_path, "--drain-delay", "60") as router:
            assert manager.recv(100) == b"READY=1"
            router.process.send_signal(TERM)
            assert manager.recv(100) == b"STOPPING=1"
            assert router.stop() == 0


@pytest.mark.parametrize("workers", ["1", pytest.param("2", marks=pytest.mark.full)])
def test_ctrl_c_does_not_wait_for_load_balancers(tmp_path: Path, workers: str) -> None:
    with serving(tmp_path, "--drain-delay", "60", "--workers", workers) as router:
        assert router.stop(INT) == 0
        with pytest.raises(httpx.ConnectError):
            router.get("/livez")


def test_a_request_of_which_a_part_has_come_is_answered(tmp_path: Path) -> None:
    with serving(tmp_path) as router:
        with connected(router) as half, connected(router) as idle:
            half.sendall(b"GET /livez HT")
            idle.sendall(b"GET /livez HTTP/1.1\r\nhost: r\r\n\r\n")
            assert idle.recv(1000).startswith(b"HTTP/1.1 200")
            router.process.send_signal(TERM)
            assert idle.recv(1000) == b""  # the listener is closed by now
            half.sendall(b"TP/1.1\r\nhost: router\r\n\r\n")
            answer = b"".join(iter(lambda: half.recv(1000), b""))
            assert answer.startswith(b"HTTP/1.1 200 ") and b"connection: close\r\n" in answer
        assert router.process.wait(30) == 0


@pytest.mark.parametrize("workers", ["1", pytest.param("2", marks=pytest.mark.full)])
def test_a_successor_on_the_same_port_takes_over_without_a_failed_request(
    tmp_path: Path, workers: str
) -> None:
    flags = ("--reuse-port", "--workers", workers, "--drain-delay", "0.5")

    async def restart() -> None:
        with contextlib.ExitStack() as stack:
            old = stack.enter_context(serving(folder(tmp_path, "old"), *flags))
            port = port_of(old)
            async with calling(port) as callers:
                for name in ("new", "newer"):
                    await asyncio.sleep(0.3)
                    new = await asyncio.to_thread(Router, folder(tmp_path, name), *flags, f"--port={port}")
                    stack.callback(new.process.kill)
                    assert await asyncio.to_thread(old.stop) == 0
                    old = new
                await asyncio.sleep(0.2)
            assert callers.failures == []
            assert callers.answered > 200 and callers.told_to_close + callers.late >= 32
            assert await asyncio.to_thread(old.stop) == 0

    asyncio.run(restart())


@pytest.mark.full
async def test_behind_a_load_balancer_that_asks_for_readiness_no_request_fails(tmp_path: Path) -> None:
    flags = ("--drain-delay", "1")
    with serving(folder(tmp_path, "a"), *flags) as a, serving(folder(tmp_path, "b"), *flags) as b:
        async with balancing([port_of(a), port_of(b)]) as port, calling(port) as callers:
            await asyncio.sleep(0.5)
            assert await asyncio.to_thread(a.stop) == 0
            await asyncio.sleep(0.3)
        assert callers.failures == []
        assert callers.answered > 100 and callers.told_to_close >= 1
        assert b.stop() == 0


def test_a_port_is_shared_only_if_both_ask_for_it(tmp_path: Path) -> None:
    (tmp_path / "map.yaml").write_text(MAP)
    command = [*COMMAND, "serve", "--map", str(tmp_path / "map.yaml"), "--port"]
    with serving(folder(tmp_path, "first"), "--reuse-port") as first:
        done = subprocess.run([*command, f"{port_of(first)}"], capture_output=True, text=True, timeout=60)
        assert done.returncode == 1
        assert done.stderr == f"cannot listen on 127.0.0.1 port {port_of(first)}: Address already in use\n"
        assert first.get("/livez").status_code == 200


def test_what_is_not_done_in_time_is_refused_and_said(tmp_path: Path) -> None:
    with serving(tmp_path, "--drain-timeout", "0.3") as router, connected(router) as slow:
        url = b"/v1/collections/documents/documents"
        slow.sendall(b"PUT " + url + b" HTTP/1.1\r\nhost: r\r\ncontent-type: application/json\r\n")
        slow.sendall(b"content-length: 100\r\n\r\n{")
        under_way(router)
        assert router.stop() == 0
        answer = b"".join(iter(lambda: slow.recv(1000), b""))
        assert answer.startswith(b"HTTP/1.1 503 ") and b"connection: close\r\n" in answer
        assert b"the router ends" in answer and b"what was to be written may have been" in answer
        assert '"event":"requests cut off","requests":1' in router.log and "Traceback" not in router.log


@pytest.mark.parametrize("workers", ["1", pytest.param("2", marks=pytest.mark.full)])
def test_a_second_ctrl_c_leaves_at_once(tmp_path: Path, workers: str) -> None:
    with serving(tmp_path, "--workers", workers) as router, connected(router) as slow:
        slow.sendall(b"PUT /v1/collections/documents/documents HTTP/1.1\r\nhost: r\r\n")
        slow.sendall(b"content-type: application/json\r\ncontent-length: 100\r\n\r\n{")
        under_way(router)
        router.process.send_signal(INT)
        until(lambda: refuses(router))
        assert router.process.poll() is None
        assert router.stop(INT) == 0
        assert slow.recv(1000).startswith(b"HTTP/1.1 503 ")
        assert "Traceback" not in router.log


@pytest.mark.parametrize("workers", ["1", pytest.param("2", marks=pytest.mark.full)])
def test_sighup_ends_nothing(tmp_path: Path, workers: str) -> None:
    with serving(tmp_path, "--workers", workers) as router:
        for pid in (router.process.pid, *map(int, workers_of(router))):
            os.kill(pid, HUP)
        time.sleep(1)
        assert router.process.poll() is None
        assert router.get("/livez").status_code == 200
        assert "died" not in router.log and router.stop() == 0


def test_workers_end_when_their_supervisor_is_killed(tmp_path: Path) -> None:
    with serving(tmp_path, "--workers", "2", "--drain-delay", "60") as router:
        workers = workers_of(router)
        assert len(workers) == 2
        with connected(router) as idle, connected(router) as busy:
            busy.sendall(b"PUT /v1/collections/documents/documents HTTP/1.1\r\nhost: r\r\n")
            busy.sendall(b"content-type: application/json\r\ncontent-length: 100\r\n\r\n{")
            under_way(router)
            os.kill(router.process.pid, signal.SIGKILL)
            until(lambda: not any(Path(f"/proc/{pid}/status").exists() for pid in workers))
            assert idle.recv(10) == b""
            assert busy.recv(1000).startswith(b"HTTP/1.1 503 ")
        with socket.create_server(("127.0.0.1", port_of(router))):  # the port is free
            pass
        assert "the supervisor is gone" in router.log


def test_a_worker_that_hangs_does_not_keep_the_others_from_ending(tmp_path: Path) -> None:
    with serving(tmp_path, "--workers", "2") as router:
        stopped = int(workers_of(router)[0])
        os.kill(stopped, signal.SIGSTOP)
        time.sleep(1.2)  # it is being asked whether it serves
        router.process.send_signal(TERM)
        until(lambda: len(workers_of(router)) == 1)
        os.kill(stopped, signal.SIGCONT)
        assert router.process.wait(30) == 0


def test_a_supervisor_sleeps_while_it_waits_for_the_last_worker(tmp_path: Path) -> None:
    with serving(tmp_path, "--workers", "2") as router, connected(router) as slow:
        slow.sendall(b"PUT /v1/collections/documents/documents HTTP/1.1\r\nhost: r\r\n")
        slow.sendall(b"content-type: application/json\r\ncontent-length: 100\r\n\r\n{")
        under_way(router)
        router.process.send_signal(TERM)
        until(lambda: len(workers_of(router)) == 1)
        before = cpu_seconds(router.process.pid)
        time.sleep(1)
        assert cpu_seconds(router.process.pid) - before < 0.2
        assert router.process.poll() is None
        slow.close()
        assert router.process.wait(30) == 0


@pytest.mark.parametrize("number", [HUP, pytest.param(INT, marks=pytest.mark.full)])
def test_a_signal_to_all_processes_reaches_no_worker_before_it_can_take_it(
    tmp_path: Path, number: int
) -> None:
    """As a terminal sends it, and systemd with `KillMode=control-group`."""
    (tmp_path / "map.yaml").write_text(MAP)
    command = [*COMMAND, "serve", "--map", str(tmp_path / "map.yaml"), "--port", "0", "--workers", "2"]
    log = tmp_path / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(command, stderr=file, start_new_session=True)
    try:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        # All have been started, of which one keeps account of semaphores, and the first is importing.
        until(lambda: len(children.read_text().split()) == 3)
        worker = int(children.read_text().split()[1])
        until(lambda: cpu_seconds(worker) > 0.2)
        os.killpg(process.pid, number)
        if number == HUP:
            until(lambda: "serves map" in log.read_text())
            os.killpg(process.pid, INT)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
    assert "Traceback" not in log.read_text() and "did not start" not in log.read_text()


@pytest.mark.parametrize(("workers", "number"), [("1", TERM), pytest.param("2", INT, marks=pytest.mark.full)])
def test_a_start_that_waits_for_nodes_ends_when_told_to(tmp_path: Path, workers: str, number: int) -> None:
    """The node takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        text = MAP.replace(":5401/", f":{silent.getsockname()[1]}/")
        (tmp_path / "map.yaml").write_text(text)
        command = [*COMMAND, "serve", "--map", str(tmp_path / "map.yaml"), "--port", "0"]
        slow = ["--probe-timeout", "60", "--connect-timeout", "60", "--drain-delay", "60"]
        with (tmp_path / "log").open("wb") as log:
            process = subprocess.Popen([*command, *slow, "--workers", workers], stderr=log)
        try:
            assert select.select([silent], [], [], 30)[0]
            process.send_signal(number)
            assert process.wait(30) == 0
        finally:
            process.kill()
            process.wait()
        log_text = (tmp_path / "log").read_text()
        assert "Traceback" not in log_text and "serves map" not in log_text


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def folder(parent: Path, name: str) -> Path:
    made = parent / name
    made.mkdir()
    return made


def connected(router: Router) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port_of(router)), timeout=30)


def under_way(router: Router) -> None:
    """Wait until one request is being answered beside the one that asks."""
    until(lambda: "requests_in_flight 2.0" in router.get("/metrics").text)


def refuses(router: Router) -> bool:
    """Whether nobody listens on its port any more."""
    try:
        connected(router).close()
    except ConnectionRefusedError:
        return True
    return False


@contextlib.asynccontextmanager
async def balancing(ports: list[int]) -> AsyncIterator[int]:
    """A TCP load balancer over what is alive and not draining, asked every tenth of a second."""
    draining: set[int] = set()
    passing: set[asyncio.Task[None] | None] = set()
    turn = iter(range(1 << 30))

    async def ask() -> None:
        async with httpx.AsyncClient() as client:
            while True:
                for port in ports:
                    try:
                        answer = await client.get(f"http://127.0.0.1:{port}/readyz")
                        gone = "draining" in answer.json()
                    except httpx.HTTPError:
                        gone = True
                    (draining.add if gone else draining.discard)(port)
                await asyncio.sleep(0.1)

    async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
            writer.write_eof()

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        passing.add(task := asyncio.current_task())
        there = [port for port in ports if port not in draining]
        try:
            far_reader, far = await asyncio.open_connection("127.0.0.1", there[next(turn) % len(there)])
            await asyncio.gather(copy(reader, far), copy(far_reader, writer))
            far.close()
        finally:
            writer.close()
            passing.discard(task)

    asking = asyncio.create_task(ask())
    server = await asyncio.start_server(pass_on, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        server.close()
        async with asyncio.timeout(10):
            while passing:
                await asyncio.sleep(0.01)
