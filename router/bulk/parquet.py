"""Documents in a Parquet file: columns `id`, `vector` or `embedding`, `content`, `metadata`, and those
that the collection declares. A column that the collection does not know is refused, as in a request. Where
the collection has an embedder, rows may lack a vector, or the file the column."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from router.bulk.batch import Batch, Chunk, Refused, Unembedded, Wanted, placed
from router.bulk.check import to_float32, wrong_vectors
from router.bulk.errors import SourceError
from router.bulk.fingerprint import fingerprint
from router.bulk.rows import as_ids
from router.decode.document import FOUND_FIELDS
from router.decode.embedded import Texts
from router.decode.metadata import checked_text
from router.documents.types import Document, TextDocument
from router.query.errors import InvalidError, RequestError
from shard_config.model import Collection
from shard_config.times import Kind, from_1970
from shard_config.values import ValueType, coerce

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["ParquetSource", "open_parquet"]

_VECTOR_NAMES = ("vector", "embedding")
_MICROSECONDS = {"s": (10**6, 1), "ms": (1000, 1), "us": (1, 1), "ns": (1, 1000)}


class ParquetSource:
    """Rows of a Parquet file, counted from 0; read a few thousand at a time, whatever its row groups."""

    def __init__(self, path: Path, file: Any, collection: Collection, limit: int | None) -> None:
        """
        Raises:
            SourceError: its columns are not those of the collection.
        """
        self._vector_name = _check_columns(path, file.schema_arrow.names, collection)
        self.as_text = self._vector_name is None
        with path.open("rb") as plain:
            self.fingerprint = fingerprint(plain)
        self.path = str(path)
        rows = file.metadata.num_rows
        self.extent = rows if limit is None else min(limit, rows)
        self._file = file
        self._collection = collection

    def __repr__(self) -> str:
        return f"<ParquetSource {self.path}: {self.extent} rows>"

    def chunks(self, rows: int, wanted: Wanted) -> Iterator[Chunk]:
        import pyarrow as pa

        first = 0
        try:
            for number, table in enumerate(_stretches(self._file, rows, self.extent)):
                batch = self._batch(table, first) if wanted(number) else None
                yield Chunk(number, table.num_rows, batch)
                first += table.num_rows
        except (OSError, pa.ArrowException) as exc:
            raise SourceError(f"{self.path}: cannot be read after row {first}: {exc}") from exc

    def place(self, row: int) -> str:
        return f"row {row}"

    def _batch(self, table: pa.Table, first: int) -> Batch | Unembedded:
        collection = self._collection
        wrong: dict[int, str] = {}
        vectors, found = self._vectors(table, wrong)
        ids = _checked(table["id"], "id", _typed(collection.id.type, required=True), wrong)
        columns = {
            column: _checked(table[name], name, check, wrong)
            for name, (column, check) in _checks(collection).items()
            if name in table.column_names
        }
        keep = np.delete(np.arange(table.num_rows), list(wrong))
        rows = {at: row for row, at in enumerate(found.tolist())}
        if any(at not in rows for at in keep.tolist()):
            given = {at: vectors[row] for at, row in rows.items()}
            return self._unembedded(first, keep.tolist(), ids, given, columns, wrong)
        picked = np.fromiter((rows[at] for at in keep.tolist()), dtype=np.int64, count=len(keep))
        return placed(
            collection,
            keep + first,
            as_ids(collection, [ids[at] for at in keep.tolist()]),
            vectors[picked],
            {name: [values[at] for at in keep.tolist()] for name, values in columns.items()},
            [Refused(first + at, wrong[at]) for at in sorted(wrong)],
        )

    def _unembedded(
        self,
        first: int,
        keep: Sequence[int],
        ids: Sequence[object],
        vectors: Mapping[int, NDArray[np.float32]],
        columns: Mapping[str, Sequence[object]],
        wrong: Mapping[int, str],
    ) -> Unembedded:
        """The rows at the positions `keep` one by one, with the text of those that have no vector."""
        collection = self._collection
        texts = Texts(collection)
        documents: list[Document | TextDocument] = []
        refused = [Refused(first + at, reason) for at, reason in wrong.items()]
        for at in keep:
            values = {name: column[at] for name, column in columns.items()}
            content = _popped(values, collection.content)
            metadata = _popped(values, collection.metadata)
            own = {name: values.get(column.column) for name, column in collection.columns.items()}
            if at in vectors:
                vector = vectors[at].astype("<f4").tobytes()
                documents.append(Document(first + at, ids[at], vector, content, metadata, own))
                continue
            try:
                text = texts.of(content, metadata, own, "vector")
            except InvalidError as exc:
                refused.append(Refused(first + at, exc.detail))
                continue
            documents.append(TextDocument(first + at, ids[at], text, content, metadata, own))
        return Unembedded(documents, tuple(refused))

    def _vectors(
        self, table: pa.Table, wrong: dict[int, str]
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """The vectors of the right length, and the positions at which they stand."""
        import pyarrow as pa
        import pyarrow.compute as pc

        vector = self._collection.vector
        if self._vector_name is None:
            return np.empty((0, vector.dimensions), np.float32), np.empty(0, np.int64)
        column = table[self._vector_name]
        try:
            lengths = pc.fill_null(pc.list_value_length(column), -1).to_numpy()
            fits = lengths == vector.dimensions
            flat = pc.list_flatten(column.filter(pa.array(fits)))
            components = flat.cast(pa.float64() if pa.types.is_integer(flat.type) else flat.type)
            vectors = to_float32(components.to_numpy().reshape(-1, vector.dimensions))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError, ValueError) as exc:
            expected = f"expected a list of floats, got {column.type}"
            raise SourceError(f"{self.path}: {self._vector_name}: {expected}") from exc
        for at in np.flatnonzero(~fits).tolist():
            if lengths[at] < 0 and self._collection.embedder is not None:
                continue
            length = "no vector" if lengths[at] < 0 else f"{lengths[at]} dimensions"
            wrong[at] = f"vector: has {length}, but the collection has {vector.dimensions}"
        found = np.flatnonzero(fits)
        for position, reason in wrong_vectors(vectors, vector).items():
            wrong[int(found[position])] = reason
        return vectors, found


def open_parquet(path: Path, collection: Collection, limit: int | None) -> ParquetSource:
    """
    Raises:
        SourceError
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as exc:
        raise SourceError(f"{path}: Parquet needs pyarrow: install pgscatter with its extra 'load'") from exc
    try:
        # Without pre_buffer a row group of any size is read in pieces.
        file = pq.ParquetFile(path, pre_buffer=False, buffer_size=1 << 20)
    except (OSError, pa.ArrowException) as exc:
        raise SourceError(f"{path}: not a Parquet file that can be read: {exc}") from exc
    return ParquetSource(path, file, collection, limit)


