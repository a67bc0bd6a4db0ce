"""A locale of our own, which needs no language data of the system, and a database in it.

Letters go a A ä Ä b B c C …, as dictionaries of many languages have them, and not by code point. It is
compiled by `localedef`, which is a part of glibc.
"""

from __future__ import annotations

import shutil
import string
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import asyncpg

from deploy.local import Cluster

__all__ = ["NAME", "InDatabase", "can_compile", "compile_into", "search_path"]

NAME = "xx_XX.UTF-8"

_LETTERS = [pair for low in string.ascii_lowercase for pair in (low, low.upper())]
_LETTERS[2:2] = ["ä", "Ä"]
_HEAD = "comment_char %\nescape_char /\n"


def can_compile() -> bool:
    return shutil.which("localedef") is not None


def compile_into(folder: Path) -> None:
    """Make the locale, for programs that have `search_path(folder)` in LOCPATH, whoever runs them."""
    characters = [*map(chr, range(128)), "ä", "Ä"]
    codes = [f"{_symbol(c)} {''.join(f'/x{byte:02x}' for byte in c.encode())} x" for c in characters]
    charmap = "<code_set_name> UTF-8\n<comment_char> %\n<escape_char> /\n<mb_cur_min> 1\n<mb_cur_max> 6\n"
    (folder / "charmap").write_text(charmap + "CHARMAP\n" + "\n".join(codes) + "\nEND CHARMAP\n")
    kinds = {
        "upper": [c for c in _LETTERS if c.isupper()],
        "lower": [c for c in _LETTERS if c.islower()],
        "digit": list(string.digits),
        "space": list(" \t\n\v\f\r"),
    }
    classes = "\n".join(f"{kind} {';'.join(map(_symbol, members))}" for kind, members in kinds.items())
    pairs = [(c.lower(), c) for c in kinds["upper"]]
    classes += "\ntoupper " + ";".join(f"({_symbol(low)},{_symbol(up)})" for low, up in pairs)
    classes += "\ntolower " + ";".join(f"({_symbol(up)},{_symbol(low)})" for low, up in pairs)
    order = "\n".join(map(_symbol, _LETTERS))
    (folder / "source").write_text(
        f"{_HEAD}LC_CTYPE\n{classes}\nEND LC_CTYPE\n"
        f"LC_COLLATE\norder_start forward\n{order}\nUNDEFINED\norder_end\nEND LC_COLLATE\n"
    )
    # The categories that we leave out are worth a warning, and -c makes the locale all the same.
    subprocess.run(
        ["localedef", "-c", "-i", folder / "source", "-f", folder / "charmap", folder / NAME],
        capture_output=True,
        timeout=30,
    )
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)


def search_path(folder: Path) -> str:
    """With the system's own, where C.UTF-8 is."""
    return f"{folder}:/usr/lib/locale"


def _symbol(character: str) -> str:
    return f"<U{ord(character):04X}>"


class InDatabase:
    """The servers of a cluster, each with a database of its own; serves where a cluster does."""

    def __init__(self, cluster: Cluster, database: str) -> None:
        self.redis_url = cluster.redis_url
        self.nodes = [
            replace(node, database=database, dsn=node.dsn.rsplit("/", 1)[0] + f"/{database}")
            for node in cluster.nodes
        ]

    async def create(self, cluster: Cluster, locales: dict[str, str]) -> None:
        """By shard, in a locale of the C library."""
        for here, new in zip(cluster.nodes, self.nodes, strict=True):
            connection = await asyncpg.connect(here.dsn)
            try:
                await connection.execute(
                    f"CREATE DATABASE {new.database} TEMPLATE template0 ENCODING 'UTF8'"
                    f" LOCALE_PROVIDER libc LOCALE '{locales[here.shard]}'"
                )
            finally:
                await connection.close()

    async def ask(self, shard: str, query: str, *args: Any) -> Any:
        """The first value of the answer of a shard's primary."""
        dsn = next(node.dsn for node in self.nodes if node.shard == shard and node.role == "primary")
        connection = await asyncpg.connect(dsn)
        try:
            return await connection.fetchval(query, *args)
        finally:
            await connection.close()
