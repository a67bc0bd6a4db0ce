"""PostgreSQL's extended hash, so that Python knows which bucket the server would put a key into.

The algorithm is Bob Jenkins' lookup3 as PostgreSQL seeds and reads it: `hash_bytes_extended` and
`hash_bytes_uint32_extended` in src/common/hashfn.c, combined over columns as in
`compute_partition_hash_value` (src/backend/partitioning/partbounds.c). All arithmetic wraps at 32 or
64 bits, and bytes are read as little-endian words, as on every platform that PostgreSQL is shipped for.

`key_hash` and `bucket` take one key, in plain integers; `buckets` takes many, in numpy. The two are
separate code because a numpy scalar costs more than the arithmetic on it, and tests hold them equal.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from shard_config.values import ValueType

PARTITION_SEED = 0x7A5B22367996DCFD
# What hash_combine64 adds for a single key column, whose row hash before it is 0.
COMBINE = 0x49A0F4DD15E5A8E3
HASHABLE = frozenset(
    {ValueType.BIGINT, ValueType.INTEGER, ValueType.SMALLINT, ValueType.TEXT, ValueType.UUID}
)

_U32 = 0xFFFFFFFF
_U64 = 0xFFFFFFFFFFFFFFFF
_INIT = 0x9E3779B9 + 3923095
_BLOCK = 12  # bytes that one round of mixing takes in

Words: TypeAlias = NDArray[np.uint32]
Keys: TypeAlias = Sequence[object] | NDArray[np.generic]
_State: TypeAlias = tuple[int, int, int]
_States: TypeAlias = tuple[Words, Words, Words]


def key_hash(type_: ValueType, key: object) -> int:
    """The unsigned 64-bit result of the type's `hash*extended` function under the partition seed.

    Raises:
        TypeError: `key` is not what `coerce` gives for the type, or the type has no hash here.
    """
    match type_, key:
        case (ValueType.BIGINT | ValueType.INTEGER | ValueType.SMALLINT, int()) if not isinstance(key, bool):
            return _hash_integer(key)
        case ValueType.TEXT, str():
            return _hash_bytes(key.encode())
        case ValueType.UUID, uuid.UUID():
            return _hash_bytes(key.bytes)
    raise TypeError(f"no partition hash for {type(key).__name__} as {type_}")


def row_hash(columns: Iterable[tuple[ValueType, object | None]]) -> int:
    """The unsigned 64-bit hash of a row's key columns; a NULL column counts for nothing."""
    row = 0
    for type_, key in columns:
        if key is not None:
            row ^= (key_hash(type_, key) + COMBINE + (row << 54) + (row >> 7)) & _U64
    return row


def bucket(type_: ValueType, key: object, modulus: int) -> int:
    """The remainder for which `PARTITION BY HASH` on this one column would hold `key`."""
    return ((key_hash(type_, key) + COMBINE) & _U64) % modulus


def buckets(type_: ValueType, keys: Keys, modulus: int) -> NDArray[np.int64]:
    """`bucket` of many keys at once.

    Args:
        keys: integers or an integer array; UUIDs or their bytes as an array of shape (n, 16), uint8;
            strings.

    Raises:
        TypeError: as `key_hash`.
        OverflowError: an integer outside of 64 bits.
    """
    hashes = _hash_many(type_, keys)
    return ((hashes + np.uint64(COMBINE)) % np.uint64(modulus)).astype(np.int64)


# One key.


def _rotate(word: int, bits: int) -> int:
    return ((word << bits) | (word >> (32 - bits))) & _U32


def _start(length: int) -> _State:
    a = (_INIT + length) & _U32
    return _mix((a + (PARTITION_SEED >> 32)) & _U32, (a + (PARTITION_SEED & _U32)) & _U32, a)


