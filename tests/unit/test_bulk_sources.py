from __future__ import annotations

import base64
import os
import uuid
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from router.bulk.batch import Source
from router.bulk.errors import SourceError
from router.bulk.sources import open_source
from shard_config.model import Collection
from shard_config.partition import locate, shard_names
from shard_config.times import microseconds_of
from tests.unit.bulk_sources import BY_TENANT, batches, collection, write_lines


def opened(path: Path, of: Collection, limit: int | None = None, dataset: str = "train") -> Source:
    return open_source(path, of, dataset, limit)


def npy(path: Path, rows: Any, dtype: str = "<f4") -> Path:
    np.save(path, np.asarray(rows, dtype=dtype))
    return path


def parquet(path: Path, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), path, row_group_size=3)
    return path


def test_rows_of_an_array_have_their_numbers_as_ids(tmp_path: Path) -> None:
    of = collection()
    source = opened(npy(tmp_path / "a.npy", [[i, 1] for i in range(10)]), of)
    assert source.extent == 10
    found = batches(source, 4)
    assert [batch.rows.tolist() for batch in found] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    names = shard_names(of.sharding)
    for batch in found:
        assert batch.vectors[:, 0].tolist() == batch.rows.tolist()
        located = [locate(of.sharding, int(id_)) for id_ in batch.ids]
        assert [names[at] for at in batch.shards.tolist()] == located


def test_chunks_that_are_not_wanted_are_not_read(tmp_path: Path) -> None:
    files = [
        npy(tmp_path / "a.npy", np.ones((5, 2))),
        write_lines(tmp_path / "a.jsonl", *({"id": i, "vector": [1, 2]} for i in range(5))),
        parquet(tmp_path / "a.parquet", id=list(range(5)), vector=[[1.0, 2.0]] * 5),
    ]
    for path in files:
        chunks = list(opened(path, collection()).chunks(2, lambda number: number == 1))
        assert [chunk.batch is None for chunk in chunks] == [True, False, True]
        wanted = chunks[1].batch
        assert wanted is not None
        assert list(wanted.ids) == [2, 3]
        assert sum(chunk.extent for chunk in chunks) == pytest.approx(
            opened(path, collection()).extent, abs=1
        )


@pytest.mark.parametrize("dtype", ["<f2", ">f4", "<f8"])
def test_arrays_of_every_float_type_load(tmp_path: Path, dtype: str) -> None:
    (batch,) = batches(opened(npy(tmp_path / "a.npy", [[0.5, 2], [3, 4]], dtype), collection()), 9)
    assert batch.vectors.tolist() == [[0.5, 2.0], [3.0, 4.0]]


def test_a_limit_cuts_the_file_off(tmp_path: Path) -> None:
    rows = [{"id": i, "vector": [1, 2]} for i in range(5)]
    for path in (
        npy(tmp_path / "a.npy", np.ones((5, 2))),
        write_lines(tmp_path / "a.jsonl", *rows),
        parquet(tmp_path / "a.parquet", id=list(range(5)), vector=[[1.0, 2.0]] * 5),
    ):
        found = batches(opened(path, collection(), limit=3), 2)
        assert [list(batch.ids) for batch in found] == [[0, 1], [2]]


def test_text_ids_are_row_numbers_as_text(tmp_path: Path) -> None:
    of = collection(id={"type": "text"})
    (batch,) = batches(opened(npy(tmp_path / "a.npy", np.ones((3, 2))), of), 9)
    assert batch.ids == ["0", "1", "2"]


def test_a_dataset_of_an_hdf5_file_is_chosen_by_name(tmp_path: Path) -> None:
    path = tmp_path / "a.hdf5"
    with h5py.File(path, "w") as file:
        file["train"] = np.ones((3, 2), dtype="f4")
        file["test"] = np.full((1, 2), 7, dtype="f8")
    assert batches(opened(path, collection()), 9)[0].vectors.shape == (3, 2)
    assert batches(opened(path, collection(), dataset="test"), 9)[0].vectors.tolist() == [[7.0, 7.0]]
    with pytest.raises(SourceError, match="no dataset 'neighbors'; it has test, train"):
        opened(path, collection(), dataset="neighbors")


