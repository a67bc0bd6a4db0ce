"""Ranked rows become groups of those that share a value. Pure.

Groups stand in the order of their best rows, and a group's rows in theirs. Rows without a value are one
group, as in SQL's GROUP BY. Invariant: a group is called full only if its size is reached, or if no further
row of its value can exist among what the search may find.
"""

from __future__ import annotations

from collections.abc import Container, Hashable, Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any

import msgspec

from router.query.composition import Group
from router.query.filter import And, Compare, Contains, Exists, Field, Filter, Not
from router.query.fusion import Fused
from router.query.metadata import scalar
from shard_config.values import json_form

__all__ = ["GroupKey", "Grouped", "filter_for", "grouped", "key_of_json", "key_of_value", "without_lost"]

_encoder = msgspec.json.Encoder(decimal_format="number")
# Metadata may hold numbers that have more digits than a float keeps.
_exactly = msgspec.json.Decoder(float_hook=Decimal)


class GroupKey(msgspec.Struct, frozen=True):
    """What rows of one group share.

    Attributes:
        same: equal for equal values, and for no others.
        json: the value as answers show it.
        value: the same as filters compare it; None for rows that have none.
        comparable: whether a filter can ask for it: not for arrays and objects.
    """

    same: Hashable
    json: bytes
    value: Any = None
    comparable: bool = True


class Grouped(msgspec.Struct):
    """A group that is being filled: its best rows, up to the size."""

    key: GroupKey
    rows: list[Fused]
    full: bool = False

    @property
    def account(self) -> Group:
        return Group(self.key.json, len(self.rows), self.full)


NONE = GroupKey(None, b"null")


def key_of_value(field: Field, value: Any) -> GroupKey:
    """For the value of a column as PostgreSQL sent it."""
    if value is None or field.column is None:
        return NONE
    form = json_form(field.column.type)
    shown = value if form is None else form(value)
    # NaN is equal to NaN here, as PostgreSQL has it; true, 1 and 1.0 never stand in one column.
    same: Hashable = "NaN" if value != value else value
    return GroupKey((same,), _encoder.encode(shown), value)


def key_of_json(text: str | None) -> GroupKey:
    """For a value of the metadata, as jsonb writes it."""
    if text is None or text == "null":
        return NONE
    try:
        value = _exactly.decode(text)
        same = _same(value)
    except RecursionError:  # deeper than what the router stores
        return GroupKey(("text", text), text.encode(), comparable=False)
    try:
        return GroupKey(same, text.encode(), scalar(value))
    except ValueError:  # an array, an object, or a number beyond what filters take
        return GroupKey(same, text.encode(), comparable=False)


def filter_for(field: Field, key: GroupKey) -> Filter | None:
    """What the rows of the group match, and no others; None where there is no such filter."""
    if key.same is None:
        return Not(Exists(field))
    if not key.comparable:
        return None
    equal = Compare(field, "=", key.value)
    if field.column is not None:
        return equal
    # In the metadata, equality looks into arrays as well, which are groups of their own.
    return And((equal, Not(Contains(field, (key.json.decode(),), every=False))))


def grouped(
    rows: Iterable[Fused], keys: Mapping[object, GroupKey], size: int, most: int | None = None
) -> list[Grouped]:
    """Groups of up to `size` of `rows`, at most `most`, in their order; `keys` has each row's by its id.

    A row without a key is left out.
    """
    found: dict[Hashable, Grouped] = {}
    for row in rows:
        key = keys.get(row.id)
        if key is None:
            continue
        group = found.get(key.same)
        if group is None:
            if most is not None and len(found) == most:
                continue
            group = found[key.same] = Grouped(key, [])
        if len(group.rows) < size:
            group.rows.append(row)
            group.full = len(group.rows) == size
    return list(found.values())


def without_lost(
    groups: Sequence[Group], ids: Sequence[object], kept: Container[object]
) -> tuple[Group, ...]:
    """`groups` of the rows `ids`, in their order, of which only those in `kept` are left."""
    left: list[Group] = []
    first = 0
    for group in groups:
        hits = sum([id_ in kept for id_ in ids[first : first + group.hits]])
        first += group.hits
        left.append(group if hits == group.hits else msgspec.structs.replace(group, hits=hits, full=False))
    return tuple(left)


def _same(value: Any) -> Hashable:
    """Equal where jsonb finds values equal: 1 and 1.0, but not 1 and true, nor 1 and "1"."""
    if isinstance(value, bool) or value is None:
        return ("constant", str(value))
    if isinstance(value, str):
        return ("string", value)
    if isinstance(value, list):
        return ("array", *map(_same, value))
    if isinstance(value, dict):
        return ("object", *sorted((name, _same(member)) for name, member in value.items()))
    return ("number", Decimal(str(value)) if isinstance(value, float) else value)
