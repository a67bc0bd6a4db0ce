"""A shard as the load sees it: its primary, its table, and how far the load has come there."""

from __future__ import annotations

import asyncio

import msgspec

from router.bulk.resume import Load
from router.schema.primary import Primary

__all__ = ["Target"]

# What is written in this time to a primary that was replaced has to be loaded again.
_CONFIRM_SECONDS = 5.0


class Target(msgspec.Struct):
    """`copied` and `chunks` grow as parts are committed; nothing else changes.

    Attributes:
        index: the shard's index in `shard_names`.
        relation: oid of the table.
        owns, analyzes: whether the role may build the table's indexes, and gather its statistics.
        defaulted: the table's columns that leaving out fills with anything but NULL.
        chunks: numbers of the chunks that the shard has.
        earlier: rows that earlier runs have loaded.
        copied: rows that this run has.
        confirmed: when its primary was last found to be the primary still, by the loop's clock.
    """

    shard: str
    index: int
    primary: Primary
    relation: int
    owns: bool
    analyzes: bool
    defaulted: frozenset[str]
    load: Load
    chunks: set[int]
    earlier: int
    copied: int = 0
    confirmed: float = float("-inf")

    async def confirm(self) -> None:
        """See every few seconds that the primary has not been replaced; for one writer at a time.

        Raises:
            NodeError: it has.
        """
        now = asyncio.get_running_loop().time
        if now() - self.confirmed < _CONFIRM_SECONDS:
            return
        self.confirmed = now()
        try:
            await self.primary.confirm()
        except BaseException:
            self.confirmed = float("-inf")  # the next writer asks again
            raise
        self.confirmed = now()