@pytest.mark.parametrize(
    ("name", "content", "of", "says"),
    [
        ("a.csv", b"", {}, "expected a file that ends in .npy"),
        ("a.npy", b"nonsense", {}, "not an array that can be read"),
        ("a.hdf5", b"nonsense", {}, "not an HDF5 file"),
        ("a.parquet", b"nonsense", {}, "not a Parquet file"),
        ("a.npy", np.ones(4, "f4"), {}, "has 1 dimensions; expected 2"),
        ("a.npy", np.ones((2, 2), "i4"), {}, "is of int32; expected float16, float32 or float64"),
        ("a.npy", np.ones((2, 3), "f4"), {}, "vectors of 3 dimensions, but documents has 2"),
        ("a.npy", np.ones((2, 2), "f4"), {"id": {"type": "uuid"}}, "cannot be ids of type uuid"),
        ("a.npy", np.ones((2, 2), "f4"), {"sharding": BY_TENANT}, "documents is sharded by tenant"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_at_once(
    tmp_path: Path, name: str, content: Any, of: dict[str, Any], says: str
) -> None:
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, content)
    with pytest.raises(SourceError) as caught:
        opened(path, collection(**of))
    assert says in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"gone\.npy: no such file"):
        opened(tmp_path / "gone.npy", collection())


def test_what_is_no_file_is_called_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "a.npy").mkdir()
    with pytest.raises(SourceError, match=r"a\.npy: a directory; a load takes one file"):
        opened(tmp_path / "a.npy", collection())
    os.mkfifo(tmp_path / "a.jsonl")
    with pytest.raises(SourceError, match=r"a\.jsonl: a pipe or a device; a load takes a file"):
        opened(tmp_path / "a.jsonl", collection())


def test_bad_rows_are_left_out_and_explained(tmp_path: Path) -> None:
    rows = [[1, 2], [float("nan"), 1], [0, 0], [3, 4]]
    (batch,) = batches(opened(npy(tmp_path / "a.npy", rows), collection()), 9)
    assert batch.rows.tolist() == [0, 3]
    assert batch.ids.tolist() == [0, 3]  # type: ignore[union-attr]
    assert [(row.row, row.reason.split(":")[0]) for row in batch.refused] == [(1, "vector[0]"), (2, "vector")]


def test_lines_are_read_as_requests_are(tmp_path: Path) -> None:
    half = base64.b64encode(np.array([3, 4], "<f4").tobytes()).decode()
    path = write_lines(
        tmp_path / "a.jsonl",
        {"id": 1, "vector": [1, 2], "content": "é", "metadata": {"a": [1]}, "tenant": "a", "price": 2},
        b"",
        {"id": 2, "vector": half},
        {"id": "3", "vector": [1, 2]},
        {"id": 4, "vector": [1, 2, 3]},
        {"id": 5, "vector": [1, 2], "unknown": 1},
        b'{"id": 6,',
    )
    source = opened(path, collection())
    (batch,) = batches(source, 99)
    assert batch.ids.tolist() == [1, 2]  # type: ignore[union-attr]
    assert batch.vectors.tolist() == [[1, 2], [3, 4]]
    assert batch.columns == {
        "body": ["é", None],
        "meta": ['{"a": [1]}', None],
        "tenant_id": ["a", None],
        "price": [2.0, None],
        "day": [None, None],
    }
    assert [source.place(row.row) for row in batch.refused] == ["line 4", "line 5", "line 6", "line 7"]


def test_rows_without_a_place_are_bad(tmp_path: Path) -> None:
    rows = [
        {"id": i, "vector": [1, 2], "tenant": tenant} for i, tenant in enumerate(["a", "x", "b", "y", "b"])
    ]
    (batch,) = batches(opened(write_lines(tmp_path / "a.jsonl", *rows), collection(sharding=BY_TENANT)), 9)
    assert batch.columns["tenant_id"] == ["a", "b", "b"]
    assert batch.shards.tolist() == [0, 1, 1]
    path = parquet(tmp_path / "a.parquet", id=[0, 1, 2], vector=[[1.0, 2.0]] * 3, tenant=["b", "x", None])
    (batch,) = batches(opened(path, collection(sharding=BY_TENANT)), 9)
    assert batch.rows.tolist() == [0]
    assert [(row.row, row.reason) for row in batch.refused] == [
        (1, "tenant: no shard holds the tenant 'x'"),
        (2, "tenant: no shard holds the tenant null"),
    ]


def test_a_parquet_file_has_the_columns_of_documents(tmp_path: Path) -> None:
    path = parquet(
        tmp_path / "a.parquet",
        id=pa.array([1, 2, 3, 4, 5], pa.int32()),
        embedding=pa.array([[1, 2], [3, 4], None, [1], [5, 6]], pa.list_(pa.float64())),
        content=["a", None, "c", "d", "e\0"],
        metadata=['{"x": 1}', None, None, None, None],
        tenant=["t"] * 5,
        day=pa.array([0, 1, 2, 3, 4], pa.date32()),
    )
    (batch,) = batches(opened(path, collection()), 99)
    assert batch.rows.tolist() == [0, 1]
    assert batch.vectors.tolist() == [[1, 2], [3, 4]]
    assert batch.columns["meta"] == ['{"x": 1}', None]
    assert batch.columns["body"] == ["a", None]
    assert str(batch.columns["day"][1]) == "1970-01-02"
    assert [(row.row, row.reason) for row in batch.refused] == [
        (2, "vector: has no vector, but the collection has 2"),
        (3, "vector: has 1 dimensions, but the collection has 2"),
        (4, "content: a string cannot hold the character U+0000"),
    ]


