from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest

from router.bulk.batch import Batch, placed
from router.bulk.wire import copy_columns, copy_stream
from shard_config.model import Collection
from tests.unit.bulk_sources import collection


def batch_of(of: Collection, ids: Any, columns: dict[str, list[object]]) -> Batch:
    n = len(ids)
    vectors = np.arange(n * 2, dtype=np.float32).reshape(n, 2) + 1
    return placed(of, np.arange(n), ids, vectors, columns, [])


def stream(of: Collection, batch: Batch, positions: list[int]) -> bytes:
    return b"".join(bytes(block) for block in copy_stream(of, batch, np.array(positions, dtype=np.int64)))


@pytest.mark.parametrize(("type_", "component"), [("vector", "f"), ("halfvec", "e")])
def test_rows_of_integers_and_vectors_are_laid_out_as_copy_wants_them(type_: str, component: str) -> None:
    of = collection(**{"vector.type": type_})
    batch = batch_of(of, np.array([10, 11, 12], dtype=np.int64), {})
    assert copy_columns(of, batch) == ["doc_id", "embedding"]
    size = 4 + 2 * struct.calcsize(component)
    row = f">hiqihh2{component}"
    expected = b"PGCOPY\n\xff\r\n\0" + bytes(8)
    expected += struct.pack(row, 2, 8, 10, size, 2, 0, 1, 2) + struct.pack(row, 2, 8, 12, size, 2, 0, 5, 6)
    assert stream(of, batch, [0, 2]) == expected + b"\xff\xff"


def test_rows_of_any_columns_carry_lengths_and_nulls() -> None:
    of = collection(id={"type": "text"})
    batch = batch_of(of, ["é", "b"], {"body": ["x", None], "price": [None, 2.5]})
    assert copy_columns(of, batch) == ["id", "embedding", "body", "price"]
    null = struct.pack(">i", -1)
    vector = struct.pack(">ihh", 12, 2, 0)
    first = struct.pack(">hi", 4, 2) + "é".encode() + vector + struct.pack(">2f", 1, 2)
    first += struct.pack(">i", 1) + b"x" + null
    second = struct.pack(">hi", 4, 1) + b"b" + vector + struct.pack(">2f", 3, 4)
    second += null + struct.pack(">id", 8, 2.5)
    assert stream(of, batch, [0, 1])[19:-2] == first + second


def test_both_ways_of_encoding_agree() -> None:
    of = collection()
    numbers = np.arange(5000, dtype=np.int64) * 7 - 3000
    fast = stream(of, batch_of(of, numbers, {}), list(range(5000)))
    slow = stream(of, batch_of(of, numbers.tolist(), {}), list(range(5000)))
    assert fast == slow


def test_no_rows_are_an_empty_stream() -> None:
    of = collection()
    batch = batch_of(of, np.arange(3, dtype=np.int64), {})
    assert stream(of, batch, []) == b"PGCOPY\n\xff\r\n\0" + bytes(8) + b"\xff\xff"