def _mix(a: int, b: int, c: int) -> _State:
    a, c = (a - c) & _U32 ^ _rotate(c, 4), (c + b) & _U32
    b, a = (b - a) & _U32 ^ _rotate(a, 6), (a + c) & _U32
    c, b = (c - b) & _U32 ^ _rotate(b, 8), (b + a) & _U32
    a, c = (a - c) & _U32 ^ _rotate(c, 16), (c + b) & _U32
    b, a = (b - a) & _U32 ^ _rotate(a, 19), (a + c) & _U32
    c, b = (c - b) & _U32 ^ _rotate(b, 4), (b + a) & _U32
    return a, b, c


def _finish(a: int, b: int, c: int) -> int:
    c = ((c ^ b) - _rotate(b, 14)) & _U32
    a = ((a ^ c) - _rotate(c, 11)) & _U32
    b = ((b ^ a) - _rotate(a, 25)) & _U32
    c = ((c ^ b) - _rotate(b, 16)) & _U32
    a = ((a ^ c) - _rotate(c, 4)) & _U32
    b = ((b ^ a) - _rotate(a, 14)) & _U32
    c = ((c ^ b) - _rotate(b, 24)) & _U32
    return b << 32 | c


def _hash_integer(key: int) -> int:
    # Folding the high half in, inverted below zero, is what makes the integer types hash alike.
    high = key >> 32
    low = (key ^ (high if key >= 0 else ~high)) & _U32
    a, b, c = _start(4)
    return _finish((a + low) & _U32, b, c)


def _hash_bytes(data: bytes) -> int:
    length = len(data)
    a, b, c = _start(length)
    whole = length - length % _BLOCK
    for at in range(0, whole, _BLOCK):
        a, b, c = _mix(
            (a + int.from_bytes(data[at : at + 4], "little")) & _U32,
            (b + int.from_bytes(data[at + 4 : at + 8], "little")) & _U32,
            (c + int.from_bytes(data[at + 8 : at + 12], "little")) & _U32,
        )
    a += int.from_bytes(data[whole : whole + 4], "little")
    b += int.from_bytes(data[whole + 4 : whole + 8], "little")
    # The lowest byte of c stays free: lookup3 keeps it for the length.
    c += int.from_bytes(data[whole + 8 :], "little") << 8
    return _finish(a & _U32, b & _U32, c & _U32)


# Many keys: the same steps on arrays of uint32, which wrap by themselves.


def _hash_many(type_: ValueType, keys: Keys) -> NDArray[np.uint64]:
    match type_:
        case ValueType.BIGINT | ValueType.INTEGER | ValueType.SMALLINT:
            return _hash_integers(_as_int64(keys))
        case ValueType.UUID:
            return _hash_uuids(_as_uuid_bytes(keys))
        case ValueType.TEXT:
            return _hash_texts(keys)
    raise TypeError(f"no partition hash for {type_}")


def _as_int64(keys: Keys) -> NDArray[np.int64]:
    if not isinstance(keys, np.ndarray):
        # Through object, so that numpy neither truncates 1.5 nor takes True for 1.
        if not all(type(key) is int for key in keys):
            raise TypeError("expected integers only")
        return np.array(keys, dtype=np.int64)
    if keys.dtype.kind not in "iu":
        raise TypeError(f"expected integers, got an array of {keys.dtype}")
    if keys.dtype == np.uint64 and keys.size and keys.max() > np.iinfo(np.int64).max:
        raise OverflowError("an integer outside of 64 bits with a sign")
    return keys.astype(np.int64, copy=False)


def _as_uuid_bytes(keys: Keys) -> NDArray[np.uint8]:
    if isinstance(keys, np.ndarray) and keys.dtype == np.uint8 and keys.ndim == 2 and keys.shape[1] == 16:
        return keys.astype(np.uint8, copy=False)
    joined = bytearray()
    for key in keys:
        if not isinstance(key, uuid.UUID):
            raise TypeError(f"expected UUIDs, got {type(key).__name__}")
        joined += key.bytes
    return np.frombuffer(bytes(joined), dtype=np.uint8).reshape(-1, 16)


