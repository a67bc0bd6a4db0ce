"""Which indexes of the map would let a filter's matching rows be found without reading the others. Pure.

It goes by the map and the filter's form: whether an index would be faster is for a measurement to say.

Invariant: with the advised indexes in the map, `advised` says nothing more of the same filter.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from router.query.filter import And, Compare, Contains, Exists, Field, Filter, In, Like, Not, Or
from shard_config.metadata_path import spelled
from shard_config.model import Collection, MetadataType

__all__ = ["Advice", "advised", "fields"]

# As in router.postgres.conditions: longer lists of JSON are looked up in a hash table, and not in an index.
_LISTED = 16


class Advice(msgspec.Struct, frozen=True):
    """An index that the map lacks: `field` is as filters name it, `type` None for a column."""

    field: str
    type: MetadataType | None = None

    def __str__(self) -> str:
        """What to write into the map."""
        if self.type is None:
            return f"columns.{self.field}.index: true"
        return f"metadata.indexes.{self.field.removeprefix('metadata.')}: {self.type}"


def advised(filter: Filter, collection: Collection) -> tuple[Advice, ...]:
    """The indexes that `filter` lacks; empty where those of the map serve it, and where none could.

    Of conditions that must all hold it is the first one of the most selective kind that counts.
    """
    return tuple(dict.fromkeys((_lacking(filter, collection) or _Lacking(0)).advice))


def fields(filter: Filter) -> list[str]:
    """What `filter` compares, as filters name it, each once."""
    match filter:
        case And(parts) | Or(parts):
            return list(dict.fromkeys(name for part in parts for name in fields(part)))
        case Not(part):
            return fields(part)
    return [_name(filter.field)]


def _name(field: Field) -> str:
    return field.column.name if field.column is not None else f"metadata.{spelled(field.path)}"


class _Lacking(msgspec.Struct, frozen=True):
    """What a condition lacks, and how few rows conditions of its kind usually keep: less is fewer."""

    rank: int
    advice: tuple[Advice, ...] = ()


def _lacking(filter: Filter, collection: Collection) -> _Lacking | None:
    """None where no index can serve."""
    match filter:
        case And(parts):
            found = [one for part in parts if (one := _lacking(part, collection)) is not None]
            return min(found, key=lambda one: (bool(one.advice), one.rank), default=None)
        case Or(parts):
            each = [_lacking(part, collection) for part in parts]
            there = [one for one in each if one is not None]
            if not there or len(there) < len(each):
                return None
            return _Lacking(max(one.rank for one in there), sum((one.advice for one in there), ()))
        case Not(Exists(Field(column=column) as field)) if column is not None:
            return _on(field, 1, [], collection)
        case Compare(field, "=", value):
            return _on(field, 0, [value], collection)
        case In(field, values):
            return _on(field, 1, values, collection) if field.column or len(values) <= _LISTED else None
        case Like(field, pattern, False) if pattern[:1] not in ("", "%", "_"):
            return _on(field, 2, [pattern], collection)
        case Contains(field, elements, every):
            if not every and len(elements) > _LISTED:
                return None
            return _at(field, 1, MetadataType.ARRAY, collection)
        case Compare(field):
            return _on(field, 3, [filter.value], collection)
    return None


def _on(field: Field, rank: int, values: Sequence[object], collection: Collection) -> _Lacking | None:
    """Of a comparison with `values`."""
    column = field.column
    if column is None:
        kinds = {_kind(value) for value in values}
        kind = kinds.pop() if len(kinds) == 1 else None
        # An index for arrays finds equal scalars of every type.
        if rank <= 1 and collection.metadata_indexes.get(field.path) is MetadataType.ARRAY:
            return _Lacking(rank)
        return None if kind is None else _at(field, rank, kind, collection)
    if column.index or column == collection.id or column == collection.sharding.key:
        return _Lacking(rank)
    if column.name not in collection.columns:
        return None  # the content, which is too long to be indexed as a whole
    return _Lacking(rank, (Advice(column.name),))


def _at(field: Field, rank: int, type_: MetadataType, collection: Collection) -> _Lacking | None:
    present = collection.metadata_indexes.get(field.path)
    if present is type_:
        return _Lacking(rank)
    if present is not None:
        return None  # one path, one index
    return _Lacking(rank, (Advice(_name(field), type_),))


def _kind(value: object) -> MetadataType | None:
    if isinstance(value, bool):
        return None
    return MetadataType.TEXT if isinstance(value, str) else MetadataType.NUMBER
