"""JSON that is written in pieces, and a turn for everybody else after each.

Invariant: no piece takes the loop for longer than some 0.5 ms, whatever the rows hold.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from time import perf_counter

from router.postgres import sql
from router.query.hits import Fields, Notes, encode_hits, fields_of, hit_of, pieces_of
from router.query.ranked import Ranked
from router.query.types import SearchQuery

__all__ = ["SLICE_BYTES", "array_of", "json_of", "write_slices", "write_yielding"]

# Of rows that become JSON in one turn of the loop: 0.5 ms of vectors.
SLICE_BYTES = 1 << 16
# A row of more becomes JSON piece by piece itself.
_WIDE_BYTES = 1 << 18
# What a hit without columns counts as.
_HIT_BYTES = 64


async def json_of(query: SearchQuery, rows: Sequence[Ranked], width: int, notes: Notes = None) -> list[bytes]:
    """The JSON array of complete rows, `width` bytes wide each, in as many pieces as it takes turns."""
    if len(rows) * max(width, _HIT_BYTES) <= SLICE_BYTES:
        return [encode_hits(rows, _fields(query), notes)]
    pieces: list[bytes] = []
    await write_slices(query, rows, width, pieces.append, notes)
    return array_of(pieces)


async def write_slices(
    query: SearchQuery,
    rows: Sequence[Ranked],
    width: int,
    write: Callable[[bytes], object],
    notes: Notes = None,
) -> None:
    """Write the JSON of rows, each and a comma; none of them is wider than `width` bytes.

    After each slice everybody else has a turn, as long as the slice took.
    """
    fields = _fields(query)
    each = max(1, SLICE_BYTES // max(width, _HIT_BYTES))
    for start in range(0, len(rows), each):
        part = rows[start : start + each]
        began = perf_counter()
        if width > _WIDE_BYTES:
            hit = hit_of(*part[0], fields)
            note = None if notes is None else notes[part[0][0][0]]
            await write_yielding(pieces_of(hit, note), write)
            write(b",")
            continue
        array = memoryview(encode_hits(part, fields, notes))
        write(b"".join((array[1:-1], b",")))
        await asyncio.sleep(perf_counter() - began)


async def write_yielding(pieces: Iterable[bytes], write: Callable[[bytes], object]) -> None:
    """Write `pieces`, and let everybody else have a turn after each."""
    for piece in pieces:
        write(piece)
        await asyncio.sleep(0)


def array_of(pieces: list[bytes]) -> list[bytes]:
    """Rows that each end with a comma, as an array."""
    if pieces:
        pieces[-1] = pieces[-1][:-1]
    return [b"[", *pieces, b"]"]


def _fields(query: SearchQuery) -> Fields:
    if not query.include:
        return ()
    names = [name for name, _ in sql.result_columns(query.collection, query.include)]
    return fields_of(query.collection, names, query.vector_format)
