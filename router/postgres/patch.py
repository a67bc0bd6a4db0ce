"""The statement of a patch: SQL that changes fields of the rows that match, and of their metadata in place.

Within the metadata a change reaches through objects alone. What is missing or null on the way to a value that
is set becomes an object; anything else there is in the way, since to replace it would lose it, and nothing is
changed then. To remove what is not there changes nothing.

jsonb_set would do less: it makes no parents but the last, turns the whole into NULL where a value is, and
puts a member beyond an array's end at its end.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import msgspec

from router.postgres.conditions import PlainParams, where
from router.postgres.sql import Statement, any_of, mapped_columns
from router.query.filter import Filter
from router.query.patch import Changes, Patch
from shard_config.metadata_path import spelled
from shard_config.model import Collection
from shard_config.values import ValueType

__all__ = ["PatchStatement", "patch_by_ids", "patch_matching"]

_EMPTY = "'{}'::jsonb"


class PatchStatement(msgspec.Struct, frozen=True):
    """Returns one row: how many rows it `found`, should change (`wanted`) and has `changed`; and of those
    where something is in the way how many there are (`refused`), the id of one, and which of `parents` it is
    there."""

    statement: Statement
    parents: tuple[str, ...]


def patch_by_ids(
    collection: Collection, ids: Sequence[object], patch: Patch, defaulted: frozenset[str]
) -> PatchStatement:
    """`defaulted` are the columns that leaving out fills with anything but NULL."""
    params = PlainParams()
    return _patch(collection, any_of(collection, ids, params), patch, defaulted, params)


def patch_matching(
    collection: Collection, filter: Filter, patch: Patch, defaulted: frozenset[str]
) -> PatchStatement:
    params = PlainParams()
    return _patch(collection, where(filter, collection, params), patch, defaulted, params)


def _patch(
    collection: Collection, condition: str, patch: Patch, defaulted: frozenset[str], params: PlainParams
) -> PatchStatement:
    """Locks the rows by rising id before it changes them, as deletes and upserts do.

    A row that has all the values already is left alone: a new version of it would have to be put into every
    index of the table.
    """
    id_, table = collection.id.column, collection.table
    new = _new_values(collection, patch, defaulted, params)
    changed = " OR ".join(_differs(column, value) for column, value in new.items())
    parents = list(_in_the_way(collection, patch, params))
    refused = "NULL::int"
    if parents:
        cases = " ".join(f"WHEN {test} THEN {i}" for i, (test, _) in enumerate(parents))
        refused = f"CASE {cases} END"
    # By code point, as Python sorts text.
    collate = ' COLLATE "C"' if collection.id.type is ValueType.TEXT else ""
    # See `sql._delete` for the order, which no index has.
    sql = (
        f"WITH found AS (SELECT {id_} AS _id, {refused} AS _refused, {changed} AS _changed FROM {table}"
        f" WHERE {condition} ORDER BY greatest({id_}, {id_}){collate} FOR UPDATE),"
        f" updated AS (UPDATE {table} AS t"
        f" SET {', '.join(f'{column} = {value}' for column, value in new.items())} FROM found"
        f" WHERE t.{id_} = found._id AND found._changed"
        " AND NOT EXISTS (SELECT FROM found WHERE _refused IS NOT NULL) RETURNING 1)"
        " SELECT (SELECT count(*) FROM found) AS found,"
        " (SELECT count(*) FROM found WHERE _changed) AS wanted,"
        " (SELECT count(*) FROM updated) AS changed,"
        " (SELECT count(*) FROM found WHERE _refused IS NOT NULL) AS refused, one._id AS id, one._refused AS"
        " parent FROM (SELECT) AS always LEFT JOIN LATERAL"
        " (SELECT _id::text, _refused FROM found WHERE _refused IS NOT NULL LIMIT 1) AS one ON true"
    )
    return PatchStatement(Statement(sql, tuple(params.args)), tuple(parent for _, parent in parents))


def _new_values(
    collection: Collection, patch: Patch, defaulted: frozenset[str], params: PlainParams
) -> dict[str, str]:
    """SQL of what each column is to hold, by its name."""
    types = mapped_columns(collection)
    new = {column: params.add(value, types[column]) for column, value in patch.values.items()}
    for column in patch.unset:
        new[column] = "DEFAULT" if column in defaulted else f"NULL::{types[column]}"
    if patch.metadata is not None:
        column = str(collection.metadata)
        new[column] = _changed(column, patch.metadata, params)
        if not patch.metadata.sets:
            # There is nothing to remove from what is no object.
            new[column] = f"CASE jsonb_typeof({column}) WHEN 'object' THEN {new[column]} ELSE {column} END"
    return new


def _differs(column: str, value: str) -> str:
    """As texts, because 1 and 1.0 are equal and not the same."""
    if value == "DEFAULT":
        return "true"  # which it cannot be compared with
    return f'{column}::text COLLATE "C" IS DISTINCT FROM ({value})::text COLLATE "C"'


def _changed(operand: str, changes: Changes, params: PlainParams) -> str:
    """The JSON value `operand` with the changes made, where it is an object, or missing or null."""
    made = f"CASE jsonb_typeof({operand}) WHEN 'object' THEN {operand} ELSE {_EMPTY} END"
    if changes.removed:
        made = f"({made}) - {params.add(list(changes.removed), 'text[]')}"
    if changes.members:
        made = f"({made}) || {params.add(_object(changes.members), 'jsonb')}"
    for name, inner in changes.within.items():
        key = params.add(name, "text")
        member = f"({operand} -> {key})"
        part = f"jsonb_build_object({key}, {_changed(member, inner, params)})"
        if not inner.sets:
            part = f"CASE jsonb_typeof({member}) WHEN 'object' THEN {part} ELSE {_EMPTY} END"
        made = f"({made}) || {part}"
    return made


def _object(members: Mapping[str, str]) -> str:
    return f"{{{','.join(f'{msgspec.json.encode(name).decode()}:{text}' for name, text in members.items())}}}"


def _in_the_way(collection: Collection, patch: Patch, params: PlainParams) -> Iterator[tuple[str, str]]:
    """For each place that a change goes through: when a value there is in its way, and how it is called."""
    if patch.metadata is None:
        return
    column = str(collection.metadata)

    def walk(path: tuple[str, ...], changes: Changes) -> Iterator[tuple[str, str]]:
        at = f"{column} #> {params.add(list(path), 'text[]')}" if path else column
        name = f"metadata.{spelled(path)}" if path else "metadata"
        if changes.sets:
            yield f"jsonb_typeof({at}) NOT IN ('object', 'null')", name
        else:
            # Members of what is no object are not there, but an array has elements where a filter finds them.
            for removed in changes.removals():
                whole = params.add([*path, *removed], "text[]")
                yield f"jsonb_typeof({at}) = 'array' AND {column} #> {whole} IS NOT NULL", name
        for step, inner in changes.within.items():
            yield from walk((*path, step), inner)

    yield from walk((), patch.metadata)