def _hash_integers(keys: NDArray[np.int64]) -> NDArray[np.uint64]:
    high = keys >> 32
    low = (keys ^ np.where(keys >= 0, high, ~high)).astype(np.uint32)
    a, b, c = _start_many(np.full(len(keys), 4, dtype=np.uint32))
    return _finish_many(a + low, b, c)


def _hash_uuids(keys: NDArray[np.uint8]) -> NDArray[np.uint64]:
    padded = np.zeros((len(keys), 2 * _BLOCK), dtype=np.uint8)
    padded[:, :16] = keys
    return _hash_padded(padded.view("<u4"), np.full(len(keys), 16, dtype=np.uint32))


def _hash_texts(keys: Keys) -> NDArray[np.uint64]:
    encoded = []
    for key in keys:
        if not isinstance(key, str):
            raise TypeError(f"expected strings, got {type(key).__name__}")
        encoded.append(key.encode())
    lengths = np.fromiter(map(len, encoded), dtype=np.int64, count=len(encoded))
    hashes = np.empty(len(encoded), dtype=np.uint64)
    rounds = lengths // _BLOCK
    for count in np.unique(rounds):
        members = np.flatnonzero(rounds == count)
        hashes[members] = _hash_alike([encoded[at] for at in members], int(count))
    return hashes


def _hash_alike(keys: list[bytes], rounds: int) -> NDArray[np.uint64]:
    """Hashes of byte strings that take equally many whole blocks."""
    # Measured: a round costs 16 µs in numpy whatever the number of keys, and 2 µs per key without it.
    if len(keys) < 8:
        return np.array([_hash_bytes(key) for key in keys], dtype=np.uint64)
    width = (rounds + 1) * _BLOCK
    padded = np.frombuffer(b"".join([key.ljust(width, b"\0") for key in keys]), dtype="<u4")
    lengths = np.fromiter(map(len, keys), dtype=np.uint32, count=len(keys))
    return _hash_padded(padded.reshape(len(keys), -1), lengths)


def _hash_padded(words: Words, lengths: Words) -> NDArray[np.uint64]:
    """Hashes of rows that are padded with zeros to one block more than their whole blocks."""
    a, b, c = _start_many(lengths)
    last = words.shape[1] - 3
    for at in range(0, last, 3):
        a, b, c = _mix_many(a + words[:, at], b + words[:, at + 1], c + words[:, at + 2])
    return _finish_many(a + words[:, last], b + words[:, last + 1], c + (words[:, last + 2] << np.uint32(8)))


def _rotate_many(words: Words, bits: int) -> Words:
    return (words << np.uint32(bits)) | (words >> np.uint32(32 - bits))


def _start_many(lengths: Words) -> _States:
    a = lengths + np.uint32(_INIT & _U32)
    return _mix_many(a + np.uint32(PARTITION_SEED >> 32), a + np.uint32(PARTITION_SEED & _U32), a)


def _mix_many(a: Words, b: Words, c: Words) -> _States:
    a, c = (a - c) ^ _rotate_many(c, 4), c + b
    b, a = (b - a) ^ _rotate_many(a, 6), a + c
    c, b = (c - b) ^ _rotate_many(b, 8), b + a
    a, c = (a - c) ^ _rotate_many(c, 16), c + b
    b, a = (b - a) ^ _rotate_many(a, 19), a + c
    c, b = (c - b) ^ _rotate_many(b, 4), b + a
    return a, b, c


def _finish_many(a: Words, b: Words, c: Words) -> NDArray[np.uint64]:
    c = (c ^ b) - _rotate_many(b, 14)
    a = (a ^ c) - _rotate_many(c, 11)
    b = (b ^ a) - _rotate_many(a, 25)
    c = (c ^ b) - _rotate_many(b, 16)
    a = (a ^ c) - _rotate_many(c, 4)
    b = (b ^ a) - _rotate_many(a, 14)
    c = (c ^ b) - _rotate_many(b, 24)
    return (b.astype(np.uint64) << np.uint64(32)) | c
