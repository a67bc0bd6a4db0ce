"""A shard as the load sees it: its primary, its table, and how far the load has come there."""

from __future__ import annotations

import msgspec

from router.bulk.resume import Load
from router.schema.primary import Primary

__all__ = ["Target"]


class Target(msgspec.Struct):
    """`copied` and `chunks` grow as parts are committed; nothing else changes.

    Attributes:
        index: the shard's index in `shard_names`.
        relation: oid of the table.
        defaulted: the table's columns that leaving out fills with anything but NULL.
        chunks: numbers of the chunks that the shard has.
        earlier: rows that earlier runs have loaded.
        copied: rows that this run has.
    """

    shard: str
    index: int
    primary: Primary
    relation: int
    defaulted: frozenset[str]
    load: Load
    chunks: set[int]
    earlier: int
    copied: int = 0
