"""The collations that statements name, so that their answers do not depend on a server's locale.

`CODE_POINT` orders text as the router does when it routes and merges. `FOLDING` knows upper and lower
case of every script; it maps a character to one character, whatever stands around it. Equality names
none: texts are equal if their bytes are, under every deterministic collation, and an index serves
comparisons under its own collation only.
"""

from __future__ import annotations

from typing import Protocol

__all__ = ["CODE_POINT", "FOLDING", "stand_in"]

CODE_POINT = '"C"'
FOLDING = '"pg_c_utf8"'

# PostgreSQL 17 brought `FOLDING`, for databases in UTF-8. What older servers may have, the nearest first:
# of the C library, which maps single characters too, and of ICU.
_STAND_INS = ["C.utf8", "C.UTF-8", "und-x-icu"]
_QUERY = """
SELECT collname FROM pg_collation
WHERE collnamespace = 'pg_catalog'::regnamespace AND collname = ANY($1::text[])
  AND collencoding IN (-1, pg_char_to_encoding(getdatabaseencoding()))
ORDER BY array_position($1::text[], collname::text) LIMIT 1
"""


class _Version(Protocol):
    @property
    def major(self) -> int: ...


class _Server(Protocol):
    def get_server_version(self) -> _Version: ...

    async def fetchval(self, query: str, *args: object) -> object: ...


async def stand_in(connection: _Server, encoding: str) -> str | None:
    """What to name instead of `FOLDING` on this connection; None where the server has it."""
    if connection.get_server_version().major >= 17 and encoding == "UTF8":
        return None
    found = await connection.fetchval(_QUERY, _STAND_INS)
    return f'"{found or "default"}"'
