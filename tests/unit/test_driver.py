"""What a connection is made from: the DSN, and nothing of this machine."""

from __future__ import annotations

import asyncio
import os
import pwd
import re
import ssl
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from asyncpg import compat, connect_utils

from router.postgres import driver

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


def made_from(
    monkeypatch: pytest.MonkeyPatch, dsn: str
) -> tuple[object, connect_utils._ConnectionParameters]:  # type: ignore[name-defined]
    """The address and the parameters with which asyncpg would connect."""
    seen: list[tuple[object, Any]] = []

    async def connect_addr(**arguments: object) -> object:
        seen.append((arguments["addr"], arguments["params"]))
        raise ConnectionRefusedError

    monkeypatch.setattr(connect_utils, "_connect_addr", connect_addr)
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
