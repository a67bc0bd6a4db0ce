"""The IDX files of the MNIST family: a header in big-endian, then bytes; often compressed by gzip."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench.errors import BenchError

__all__ = ["find", "read"]

_UNSIGNED_BYTE = 0x08


def find(folder: Path, name: str) -> Path:
    """`name` in `folder`, compressed or not.

    Raises:
        BenchError: neither is there.
    """
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise BenchError(f"neither {name} nor {name}.gz in {folder}")


def read(path: Path) -> NDArray[np.float32]:
    """The items of the file as rows, each flattened.

    Raises:
        BenchError: no IDX file of unsigned bytes, or shorter or longer than its header says.
    """
    try:
        data = path.read_bytes()
        if path.suffix == ".gz":
            data = gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as exc:
        raise BenchError(f"{path}: {exc}") from exc
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] != _UNSIGNED_BYTE or data[3] < 2:
        raise BenchError(f"{path}: no IDX file of unsigned bytes in two or more dimensions")
    start = 4 + 4 * data[3]
    if len(data) < start:
        raise BenchError(f"{path}: ends within its header")
    shape = struct.unpack(f">{data[3]}I", data[4:start])
    size = math.prod(shape)
    if len(data) - start != size:
        raise BenchError(f"{path}: {len(data) - start} bytes of items, the header says {size}")
    items = np.frombuffer(data, np.uint8, offset=start)
    return items.reshape(shape[0], math.prod(shape[1:])).astype(np.float32)
