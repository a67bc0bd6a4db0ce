"""pgvector's binary wire format for `vector` and `halfvec`.

Both are big-endian: int16 dimensions, int16 zero, then the components as float4 or float2.
Inside the router a vector is little-endian float32 bytes; it is turned into wire bytes once per
search, however many shards are asked.
"""

from __future__ import annotations

import struct

import numpy as np

from shard_config.model import VectorType

__all__ = ["from_wire", "from_wire_bytes", "to_wire"]

_HEADER = struct.Struct(">hh")
_WIRE_DTYPES = {VectorType.VECTOR: ">f4", VectorType.HALFVEC: ">f2"}


def to_wire(vector: bytes, type_: VectorType) -> bytes:
    """Wire bytes of float32 little-endian components; halfvec rounds to the nearest float16."""
    components = np.frombuffer(vector, dtype="<f4")
    return _HEADER.pack(len(components), 0) + components.astype(_WIRE_DTYPES[type_]).tobytes()


def from_wire(data: bytes, type_: VectorType) -> list[float]:
    """Components of a value as PostgreSQL sent it."""
    components: list[float] = np.frombuffer(data, dtype=_WIRE_DTYPES[type_], offset=_HEADER.size).tolist()
    return components


def from_wire_bytes(data: bytes, type_: VectorType) -> bytes:
    """The same as float32 little-endian bytes, which is how the router holds a vector."""
    return np.frombuffer(data, dtype=_WIRE_DTYPES[type_], offset=_HEADER.size).astype("<f4").tobytes()
