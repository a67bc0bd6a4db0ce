"""The statements of a search: one that answers one, and one that answers many of the same shape.

A shape is what a statement's text depends on; equal shapes give the same text, so that text names a
prepared statement, and searches of one shape may share a statement whatever their vectors, limits and
filter values are.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import msgspec
from cachetools import LRUCache

from router.postgres.conditions import PlainParams, where
from router.postgres.sql import Statement, distance_operator, read_as, result_columns, variable_bytes
from router.query.filter import Filter
from router.query.sizes import Layout, variable_columns
from router.query.types import Scan, Shape
from shard_config.model import Collection, Quantization
from shard_config.values import ValueType

__all__ = [
    "PLANNED_ANEW",
    "SearchStatement",
    "SearchStatements",
    "arrays",
    "by_index_order",
    "id_in_order",
    "limited",
    "seen_at",
]

_SHAPES = 1024
# True for every row, and dropped from a plan that knows its argument to be true. In a plan for any argument
# it looks so dear that PostgreSQL makes one for these values each time, which it would stop after five:
# a plan for any value does not know how many rows a range or a common value keeps. Never executed.
PLANNED_ANEW = "({true} OR (SELECT count(*) FROM generate_series(1, 1000000000)) > 0)"


class SearchStatement(msgspec.Struct, frozen=True):
    """`key` is equal for searches that may share a statement, None where none may."""

    shape: Shape
    args: tuple[object, ...]
    key: Hashable | None


class _Arguments:
    """Numbers arguments as they come; what `add` and `share` return is how the statement names each.

    While `sharing`, every argument is one that all searches of a statement have in common.
    """

    def __init__(self, *, together: bool) -> None:
        self.args: list[object] = []
        self.types: list[str] = []
        self.shared: list[int] = []
        self.sharing = False
        self._together = together

    def add(self, value: object, type_: str) -> str:
        if self.sharing:
            return self.share(value, type_)
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
        layout: Layout,
        visits: int = 0,
        counted: bool = False,
    ) -> SearchStatement:
        """The nearest `limit` rows as (id, distance, *columns of `layout`), ascending by (distance, id).

        `vector` is in wire format. The connection's hnsw.ef_search must be `ef_search`.

        Args:
            visits: of an index scan with a filter: rows that it may look at.
            counted: whether an exact read also says how many rows matched.

        With a filter, each row of an index scan or an exact read has one value more, see `seen_at`.
        """
        arguments = _Arguments(together=False)
        query = arguments.add(vector, str(collection.vector.type))
        brought, wanted = arguments.add(candidates, "int"), arguments.add(limit, "int")
        most = arguments.add(layout.row_bytes, "int") if layout.guarded else ""
        at_most = arguments.add(visits, "int") if filter is not None and scan is Scan.INDEX else ""
        # Exact reads with the same filter and the same values read its rows once for all of them.
        arguments.sharing = scan is Scan.EXACT
        condition = "" if filter is None else where(filter, collection, arguments)
        if filter is not None and scan is Scan.EXACT:
            condition += f" AND {PLANNED_ANEW.format(true=arguments.add(True, 'bool'))}"
        name = (collection.name, scan, counted, layout.inline, condition)
        shape = self._shapes.get(name)
        if shape is None:
            nearest = _nearest(collection, query, condition, brought, at_most, scan, counted, layout.inline)
            single = limited(
                collection, nearest, wanted, most, layout.inline, filter is not None and scan is not Scan.TIES
            )
            reads_once, together = scan is Scan.EXACT and filter is not None, None
            if scan is Scan.INDEX:
                together = _many(collection, filter, layout)
            elif reads_once:
                together = _many_exact(collection, condition, counted, layout)
            shape = Shape(single, together, tuple(arguments.shared), reads_once)
            self._shapes[name] = shape
        args = tuple(arguments.args)
        if shape.together is None:
            return SearchStatement(shape, args, None)
        width = None if scan is Scan.EXACT else ef_search
        return SearchStatement(shape, args, (shape.single, width, *[args[i] for i in shape.shared]))


def by_index_order(
    collection: Collection, vector: bytes, candidates: int, limit: int, filter: Filter | None
) -> Statement:
    """What an index that misses nothing would answer: the nearest `limit` of its first `candidates`.

    All rows are read, and put into the order of the index, which is rough where that is quantized. Rows are
    (id, distance).
    """
    params = PlainParams()
    query = params.add(vector, str(collection.vector.type))
    condition = "" if filter is None else f" WHERE {where(filter, collection, params)}"
    distance = f"{collection.vector.column} {distance_operator(collection.vector.metric)} {query}"
    rows = (
        f"SELECT {id_in_order(collection)} AS _id, {distance} AS _d,"
        f" {_index_distance(collection, query)} AS _o FROM {collection.table} t{condition} OFFSET 0"
    )
    first = f"SELECT _id, _d FROM ({rows}) r ORDER BY _o LIMIT {params.add(candidates, 'int')}"
    sql = f"SELECT * FROM ({first}) f WHERE _d <> 'NaN' ORDER BY _d, _id LIMIT {params.add(limit, 'int')}"
    return Statement(sql, tuple(params.args))


def seen_at(layout: Layout) -> int:
    """Where a row has what the statement has seen.

    Of an index scan with a filter that is how many rows it visited until it had all candidates; None if it
    ended before. Of an exact read it is how many rows matched; None where they were not counted.
    """
    return 2 + len(layout.inline) + layout.guarded


def _nearest(
    collection: Collection,
    query: str,
    condition: str,
    brought: str,
    visits: str,
    scan: Scan,
    counted: bool,
    include: frozenset[str],
) -> str:
    """The candidates, each with its full distance, as (_id, _d, *columns, _seen)."""
    columns = [column for _, column in result_columns(collection, include)]
    read = "".join(f", {read_as(collection, column)} AS _c{i}" for i, column in enumerate(columns))
    passed = "".join(f", _c{i}" for i in range(len(columns)))
    operator = distance_operator(collection.vector.metric)
    distance = f"{collection.vector.column} {operator} {query}"
    if scan is Scan.EXACT:
        # OFFSET 0 keeps the HNSW index out, which knows no order of what a query within has made.
        seen = f", {'count(*) OVER ()' if counted else 'NULL::bigint'} AS _seen" if condition else ""
        rows = f"SELECT {id_in_order(collection)} AS _id, {distance} AS _d{read} FROM {collection.table} t"
        rows += f"{' WHERE ' + condition if condition else ''} OFFSET 0"
        return (
            f"SELECT *{seen if condition or counted else ''} FROM ({rows}) a ORDER BY _d, _id LIMIT {brought}"
        )
    order = _index_distance(collection, query)
    if scan is Scan.TIES:
        # An index scan knows no ids; asked for their order, it is read until the distance changes, by an
        # incremental sort.
        order += f", t.{id_in_order(collection)}"
    if not condition or scan is Scan.TIES:
        return (
            f"SELECT {id_in_order(collection)} AS _id, {distance} AS _d{read} FROM {collection.table} t"
            f"{' WHERE ' + condition if condition else ''} ORDER BY {order} LIMIT (SELECT {brought})"
        )
    # The condition is no WHERE of the scan, so that rows it does not keep are counted as well: the scan ends
    # here, in the order in which it goes outwards. Where hnsw.max_scan_tuples ends it, pgvector returns what
    # it has merely touched, and the first of these that match are no near ones.
    visited = (
        f"SELECT {id_in_order(collection)} AS _id, {collection.vector.column} AS _e,"
        f" ({condition}) AS _ok{read} FROM {collection.table} t ORDER BY {order} LIMIT (SELECT {visits})"
    )
    numbered = f"SELECT *, row_number() OVER () AS _n FROM ({visited}) v"
    kept = f"SELECT * FROM ({numbered}) n WHERE _ok LIMIT (SELECT {brought})"
    seen = f"CASE WHEN count(*) OVER () >= {brought} THEN max(_n) OVER () END"
    return f"SELECT _id, _e {operator} {query} AS _d{passed}, {seen} AS _seen FROM ({kept}) k"


def limited(
    collection: Collection, nearest: str, wanted: str, most: str, include: frozenset[str], seen: bool
) -> str:
    """A search's statement.

    Its innermost query is the one that the HNSW index serves, which sessions plan with `enable_sort` off: so
    that PostgreSQL never sorts the table instead, whatever it thinks of the costs. The outer query orders
    ties, and what an iterative scan found out of order. With `most`, a row whose columns of variable length
    take more bytes than that comes without any column, and says behind them whether it has them.
    """
    columns = [column for _, column in result_columns(collection, include)]
    passed = "".join(f", _c{i}" for i in range(len(columns)))
    last = ", _seen" if seen else ""
    # NaN is what cosine makes of a zero vector, which no direction compares to. The sub-select hides the
    # limit from the planner: if that is known, a plan made for one search looks cheaper than one for all,
    # and is made again for each, which takes 0.04 of 0.22 ms.
    rows = (
        f"SELECT _id, _d{passed}{last} FROM ({nearest}) r WHERE _d <> 'NaN'"
        f" ORDER BY _d, _id LIMIT (SELECT {wanted})"
    )
    if not most:
        return rows
    # Metadata becomes text once, for the rows that the shard answers with: OFFSET 0 keeps the planner from
    # moving that to where it is used, or before the LIMIT.
    as_text = "".join(
        f", _c{i}::text AS _c{i}" if column == collection.metadata else f", _c{i}"
        for i, column in enumerate(columns)
    )
    variable = variable_columns(collection, include)
    size = variable_bytes([f"_c{i}" for i, column in enumerate(columns) if column in variable])
    given = "".join(f", CASE WHEN _fits THEN _c{i} END AS _c{i}" for i in range(len(columns)))
    return (
        f"SELECT _id, _d{given}, _fits{last} FROM (SELECT *, {size} <= {most} AS _fits"
        f" FROM (SELECT _id, _d{as_text}{last} FROM ({rows}) o OFFSET 0) s) f"
    )


def _many(collection: Collection, filter: Filter | None, layout: Layout) -> str:
    """An index scan for each row of arguments; each row of the result ends with its search's number."""
    arguments = _Arguments(together=True)
    query = arguments.add(None, str(collection.vector.type))
    brought, wanted = arguments.add(None, "int"), arguments.add(None, "int")
    most = arguments.add(None, "int") if layout.guarded else ""
    visits = "" if filter is None else arguments.add(None, "int")
    condition = "" if filter is None else where(filter, collection, arguments)
    nearest = _nearest(collection, query, condition, brought, visits, Scan.INDEX, False, layout.inline)
    one = limited(collection, nearest, wanted, most, layout.inline, filter is not None)
    return f"SELECT x.*, q.n FROM {arguments.unnested()} CROSS JOIN LATERAL ({one}) x"


