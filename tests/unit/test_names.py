"""Look-ups of names: one name's silence is nobody else's, and what was known stays in use."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from router.network.dial import Dialer, Network
from router.network.names import Address, Names
from router.settings import described

A, B = Address(socket.AF_INET, "192.0.2.1"), Address(socket.AF_INET, "192.0.2.2")


class Servers:
    """Of names, in place of the system's; a name that is `silent` gets no answer until the test ends."""

    def __init__(self) -> None:
        self.answers: dict[str, tuple[Address, ...] | OSError] = {}
        self.silent: set[str] = set()
        self.asked: list[str] = []
        self.end = threading.Event()

    def look_up(self, host: str) -> tuple[Address, ...]:
        self.asked.append(host)
        if host in self.silent:
            self.end.wait(30)
        answer = self.answers.get(host, socket.gaierror(socket.EAI_NONAME, "unknown"))
        if isinstance(answer, OSError):
            raise answer
        return answer


@pytest.fixture
def servers() -> Iterator[Servers]:
    made = Servers()
    yield made
    made.end.set()


async def test_names_without_an_answer_hold_up_no_other_and_take_one_thread_each(servers: Servers) -> None:
    names = Names(10, at_once=4, look_up=servers.look_up, clock=lambda: 0.0)
    silent = [f"silent-{number}" for number in range(20)]
    servers.silent.update(silent)
    servers.answers["well"] = (A,)
    before = threading.active_count()
    began = time.monotonic()
    waiting = [asyncio.create_task(_addresses(names, host)) for host in silent for _ in range(3)]
    await asyncio.sleep(0)
    # Four at a time have a quarter of a second each, and twenty are before it.
    async with asyncio.timeout(20):
        assert list(await names.addresses("well")) == [A]
    assert time.monotonic() - began > 1
    # Known by now, whatever waits.
    assert list(await names.addresses("well")) == [A]
    assert threading.active_count() - before <= 21
    for task in waiting:
        task.cancel()
    assert all(
        isinstance(end, asyncio.CancelledError)
        for end in await asyncio.gather(*waiting, return_exceptions=True)
    )
    assert len(servers.asked) == 21
    assert repr(names).startswith("<Names 21 known, ")
    # Who was late is not counted twice when its answer comes.
    servers.end.set()
    await ended(names)
    assert repr(names) == "<Names 21 known, 0 looked up, 0 without an answer>"


async def _addresses(names: Names, host: str) -> None:
    await names.addresses(host)


async def ended(names: Names) -> None:
    """Returns when no look-up is under way."""
    async with asyncio.timeout(20):
        while not repr(names).endswith(", 0 looked up, 0 without an answer>"):
            await asyncio.sleep(0.01)


async def test_what_was_known_is_used_when_a_look_up_fails_or_is_not_answered(
    servers: Servers, caplog: pytest.LogCaptureFixture
) -> None:
    now = 0.0
    names = Names(10, look_up=servers.look_up, clock=lambda: now)
    servers.answers["db"] = (A,)
    assert list(await names.addresses("db")) == [A]
    servers.answers["db"] = socket.gaierror(socket.EAI_AGAIN, "try again")
    now = 5.0
    assert list(await names.addresses("db")) == [A]
    await ended(names)  # who asks waits for it no longer than a quarter of a second
    now = 10.0
    assert list(await names.addresses("db")) == [A]
    await ended(names)
    assert servers.asked == ["db"] * 3
    servers.silent.add("db")
    now = 15.0
    began = time.monotonic()
    assert list(await names.addresses("db")) == [A]
    # Its servers are silent for thirty.
    assert 0.2 < time.monotonic() - began < 15.0
    with pytest.raises(StopIteration) as known:
        names.addresses("db").send(None)  # nobody waits for one that is late
    assert list(known.value.value) == [A]
    assert [record.getMessage() for record in caplog.records] == ["name does not resolve"]
    servers.answers["db"] = (B,)
    servers.end.set()
    async with asyncio.timeout(20):
        while list(await names.addresses("db")) != [B]:
            await asyncio.sleep(0.01)
    assert [record.getMessage() for record in caplog.records][1:] == ["name resolves again"]