def test_a_parquet_file_is_cut_by_rows_whatever_its_groups(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", id=list(range(20)), vector=[[1.0, 2.0]] * 20)
    found = [list(batch.ids) for batch in batches(opened(path, collection()), 7)]
    assert found == [list(range(7)), list(range(7, 14)), list(range(14, 20))]


@pytest.mark.parametrize(
    "vectors",
    [
        pa.array([[1, 2], [3, 4]], pa.list_(pa.float32(), 2)),
        pa.array([[1, 2], [3, 4]], pa.large_list(pa.float32())),
        pa.array([[1, 2], [3, 4]], pa.list_(pa.int64())),
        pa.array([[np.float16(1), np.float16(2)], [np.float16(3), np.float16(4)]], pa.list_(pa.float16())),
    ],
)
def test_vectors_of_a_parquet_file_may_be_any_list_of_numbers(tmp_path: Path, vectors: pa.Array) -> None:
    (batch,) = batches(opened(parquet(tmp_path / "a.parquet", id=[7, 8], vector=vectors), collection()), 9)
    assert batch.vectors.tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize("ending", ["npy", "jsonl", "parquet"])
def test_what_a_quantized_index_cannot_hold_is_a_bad_row(tmp_path: Path, ending: str) -> None:
    vectors = [[70000.0, 1.0], [65504.0, 1.0], [1.0, -1e6], [1.0, 2.0], [1e-9, 0.0]]
    path = tmp_path / f"a.{ending}"
    match ending:
        case "npy":
            npy(path, vectors)
        case "jsonl":
            write_lines(path, *({"id": i, "vector": vector} for i, vector in enumerate(vectors)))
        case _:
            parquet(path, id=[0, 1, 2, 3, 4], vector=vectors)
    of = collection(index={"type": "hnsw", "quantization": "halfvec"})
    (batch,) = batches(opened(path, of), 9)
    assert list(batch.ids) == [1, 3]
    names = shard_names(of.sharding)
    assert [names[at] for at in batch.shards.tolist()] == [locate(of.sharding, at) for at in (1, 3)]
    assert [row.reason for row in batch.refused] == [
        "vector[0]: 70000 exceeds 65504, the limit of the index's halfvec",
        "vector[1]: -1e+06 exceeds 65504, the limit of the index's halfvec",
        "vector: is zero in the index's halfvec, which leaves cosine no direction",
    ]
    (batch,) = batches(opened(path, collection()), 9)
    assert not batch.refused


def test_a_null_component_is_a_bad_row(tmp_path: Path) -> None:
    vectors = pa.array([[1, None], [3, 4]], pa.list_(pa.float32()))
    (batch,) = batches(opened(parquet(tmp_path / "a.parquet", id=[7, 8], vector=vectors), collection()), 9)
    assert batch.rows.tolist() == [1]
    assert batch.refused[0].reason == "vector[1]: nan is not a finite number"


def test_metadata_may_be_a_struct_but_must_be_json(tmp_path: Path) -> None:
    vectors = [[1.0, 2.0]] * 2
    struct = parquet(tmp_path / "a.parquet", id=[1, 2], vector=vectors, metadata=[{"a": 1, "b": ["x"]}, None])
    (batch,) = batches(opened(struct, collection()), 9)
    assert batch.columns["meta"] == ['{"a":1,"b":["x"]}', None]
    for bad in ("[1]", "{", '"text"', '{"a": "\\u0000"}', '{"a":' * 40 + "1" + "}" * 40):
        path = parquet(tmp_path / "b.parquet", id=[1, 2], vector=vectors, metadata=[bad, "{}"])
        (batch,) = batches(opened(path, collection()), 9)
        assert batch.rows.tolist() == [1], bad


BEYOND = "at: expected a timestamp from 4714-11-24 BC to 294276-12-31"
BEYOND_DATE = "at: expected a date from 4714-11-24 BC to 5874897-12-31"
FINER = "at: has a fraction of a microsecond, which PostgreSQL does not keep"
NOT_TEXT = pa.StringArray.from_buffers(
    2, pa.py_buffer(np.array([0, 1, 3], "<i4").tobytes()), pa.py_buffer(b"a\xff\xfe")
)


@pytest.mark.parametrize(
    ("type_", "values", "reason"),
    [
        ("timestamp", pa.array([1000, 1001], pa.timestamp("ns")), FINER),
        ("timestamp", pa.array([0, 2**62], pa.timestamp("ms")), BEYOND),
        ("timestamp", pa.array([0, -(2**62)], pa.timestamp("us")), BEYOND),
        ("timestamptz", pa.array([0, -(2**62)], pa.timestamp("us", "UTC")), BEYOND),
        ("timestamptz", pa.array([1000, 1001], pa.timestamp("ns", "UTC")), FINER),
        ("date", pa.array([0, 2**31 - 1], pa.date32()), BEYOND_DATE),
        ("text", NOT_TEXT, "at: a string that is not UTF-8"),
    ],
)
def test_values_that_python_does_not_have_are_bad_rows(
    tmp_path: Path, type_: str, values: pa.Array, reason: str
) -> None:
    path = parquet(tmp_path / "a.parquet", id=[1, 2], vector=[[1.0, 2.0]] * 2, at=values)
    (batch,) = batches(opened(path, collection(columns={"at": type_})), 9)
    assert batch.rows.tolist() == [0]
    assert [(row.row, row.reason) for row in batch.refused] == [(1, reason)]


def test_times_of_day_are_bad_rows_however_fine(tmp_path: Path) -> None:
    values = pa.array([1000, 1001], pa.time64("ns"))
    path = parquet(tmp_path / "a.parquet", id=[1, 2], vector=[[1.0, 2.0]] * 2, at=values)
    (batch,) = batches(opened(path, collection(columns={"at": "timestamp"})), 9)
    first, second = batch.refused
    assert first.reason.startswith("at: expected a timestamp without an offset")
    assert second.reason == "at: a time64[ns] that Python cannot hold"


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "UTC", "America/New_York"])
def test_times_of_any_unit_are_counted_and_not_converted(tmp_path: Path, unit: str, zone: str | None) -> None:
    per_second = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[unit]
    seconds = [0, -1, 2**33] if unit == "ns" else [0, -1, 253_402_300_800, -62_135_596_801, 9 * 10**12]
    values = pa.array([second * per_second for second in seconds] + [None], pa.timestamp(unit, zone))
    n = len(values)
    path = parquet(tmp_path / "a.parquet", id=list(range(n)), vector=[[1.0, 2.0]] * n, at=values)
    type_ = "timestamp" if zone is None else "timestamptz"
    (batch,) = batches(opened(path, collection(columns={"at": type_})), n)
    assert not batch.refused
    *times, missing = batch.columns["at"]
    assert missing is None
    since_2000 = [(second - 946_684_800) * 10**6 for second in seconds]
    assert [microseconds_of(time) for time in times] == since_2000  # type: ignore[arg-type]