def _many_exact(collection: Collection, condition: str, counted: bool, layout: Layout) -> str:
    """The matching rows, read once and kept, and the nearest of them for each row of arguments."""
    arguments = _Arguments(together=True)
    query = arguments.add(None, str(collection.vector.type))
    brought, wanted = arguments.add(None, "int"), arguments.add(None, "int")
    most = arguments.add(None, "int") if layout.guarded else ""
    columns = [column for _, column in result_columns(collection, layout.inline)]
    read = "".join(f", {read_as(collection, column)} AS _c{i}" for i, column in enumerate(columns))
    passed = "".join(f", _c{i}" for i in range(len(columns)))
    kept = (
        f"SELECT {id_in_order(collection)} AS _id, {collection.vector.column} AS _e{read}"
        f" FROM {collection.table} t WHERE {condition}"
    )
    operator = distance_operator(collection.vector.metric)
    seen = "(SELECT count(*) FROM m)" if counted else "NULL::bigint"
    nearest = (
        f"SELECT *, {seen} AS _seen FROM (SELECT _id, _e {operator} {query} AS _d{passed} FROM m OFFSET 0) a"
        f" ORDER BY _d, _id LIMIT {brought}"
    )
    one = limited(collection, nearest, wanted, most, layout.inline, True)
    searches = arguments.unnested()
    return f"WITH m AS MATERIALIZED ({kept}) SELECT x.*, q.n FROM {searches} CROSS JOIN LATERAL ({one}) x"


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


def id_in_order(collection: Collection) -> str:
    """The id in the order that the router merges by: text by code point."""
    collate = ' COLLATE "C"' if collection.id.type is ValueType.TEXT else ""
    return f"{collection.id.column}{collate}"


def arrays(shape: Shape, members: Sequence[Sequence[object]]) -> list[object]:
    """The arguments of `shape.together` for several searches' arguments."""
    shared = shape.shared
    return [column[0] if i in shared else column for i, column in enumerate(zip(*members, strict=True))]