async def test_a_name_that_was_never_known_and_has_no_address_is_an_error(servers: Servers) -> None:
    names = Names(10, look_up=servers.look_up)
    for host in ("none", "a" * 70 + ".example", ""):
        with pytest.raises(OSError):
            await names.addresses(host)
    assert list(await names.addresses("192.0.2.1")) == [A]
    assert list(await names.addresses("2001:db8::1")) == [Address(socket.AF_INET6, "2001:db8::1")]
    assert set(servers.asked) == {"none", "a" * 70 + ".example", ""}


async def test_an_error_that_many_are_told_keeps_nothing_of_them(servers: Servers) -> None:
    names = Names(10, look_up=servers.look_up, clock=lambda: 0.0)
    for _ in range(50):
        with pytest.raises(socket.gaierror) as caught:
            await names.addresses("none")
    assert servers.asked == ["none"]
    assert len(caught.traceback) < 5


def test_a_link_local_address_is_connected_to_by_its_interface(tmp_path: Path) -> None:
    """On either event loop; in a network of the test's own, where one may be made."""
    program = tmp_path / "dial.py"
    program.write_text(_DIALS)
    made = "ip link set lo up && ip -6 addr add fe80::1/64 dev lo nodad && exec "
    command = ["unshare", "-n", "sh", "-c", f'{made} "$0" "$1"', sys.executable, str(program)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if "unshare" in done.stderr or "ip:" in done.stderr:
        pytest.skip(f"no network of its own: {done.stderr.strip()[:80]}")
    assert (done.stdout, done.stderr) == ("connected\n" * 2, "")


_DIALS = """
import asyncio, socket, uvloop
from router.network.dial import Network

async def dial():
    server = socket.socket(socket.AF_INET6)
    server.bind(socket.getaddrinfo("fe80::1%lo", 0, type=socket.SOCK_STREAM)[0][4])
    server.listen()
    async with asyncio.timeout(20):
        sock, _ = await Network().dial("fe80::1%lo", server.getsockname()[1])
    sock.close()
    server.close()
    print("connected")

uvloop.run(dial())
asyncio.run(dial())
"""


async def test_a_name_in_use_is_looked_up_anew_and_a_move_is_told(servers: Servers) -> None:
    now = 0.0
    names = Names(10, look_up=servers.look_up, clock=lambda: now)
    servers.answers["db"] = (A, B)
    await names.addresses("db")
    names.worked("db", B)
    assert list(await names.addresses("db")) == [B, A]
    assert not names.left("db", A)
    servers.answers["db"] = (B,)
    now = 9.0
    assert not names.left("db", A)
    assert len(servers.asked) == 1
    now = 11.0
    async with asyncio.timeout(20):
        while not names.left("db", A):
            await asyncio.sleep(0.01)
    assert not names.left("db", B)
    assert len(servers.asked) == 2


class Noting(Network):
    """Notes which addresses are tried."""

    def __init__(self, names: Names) -> None:
        super().__init__(names)
        self.tried: list[str] = []

    async def connect(self, address: Address, port: int) -> socket.socket:
        self.tried.append(address.ip)
        return await super().connect(address, port)


async def test_a_dead_address_does_not_take_the_time_of_the_next(servers: Servers) -> None:
    dead, alive = socket.create_server(("127.0.0.2", 0), backlog=0), socket.create_server(("127.0.0.3", 0))
    port = dead.getsockname()[1]
    alive.close()
    alive = socket.create_server(("127.0.0.3", port))
    fill = []
    with dead, alive:
        # Once its queue is full, the system answers no more to who wants to connect.
        with contextlib.suppress(TimeoutError):
            while True:
                fill.append(socket.create_connection(("127.0.0.2", port), timeout=0.2))
        servers.answers["db"] = tuple(Address(socket.AF_INET, f"127.0.0.{n}") for n in (2, 3))
        network = Noting(Names(10, look_up=servers.look_up))
        # The system itself would give the dead one two minutes.
        async with asyncio.timeout(20):
            for first in ("127.0.0.2", "127.0.0.3"):
                network.tried.clear()
                sock, address = await network.dial("db", port)
                sock.close()
                assert address.ip == "127.0.0.3"
                # From then on it is the first to be tried.
                assert network.tried[0] == first
    for sock in fill:
        sock.close()


class AtOnce(Network):
    """Every address takes the connection in the same moment."""

    def __init__(self, names: Names, attempts: int) -> None:
        super().__init__(names)
        self.sockets: list[socket.socket] = []
        self._attempts = attempts
        self._all = asyncio.Event()

    async def connect(self, address: Address, port: int) -> socket.socket:
        self.sockets.append(await super().connect(address, port))
        if len(self.sockets) == self._attempts:
            self._all.set()
        sock = self.sockets[-1]
        await self._all.wait()
        return sock


async def test_of_several_addresses_that_take_the_connection_one_keeps_it(servers: Servers) -> None:
    with socket.create_server(("0.0.0.0", 0)) as server:
        servers.answers["db"] = tuple(Address(socket.AF_INET, f"127.0.0.{n}") for n in (2, 3))
        network = AtOnce(Names(10, look_up=servers.look_up), 2)
        sock, _ = await network.dial("db", server.getsockname()[1])
        assert [one.fileno() for one in network.sockets if one is not sock] == [-1]
        assert sock.fileno() != -1
        sock.close()


async def test_whatever_is_opened_for_a_connection_reaches_the_same_address(servers: Servers) -> None:
    with socket.create_server(("127.0.0.2", 0)) as first:
        port = first.getsockname()[1]
        servers.answers["db"] = (Address(socket.AF_INET, "127.0.0.2"),)
        network = Network(Names(0, look_up=servers.look_up))
        dialer = Dialer(network)
        transport, _ = await dialer.create_connection(asyncio.Protocol, "db", port)
        assert not dialer.moved
        servers.answers["db"] = (Address(socket.AF_INET, "127.0.0.3"),)
        async with asyncio.timeout(20):
            while not dialer.moved:
                await asyncio.sleep(0.01)
        other, _ = await dialer.create_connection(asyncio.Protocol, "db", port)
        assert other.get_extra_info("peername") == ("127.0.0.2", port)
        for end in (transport, other):
            end.close()


MOST = 32767.0


@pytest.mark.parametrize(
    ("silence", "taking", "set_to"),
    [
        (12.0, 9.0, [12, 4, 3, 9_000]),
        (12.0, None, [12, 4, 3, 0]),
        # As short and as long as a setting may be: neither is the system's own time.
        (0.0001, 0.0001, [1, 1, 3, 1]),
        (MOST, MOST, [32767, 10922, 3, 32_767_000]),
    ],
)
async def test_connections_are_watched_by_the_system(
    silence: float, taking: float | None, set_to: list[int]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        sock, _ = await Network(silence=silence, taking=taking).dial("127.0.0.1", server.getsockname()[1])
        with sock:
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            idle, interval, count = socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT
            options = (idle, interval, count, socket.TCP_USER_TIMEOUT)
            assert [sock.getsockopt(socket.IPPROTO_TCP, option) for option in options] == set_to


def test_no_time_can_be_set_that_the_system_does_not_take() -> None:
    setting = next(setting for setting in described() if setting.name == "tcp_timeout")
    assert setting.parse(str(MOST)) == MOST
    with pytest.raises(ValueError, match="above 0 and at most 32767"):
        setting.parse(str(MOST + 1))
