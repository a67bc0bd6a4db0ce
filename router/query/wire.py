"""pgvector's binary wire format for `vector` and `halfvec`.

Both are big-endian: int16 dimensions, int16 zero, then the components as float4 or float2.
Inside the router a vector is little-endian float32 bytes; it is turned into wire bytes once per
search, however many shards are asked.
"""

from __future__ import annotations

import struct
from base64 import b64encode
from typing import Any

import numpy as np
import orjson

from shard_config.model import VectorType

__all__ = ["base64_text", "from_wire_bytes", "number_text", "to_wire"]

_HEADER = struct.Struct(">hh")
# As objects, since numpy reads a name anew each time: a fifth of `to_wire`.
_FLOAT32: np.dtype[Any] = np.dtype("<f4")
_WIRE_DTYPES: dict[VectorType, np.dtype[Any]] = {
    VectorType.VECTOR: np.dtype(">f4"),
    VectorType.HALFVEC: np.dtype(">f2"),
}


def to_wire(vector: bytes, type_: VectorType) -> bytes:
    """Wire bytes of float32 little-endian components; halfvec rounds to the nearest float16."""
    components = np.frombuffer(vector, dtype=_FLOAT32)
    return _HEADER.pack(len(components), 0) + components.astype(_WIRE_DTYPES[type_]).tobytes()


def number_text(data: bytes, type_: VectorType) -> bytes:
    """A value as PostgreSQL sent it as a JSON array, each component the shortest text of that float32.

    A halfvec's components are written as the float32 that they are exactly. Written as Python's floats they
    would take twice the bytes, and twice the time (1,000 x 1,536: 19 and 33 MB, 36 and 83 ms).
    """
    components = np.frombuffer(data, dtype=_WIRE_DTYPES[type_], offset=_HEADER.size).astype(np.float32)
    return orjson.dumps(components, option=orjson.OPT_SERIALIZE_NUMPY)


def base64_text(data: bytes, type_: VectorType) -> bytes:
    """The same as a JSON string, the base64 of little-endian float32, which requests may bring as well."""
    return b'"%b"' % b64encode(from_wire_bytes(data, type_))


def from_wire_bytes(data: bytes, type_: VectorType) -> bytes:
    """The same as float32 little-endian bytes, which is how the router holds a vector."""
    return np.frombuffer(data, dtype=_WIRE_DTYPES[type_], offset=_HEADER.size).astype("<f4").tobytes()
