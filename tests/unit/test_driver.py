"""What a connection is made from: the DSN, and nothing of this machine."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import pwd
import re
import shutil
import socket
import ssl
import subprocess
import time
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from asyncpg import compat, connect_utils
from asyncpg.protocol import protocol

from router.network.dial import Dialer, Network
from router.network.names import Address, Names
from router.postgres import driver
from router.postgres.connection import NodeError, open_connection
from tests.unit.listening import listening

VARIABLES = {
    "PGHOST": "192.0.2.1",
    "PGPORT": "1",
    "PGUSER": "mallory",
    "PGPASSWORD": "secret",
    "PGDATABASE": "other",
    "PGSSLMODE": "verify-full",
    "PGSSLNEGOTIATION": "direct",
    "PGSSLCERT": "/none.crt",
    "PGSSLKEY": "/none.key",
    "PGSSLROOTCERT": "/none.pem",
    "PGSSLCRL": "/none.crl",
    "PGSSLMINPROTOCOLVERSION": "none",
    "PGSSLMAXPROTOCOLVERSION": "none",
    "PGTARGETSESSIONATTRS": "standby",
    "PGKRBSRVNAME": "other",
    "PGGSSLIB": "sspi",
    "PGSERVICE": "other",
    "USER": "mallory",
    "LOGNAME": "mallory",
}


@pytest.fixture
def hostile(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Every variable that asyncpg knows, and a home directory with every file that it knows."""
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    (tmp_path / ".postgresql").mkdir()
    for name in ("root.crt", "root.crl", "postgresql.key", "postgresql.crt"):
        (tmp_path / ".postgresql" / name).write_text("no certificate")
    (tmp_path / ".pgpass").write_text("*:*:*:*:secret\n")
    (tmp_path / ".pgpass").chmod(0o600)
    (tmp_path / ".pg_service.conf").write_text("[other]\nhost=192.0.2.1\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def nobody_is_dialled(monkeypatch: pytest.MonkeyPatch) -> None:
    async def dial(dialer: Dialer, host: str, port: int) -> None:
        pass

    monkeypatch.setattr(Dialer, "dial", dial)


def made_from(
    monkeypatch: pytest.MonkeyPatch, dsn: str
) -> tuple[object, connect_utils._ConnectionParameters]:  # type: ignore[name-defined]
    """The address and the parameters with which asyncpg would connect."""
    seen: list[tuple[object, Any]] = []

    async def connect_addr(**arguments: object) -> object:
        seen.append((arguments["addr"], arguments["params"]))
        raise ConnectionRefusedError

    monkeypatch.setattr(connect_utils, "_connect_addr", connect_addr)
    nobody_is_dialled(monkeypatch)
    with pytest.raises(OSError):
        asyncio.run(driver.connect(dsn))
    return seen[0]


def test_what_a_dsn_leaves_out_has_a_fixed_default(monkeypatch: pytest.MonkeyPatch, hostile: Path) -> None:
    address, params = made_from(monkeypatch, "postgresql://db.example")
    account = pwd.getpwuid(os.geteuid()).pw_name
    assert address == ("db.example", 5432)
    assert (params.user, params.database, params.password) == (account, account, None)
    assert (params.sslmode.name, params.ssl_negotiation, params.target_session_attrs) == (
        *("prefer", "postgres", "any"),
    )
    assert params.ssl.verify_mode == ssl.CERT_NONE
    assert (params.krbsrvname, params.gsslib) == (None, "gssapi")


def test_what_a_dsn_says_is_taken(monkeypatch: pytest.MonkeyPatch, hostile: Path) -> None:
    dsn = "postgresql://me:pw@db.example:6000/d?sslmode=disable&target_session_attrs=primary"
    address, params = made_from(monkeypatch, dsn)
    assert address == ("db.example", 6000)
    assert (params.user, params.database, params.password, params.ssl) == ("me", "d", "pw", False)
    assert params.target_session_attrs == "primary"
    passfile = hostile / "named"
    (hostile / ".pgpass").rename(passfile)
    _, params = made_from(monkeypatch, f"postgresql://me@db.example/d?sslmode=require&passfile={passfile}")
    assert (params.password, params.sslmode.name) == ("secret", "require")
    assert params.ssl.verify_mode == ssl.CERT_NONE


def test_an_account_without_a_name_is_told_to_name_a_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 4_000_000)
    nobody_is_dialled(monkeypatch)
    with pytest.raises(asyncpg.InterfaceError, match="names no user, and user id 4000000 has no name"):
        asyncio.run(driver.connect("postgresql://db.example"))