def test_a_column_that_stands_twice_is_named(tmp_path: Path) -> None:
    columns = [pa.array([1]), pa.array([2]), pa.array([[1.0, 2.0]]), pa.array([[1.0, 2.0]])]
    table = pa.Table.from_arrays(columns, names=["id", "id", "vector", "vector"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(SourceError) as caught:
        opened(tmp_path / "a.parquet", collection())
    path = tmp_path / "a.parquet"
    assert caught.value.lines == (f"{path}: has 2 columns 'id'", f"{path}: has 2 columns 'vector'")


def test_uuid_ids_come_as_text_or_bytes(tmp_path: Path) -> None:
    ids = [uuid.UUID(int=i) for i in range(2)]
    vectors = [[1.0, 2.0]] * 2
    of = collection(id={"type": "uuid"})
    for column in (pa.array([str(i) for i in ids]), pa.array([i.bytes for i in ids], pa.uuid())):
        (batch,) = batches(opened(parquet(tmp_path / "a.parquet", id=column, vector=vectors), of), 9)
        assert batch.ids == ids


def test_columns_of_a_parquet_file_that_do_not_fit_are_all_named(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", key=[1], vector=[[1.0, 2.0]], embedding=[[1.0, 2.0]])
    with pytest.raises(SourceError) as caught:
        opened(path, collection())
    said = str(caught.value)
    for part in ("unknown column 'key'", "no column 'id'", "2 of the columns 'vector' and 'embedding'"):
        assert part in said
    texts = parquet(tmp_path / "b.parquet", id=[1], vector=["1,2"])
    with pytest.raises(SourceError, match="expected a list of floats, got string"):
        batches(opened(texts, collection()), 9)


def test_equal_files_have_equal_fingerprints(tmp_path: Path) -> None:
    rows = np.arange(1 << 20, dtype="f4").reshape(-1, 2) + 1
    first = opened(npy(tmp_path / "a.npy", rows), collection()).fingerprint
    assert opened(npy(tmp_path / "b.npy", rows), collection()).fingerprint == first
    for at in (0, len(rows) // 2, -1):
        changed = rows.copy()
        changed[at] += 1
        assert opened(npy(tmp_path / "b.npy", changed), collection()).fingerprint != first
    assert opened(npy(tmp_path / "b.npy", rows[:-1]), collection()).fingerprint != first