def _check_columns(path: Path, names: Sequence[str], collection: Collection) -> str | None:
    """The name of the column of vectors, if there is one.

    Raises:
        SourceError
    """
    vectors = [name for name in _VECTOR_NAMES if name in names]
    known = {"id", *_VECTOR_NAMES, *_checks(collection)}
    unknown = [name for name in names if name not in known and name not in FOUND_FIELDS]
    problems = [f"{path}: unknown column {name!r}" for name in unknown]
    if problems:
        problems.append(f"{path}: a file for {collection.name} has columns among {', '.join(sorted(known))}")
    problems += [f"{path}: has {n} columns {name!r}" for name, n in Counter(names).items() if n > 1]
    if "id" not in names:
        problems.append(f"{path}: has no column 'id'")
    if len(set(vectors)) > 1 or (not vectors and collection.embedder is None):
        problem = f"{path}: has {len(vectors)} of the columns 'vector' and 'embedding'; expected one"
        if not vectors:
            problem += f", since {collection.name} has no embedder to make vectors of texts"
        problems.append(problem)
    if problems:
        raise SourceError(*problems)
    return vectors[0] if vectors else None


def _popped(values: dict[str, object], column: str | None) -> str | None:
    value = values.pop(column, None) if column is not None else None
    assert value is None or isinstance(value, str)
    return value


