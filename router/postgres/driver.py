"""Opens asyncpg's connections, so that a DSN alone says where they lead and how.

asyncpg fills what a DSN leaves out as libpq does: from a dozen PG* variables, from ~/.pgpass and from
~/.postgresql. Two routers with one map would then reach different servers, and a home directory that
cannot be read would stop every connection. Invariant: what the map leaves out has a fixed default.

What scram derives from a password is kept, because it is made to be slow: a router that opens a thousand
connections again would spend a second of its processor on what it knows.

Hosts are found and sockets opened by `router.network`, for connections as for the requests to cancel what
runs on them.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import pwd
import ssl
from functools import cache, lru_cache
from types import SimpleNamespace
from typing import Any, TypeVar, overload

import asyncpg
from asyncpg import compat, connect_utils
from asyncpg.protocol import protocol

from router.network.dial import Dialer, Network
from router.postgres.dsn_files import file_complaints
from shard_config.dsn import parameters, server

__all__ = ["FileError", "connect", "create_pool"]

C = TypeVar("C", bound=asyncpg.Connection)

# Not what a server that is away causes: many may be away at once, and files take time to read.
_MAY_BE_FILES = (
    *(FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, ssl.SSLError),
    # A server that refuses the client's certificate hangs up.
    *(ConnectionResetError, BrokenPipeError, asyncpg.PostgresConnectionError),
    *(asyncpg.ClientConfigurationError, asyncpg.InvalidAuthorizationSpecificationError),
)


class FileError(OSError):
    """Lasts until the file is mended; the text says which one it is."""


_DERIVED = 4096


@overload
async def connect(
    dsn: str, *, connection_class: type[C], network: Network | None = None, **options: Any
) -> C: ...
@overload
async def connect(dsn: str, **options: Any) -> asyncpg.Connection: ...
async def connect(dsn: str, *, network: Network | None = None, timeout: float = 60.0, **options: Any) -> Any:
    """As `asyncpg.connect`, with nothing from the environment or the home directory.

    `network` remembers addresses from one connection to the next. The connection has a `Dialer` for its
    `_loop`. A server that refuses connections is found out first: of what one costs, most is to read the DSN
    and to prepare TLS.

    Left out of a DSN are: port 5432, the name of this process's account as user, the user's name as
    database, no password, `sslmode=prefer`, no certificates.

    Raises:
        FileError: a file that the DSN names is at fault, or does not vouch for the server's certificate.
        asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError
    """
    _take_only_the_dsn()
    dialer = Dialer(network or Network())
    where = server(dsn)
    try:
        async with asyncio.timeout(timeout):
            if not where.host.startswith("/"):
                await dialer.dial(where.host, where.port)
            loop: Any = dialer
            return await asyncpg.connect(dsn, loop=loop, timeout=timeout, **options)
    except _MAY_BE_FILES as exc:
        said = _about_files(dsn, exc)
        if said is None:
            raise
        raise FileError(said) from exc
    finally:
        dialer.discard()


async def create_pool(dsn: str, **options: Any) -> asyncpg.Pool:
    """As `asyncpg.create_pool`, with connections as those of `connect`."""
    _take_only_the_dsn()
    return await asyncpg.create_pool(dsn, **options)


def _about_files(dsn: str, exc: BaseException) -> str | None:
    """What `exc` has to do with the files of the DSN, if it has."""
    wrong = file_complaints(dsn)
    if wrong:
        return "; ".join(wrong)
    if isinstance(exc, ssl.SSLCertVerificationError):
        authority = parameters(dsn).get("sslrootcert")
        refused = f"the server's certificate is refused: {exc.verify_message}"
        return f"TLS failed: by sslrootcert={authority}, {refused}"
    return None


@cache
def _take_only_the_dsn() -> None:
    """Change what asyncpg looks at, for this process.

    It has no option for that, and TLS leaves no other way: no argument says that there is no client
    certificate.
    """
    nothing = SimpleNamespace(environ={}, getenv=lambda name, default=None: default, path=os.path)
    for module, name, value in (
        (connect_utils, "os", nothing),
        (connect_utils, "getpass", SimpleNamespace(getuser=_account_name)),
        (connect_utils, "_dot_postgresql_path", lambda filename: None),
        (compat, "get_pg_home_directory", lambda: None),
    ):
        setattr(module, name, value)
    # By password, salt and number of rounds; each server has a salt of its own per role.
    derived = lru_cache(maxsize=_DERIVED)(hashlib.pbkdf2_hmac)
    protocol.hashlib = SimpleNamespace(sha256=hashlib.sha256, pbkdf2_hmac=derived)  # type: ignore[attr-defined]


def _account_name() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        raise asyncpg.ClientConfigurationError(
            f"the DSN names no user, and user id {os.geteuid()} has no name on this machine"
        ) from None
