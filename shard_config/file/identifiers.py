"""Names that PostgreSQL takes without quotes, so that no statement depends on quoting."""

from __future__ import annotations

import re

from shard_config import limits

_IDENTIFIER = re.compile(limits.IDENTIFIER)

# `SELECT word FROM pg_get_keywords() WHERE catcode IN ('R', 'T')` of PostgreSQL 18, which the
# integration tests compare with the server they run on.
RESERVED = frozenset(
    """
    all analyse analyze and any array as asc asymmetric authorization binary both case cast check collate
    collation column concurrently constraint create cross current_catalog current_date current_role
    current_schema current_time current_timestamp current_user default deferrable desc distinct do else
    end except false fetch for foreign freeze from full grant group having ilike in initially inner
    intersect into is isnull join lateral leading left like limit localtime localtimestamp natural not
    notnull null offset on only or order outer overlaps placing primary references returning right select
    session_user similar some symmetric system_user table tablesample then to trailing true union unique
    user using variadic verbose when where window with
    """.split()
)
SYSTEM_COLUMNS = frozenset({"tableoid", "cmax", "xmax", "cmin", "xmin", "ctid"})
# The same rules as patterns.
PLAIN_NAME = rf"(?!(?:{'|'.join(sorted(RESERVED))})(?:\.|$)){limits.IDENTIFIER}"
COLUMN_NAME = rf"(?!(?:{'|'.join(sorted(SYSTEM_COLUMNS))})$){PLAIN_NAME}"


def complaint(name: str) -> str | None:
    """Why `name` cannot be used as it stands, or None where it can."""
    if not _IDENTIFIER.fullmatch(name):
        return "expected a lower-case name: a letter or _, then letters, digits and _, 63 at most"
    if name in RESERVED:
        return f"{name!r} is a reserved word of SQL and would need quotes; choose another name"
    return None


def column_complaint(name: str) -> str | None:
    """As `complaint`, for a column."""
    if name in SYSTEM_COLUMNS:
        return f"{name!r} is a system column of every PostgreSQL table; choose another name"
    return complaint(name)