def test_the_driver_reads_its_surroundings_only_where_we_know() -> None:
    """A version of asyncpg that looks elsewhere, or by other names, must not come in unseen."""
    for module, name in (
        (connect_utils, "os"),
        (connect_utils, "getpass"),
        (connect_utils, "_dot_postgresql_path"),
        (compat, "get_pg_home_directory"),
    ):
        assert hasattr(module, name)
    package = Path(asyncpg.__file__).parent
    reads = re.compile(r"\benviron\b|\bgetenv\b|\.home\(\)|expanduser|\bgetuser\b")
    places = {path.name for path in package.glob("*.py") if reads.search(path.read_text())}
    assert places == {"connect_utils.py", "compat.py", "cluster.py"}  # the last is for its tests
    code = (package / "connect_utils.py").read_text()
    assert re.findall(r"^(?:def (\w+)|.*pathlib\.Path\.home\(\))", code, re.MULTILINE).count("") == 1
    assert set(re.findall(r"\bos\.(\w+)", code)) == {"environ", "getenv", "path"}


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl here")
def test_a_certificate_is_compared_with_the_name_and_not_with_the_address_that_was_found(
    tmp_path: Path,
) -> None:
    """A server that takes TLS, and ends the connection when it has."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
            *("-keyout", key, "-out", certificate, "-subj", "/CN=db.test", "-days", "2"),
            *("-addext", "subjectAltName=DNS:db.test"),
        ],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    asked: list[str | None] = []
    context.sni_callback = lambda _, name, __: asked.append(name)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(8)
        writer.write(b"S")
        with contextlib.suppress(OSError):
            await writer.start_tls(context)
            await reader.read(1)

    async def connect(name: str, port: int) -> None:
        network = Network(Names(10, look_up=lambda _: (Address(socket.AF_INET, "127.0.0.1"),)))
        dsn = f"postgresql://u@{name}:{port}/d?sslmode=verify-full&sslrootcert={certificate}"
        await driver.connect(dsn, network=network, timeout=30)

    async def both() -> None:
        async with listening(serve) as port:
            # It got through TLS, after which there was nobody.
            with pytest.raises((asyncpg.ConnectionDoesNotExistError, ConnectionResetError)):
                await connect("db.test", port)
            with pytest.raises(driver.FileError, match=r"mismatch.*other\.test"):
                await connect("other.test", port)

    asyncio.run(both())
    assert asked == ["db.test", "other.test"]


def test_what_scram_derives_from_a_password_is_derived_once(monkeypatch: pytest.MonkeyPatch) -> None:
    driver._take_only_the_dsn()
    derive = protocol.hashlib.pbkdf2_hmac
    assert derive("sha256", b"p", b"s", 4096) == hashlib.pbkdf2_hmac("sha256", b"p", b"s", 4096)
    assert derive("sha256", b"p", b"s", 4096) is derive("sha256", b"p", b"s", 4096)
    assert derive.cache_info().maxsize < 10_000
    # That is what the driver calls.
    assert "hashlib.pbkdf2_hmac(" in (Path(asyncpg.__file__).parent / "protocol" / "scram.pyx").read_text()


async def test_the_driver_finds_its_task_by_what_it_takes_for_its_loop() -> None:
    dialer: Any = driver.Dialer(Network())
    assert asyncio.current_task(dialer) is asyncio.current_task()
    assert dialer.get_debug() == asyncio.get_running_loop().get_debug()
    assert "_loop" in asyncpg.Connection.__slots__


async def test_a_server_that_refuses_is_found_out_before_its_dsn_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of what a refused connection would cost, that and TLS are more than half."""
    monkeypatch.setattr(asyncpg, "connect", lambda *_, **__: pytest.fail("it was read"))
    with pytest.raises(ConnectionRefusedError):
        await driver.connect("postgresql://u@127.0.0.1:1/d")


async def test_a_socket_that_the_driver_does_not_take_is_closed(tmp_path: Path) -> None:

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.set()
        assert await reader.read() == b""

    accepted, missing = asyncio.Event(), tmp_path / "missing.pem"
    async with listening(serve) as port:
        where = f"127.0.0.1:{port}/d?sslmode=verify-full&sslrootcert={missing}"
        with pytest.raises(driver.FileError, match=re.escape(str(missing))):
            await driver.connect(f"postgresql://u@{where}")
        async with asyncio.timeout(20):
            await accepted.wait()  # and what it reads ends


async def test_a_connection_is_ready_within_its_time_or_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not within that time for each of its steps."""
    ahead = 0.0
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: time.monotonic() + ahead)
    ready = b"".join(
        kind + (len(body) + 4).to_bytes(4, "big") + body
        for kind, body in (
            (b"R", bytes(4)),
            (b"S", b"server_version\x0016.4\x00"),
            (b"K", bytes(8)),
            (b"Z", b"I"),
        )
    )

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal ahead
        ahead = 59.6  # so much of the time goes by until the first answer
        writer.write(ready)
        await reader.read()  # what comes then gets no answer

    async with listening(serve) as port:
        dsn = f"postgresql://u@127.0.0.1:{port}/d?sslmode=disable"
        began = time.monotonic()
        with pytest.raises(NodeError, match="timed out"):
            await open_connection(dsn, connect_timeout=60, statement_timeout=5)
        # Another step's own time would be a minute.
        assert 0.3 < time.monotonic() - began < 20


@pytest.mark.parametrize(
    ("answer", "mode", "more"),
    [
        (b"", "prefer", ""),
        (b"", "disable", ""),
        (b"HTTP/1.1 400 Bad Request", "prefer", ""),
        (b"N", "require", ", or takes no TLS, which sslmode=require asks for"),
    ],
)
async def test_a_server_that_hangs_up_on_who_connects_is_said_to_and_not_logged_each_time(
    answer: bytes, mode: str, more: str, caplog: pytest.LogCaptureFixture
) -> None:
    """As a load balancer does that has no server behind it."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):
            await reader.readexactly(8)
            writer.write(answer)

    async with listening(serve) as port:
        dsn = f"postgresql://u@127.0.0.1:{port}/d?sslmode={mode}"
        with caplog.at_level("INFO"), pytest.raises(NodeError) as caught:
            await open_connection(dsn, connect_timeout=30, statement_timeout=5)
    assert str(caught.value) == f"the server ended the connection before it was ready{more}"
    assert caught.value.cause == "unreachable"
    assert caplog.records == []
