"""The statements of a search: one that answers one, and one that answers many of the same shape.

A shape is what a statement's text depends on; equal shapes give the same text, so that text names a
prepared statement, and searches of one shape may share a statement whatever their vectors, limits and
filter values are.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import msgspec
from cachetools import LRUCache

from router.postgres.conditions import where
from router.postgres.sql import distance_operator, result_columns
from router.query.filter import Filter
from router.query.types import Scan, Shape
from shard_config.model import Collection, Quantization
from shard_config.values import ValueType

__all__ = ["SearchStatement", "SearchStatements"]

_SHAPES = 1024
_LEAST_LITERAL = 16


class SearchStatement(msgspec.Struct, frozen=True):
    """`key` is equal for searches that may share a statement, None where none may."""

    shape: Shape
    args: tuple[object, ...]
    key: Hashable | None


class _Arguments:
    """Numbers arguments as they come; `references` says how the statement names each."""

    def __init__(self, *, together: bool) -> None:
        self.args: list[object] = []
        self.types: list[str] = []
        self.shared: list[int] = []
        self._together = together

    def add(self, value: object, type_: str) -> str:
        number = self._next(value, type_)
        return f"q.a{number}" if self._together else f"${number}::{type_}"

    def share(self, value: object, type_: str) -> str:
        number = self._next(value, type_)
        self.shared.append(number - 1)
        return f"${number}::{type_}"

    def _next(self, value: object, type_: str) -> int:
        self.args.append(value)
        self.types.append(type_)
        return len(self.args)

    def unnested(self) -> str:
        """The arguments that differ, as a table `q` of one row per search, numbered by `n`."""
        own = [i for i in range(len(self.args)) if i not in self.shared]
        # The sub-selects hide how many there are: a plan made for any number is made once, where one made
        # for this number would be made again for every statement.
        arrays = ", ".join(f"(SELECT ${i + 1}::{self.types[i]}[])" for i in own)
        names = ", ".join(f"a{i + 1}" for i in own)
        return f"unnest({arrays}) WITH ORDINALITY q({names}, n)"


class SearchStatements:
    """Texts by shape; the least recently used are forgotten."""

    def __init__(self) -> None:
        self._shapes: LRUCache[tuple[object, ...], Shape] = LRUCache(_SHAPES)

    def __repr__(self) -> str:
        return f"<SearchStatements {len(self._shapes)} shapes>"

    def search(
        self,
        collection: Collection,
        vector: bytes,
        *,
        limit: int,
        candidates: int,
        ef_search: int,
        scan: Scan,
        filter: Filter | None,
        include: frozenset[str],
        shown: int | None = None,
    ) -> SearchStatement:
        """The nearest `limit` rows as (id, distance, *included columns), ascending by (distance, id).

        `vector` is in wire format. The connection's hnsw.ef_search must be `ef_search`. If `shown` is given,
        the included columns are NULL in all but that many of the nearest rows.
        """
        arguments = _Arguments(together=False)
        query = arguments.add(vector, str(collection.vector.type))
        brought, wanted = arguments.add(candidates, "int"), arguments.add(limit, "int")
        ranks = None if shown is None else arguments.add(shown, "int")
        condition = "" if filter is None else where(filter, collection, arguments)
        literal = max(_LEAST_LITERAL, 1 << (candidates - 1).bit_length())
        # The planner takes a wide scan for dear, so a plan made for one may read the whole table; kept, it
        # would do so for narrow ones, too.
        width = 0 if scan is Scan.EXACT else 1 << (ef_search - 1).bit_length()
        name = (collection.name, scan, literal, width, include, shown is None, condition)
        shape = self._shapes.get(name)
        if shape is None:
            # The sub-select hides the number from plans that are made for one search, which else might read
            # the table where the plan for any search uses the index: pages of one search would disagree.
            hidden = f"(SELECT {brought})"
            single = _one(collection, query, condition, hidden, wanted, ranks, literal, scan, include)
            hint = f"/* ef_search up to {width} */ " if width else ""
            together = None
            if scan is Scan.INDEX:
                together = hint + _many(collection, filter, literal, include, some=shown is not None)
            shape = Shape(hint + single, together, tuple(arguments.shared))
            self._shapes[name] = shape
        args = tuple(arguments.args)
        if shape.together is None:
            return SearchStatement(shape, args, None)
        return SearchStatement(shape, args, (shape.single, ef_search, *[args[i] for i in shape.shared]))


def _one(
    collection: Collection,
    query: str,
    condition: str,
    brought: str,
    wanted: str,
    ranks: str | None,
    literal: int,
    scan: Scan,
    include: frozenset[str],
) -> str:
    """A search's statement.

    The innermost query is the one that the HNSW index serves. Its LIMIT is a literal, because with a
    parameter there a generic plan sorts the whole table; the one around it reads no more than the
    parameter says. The outer query has the full distance where the index holds less, and orders ties
    and what an iterative scan found out of order.
    """
    columns = [column for _, column in result_columns(collection, include)]
    distance = f"{collection.vector.column} {distance_operator(collection.vector.metric)} {query}"
    # Adding 0 keeps the index out. An index scan knows no ids; asked for their order, it is read until the
    # distance changes, by an incremental sort.
    order = f"({distance}) + 0" if scan is Scan.EXACT else _index_distance(collection, query)
    if scan is not Scan.INDEX:
        order += f", t.{_id(collection)}"
    read = "".join(f", {column} AS _c{i}" for i, column in enumerate(columns))
    nearest = (
        f"SELECT {_id(collection)} AS _id, {distance} AS _d{read} FROM {collection.table} t"
        f"{' WHERE ' + condition if condition else ''} ORDER BY {order} LIMIT {literal}"
    )
    # NaN is what cosine makes of a zero vector, which no direction compares to.
    rows = f"(SELECT * FROM ({nearest}) i LIMIT {brought}) r WHERE _d <> 'NaN'"
    passed = "".join(f", _c{i}" for i in range(len(columns)))
    if ranks is not None:
        rows = f"(SELECT *, row_number() OVER (ORDER BY _d, _id) AS _n FROM {rows}) s"
        passed = "".join(f", CASE WHEN _n <= {ranks} THEN _c{i} END" for i in range(len(columns)))
    return f"SELECT _id, _d{passed} FROM {rows} ORDER BY _d, _id LIMIT {wanted}"


def _many(
    collection: Collection, filter: Filter | None, literal: int, include: frozenset[str], *, some: bool
) -> str:
    """The same for a row of arguments per search; each row of the result ends with its search's number."""
    arguments = _Arguments(together=True)
    query = arguments.add(None, str(collection.vector.type))
    brought, wanted = arguments.add(None, "int"), arguments.add(None, "int")
    ranks = arguments.add(None, "int") if some else None
    condition = "" if filter is None else where(filter, collection, arguments)
    one = _one(collection, query, condition, brought, wanted, ranks, literal, Scan.INDEX, include)
    return f"SELECT x.*, q.n FROM {arguments.unnested()} CROSS JOIN LATERAL ({one}) x"


def _index_distance(collection: Collection, query: str) -> str:
    """The expression that the HNSW index is built on, against the query."""
    vector = collection.vector
    match collection.index.quantization:
        case Quantization.NONE:
            return f"{vector.column} {distance_operator(vector.metric)} {query}"
        case Quantization.HALFVEC:
            half = f"halfvec({vector.dimensions})"
            return f"({vector.column}::{half}) {distance_operator(vector.metric)} ({query}::{half})"
        case Quantization.BINARY:
            bits = f"bit({vector.dimensions})"
            return f"(binary_quantize({vector.column})::{bits}) <~> (binary_quantize({query})::{bits})"


def _id(collection: Collection) -> str:
    """The id in the order that the router merges by: text by code point."""
    collate = ' COLLATE "C"' if collection.id.type is ValueType.TEXT else ""
    return f"{collection.id.column}{collate}"


def arrays(shape: Shape, members: Sequence[Sequence[object]]) -> list[object]:
    """The arguments of `shape.together` for several searches' arguments."""
    shared = shape.shared
    return [column[0] if i in shared else column for i, column in enumerate(zip(*members, strict=True))]