def _stretches(file: Any, rows: int, extent: int) -> Iterator[pa.Table]:
    """Tables of exactly `rows` rows, but for the last."""
    import pyarrow as pa

    held: list[pa.RecordBatch] = []
    left = extent
    for batch in file.iter_batches(batch_size=min(rows, 8192), use_threads=False):
        batch = batch.slice(0, left)
        left -= batch.num_rows
        held.append(batch)
        while held and (sum(part.num_rows for part in held) >= rows or not left):
            table = pa.Table.from_batches(held)
            yield table.slice(0, rows)
            held = table.slice(rows).to_batches() if table.num_rows > rows else []
        if not left:
            return
    if held:
        yield pa.Table.from_batches(held)


_Check = Callable[[object], object]


def _checks(collection: Collection) -> Mapping[str, tuple[str, _Check]]:
    """By a column's name in the file: its name in the table, and what makes its values storable."""
    checks: dict[str, tuple[str, _Check]] = {}
    if collection.content is not None:
        checks["content"] = (collection.content, _typed(ValueType.TEXT))
    if collection.metadata is not None:
        checks["metadata"] = (collection.metadata, _metadata)
    for name, column in collection.columns.items():
        checks[name] = (column.column, _typed(column.type))
    return checks


def _checked(column: pa.ChunkedArray, name: str, check: _Check, wrong: dict[int, str]) -> list[object]:
    """Every value as it is stored; None in place of one that cannot be, which `wrong` then explains."""
    values = _values(column, name, wrong)
    for at, value in enumerate(values):
        if at in wrong:
            continue
        try:
            values[at] = check(value)
        except (ValueError, TypeError, RequestError) as exc:
            values[at] = None
            wrong.setdefault(at, f"{name}: {exc}")
    return values


def _values(column: pa.ChunkedArray, name: str, wrong: dict[int, str]) -> list[object]:
    """The column as Python's values; None in place of one that cannot be, which `wrong` then explains."""
    import pyarrow as pa

    if pa.types.is_timestamp(column.type) or pa.types.is_date(column.type):
        return _times(column, name, wrong)
    try:
        values: list[object] = column.to_pylist()
    except (ValueError, OverflowError):
        # One of them; which of them only shows when they are taken singly.
        values = []
        for at, scalar in enumerate(column):
            try:
                values.append(scalar.as_py())
            except (ValueError, OverflowError) as exc:
                values.append(None)
                utf8 = isinstance(exc, UnicodeDecodeError)
                reason = "a string that is not UTF-8" if utf8 else f"a {column.type} that Python cannot hold"
                wrong.setdefault(at, f"{name}: {reason}")
    return values


def _times(column: pa.ChunkedArray, name: str, wrong: dict[int, str]) -> list[object]:
    """Times from their counts since 1970: Python's own reach neither as far nor below a microsecond."""
    import pyarrow as pa

    kind, factor, parts = _unit(column.type)
    counts = column.cast(pa.int32() if pa.types.is_date32(column.type) else pa.int64()).to_pylist()
    values: list[object] = []
    for at, count in enumerate(counts):
        try:
            values.append(None if count is None else from_1970(kind, count * factor, parts))
        except ValueError as exc:
            values.append(None)
            wrong.setdefault(at, f"{name}: {exc}")
    return values


def _unit(type_: pa.DataType) -> tuple[Kind, int, int]:
    """What the type counts, as (kind, factor, parts) of days for a date, of microseconds for others."""
    import pyarrow as pa

    if pa.types.is_date(type_):
        return "date", 1, 1 if pa.types.is_date32(type_) else 86_400_000
    return "timestamp" if type_.tz is None else "timestamptz", *_MICROSECONDS[type_.unit]


def _typed(type_: ValueType, *, required: bool = False) -> _Check:
    def check(value: object) -> object:
        return None if value is None and not required else coerce(type_, value)

    return check


def _metadata(value: object) -> object:
    """An object, or the JSON text of one, as JSON text that jsonb takes."""
    if value is None:
        return None
    if isinstance(value, dict):
        value = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    if not isinstance(value, str):
        raise ValueError("expected an object, or the JSON text of one")
    return checked_text(value.encode(), "")
