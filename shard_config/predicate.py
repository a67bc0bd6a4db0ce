"""The rows of a shard as an SQL expression, for tables that hold rows already and for moving rows.

The expressions use built-in immutable functions only, so they need no helper table and may also stand
in an index or in the row filter of a publication. They are never NULL: a row with a NULL key has no
place, and `NOT (predicate)` finds it.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date

from shard_config.hashing import COMBINE, PARTITION_SEED
from shard_config.model import HashSharding, ListSharding, RangeSharding, Sharding
from shard_config.values import ValueType

_HASH = {
    ValueType.BIGINT: "hashint8extended",
    ValueType.INTEGER: "hashint8extended",
    ValueType.SMALLINT: "hashint8extended",
    ValueType.TEXT: "hashtextextended",
    ValueType.UUID: "uuid_hash_extended",
}
_TWO_64 = 1 << 64


def sql_predicate(sharding: Sharding, shard: str) -> str:
    """An SQL boolean expression over the key column, true for exactly the rows that belong to `shard`.

    Identifiers and literals in it are quoted. Text is hashed as PostgreSQL does under any deterministic
    collation and is compared under collation "C".
    """
    column = f'"{sharding.key.column}"'
    match sharding:
        case HashSharding():
            owned = [at for at, owner in enumerate(sharding.placement) if owner == shard]
            condition = _in_buckets(_bucket(sharding, column), owned, sharding.buckets)
        case ListSharding():
            condition = _in_list(sharding, column, shard)
        case RangeSharding():
            condition = _in_ranges(sharding, column, shard)
    return "false" if condition == "false" else f"({column} IS NOT NULL AND {condition})"


def literal(type_: ValueType, value: object) -> str:
    """A value that `coerce` gave for the type, as an SQL literal with a cast."""
    text = value.isoformat() if isinstance(value, date) else str(value)
    escaped = text.replace("'", "''").replace("\\", "\\\\")
    # The E form means the same whatever standard_conforming_strings says.
    prefix = "E" if "\\" in text else ""
    return f"{prefix}'{escaped}'::{type_}"


def _bucket(sharding: HashSharding, column: str) -> str:
    """The key's bucket as an integer expression: (unsigned hash + COMBINE) mod 2^64 mod modulus."""
    hashed = f"{_HASH[sharding.key.type]}({column}, {PARTITION_SEED})"
    modulus = sharding.buckets
    if modulus & (modulus - 1) == 0:
        # The low bits of the sum depend on the low bits of its parts alone, signed or not.
        mask = modulus - 1
        return f"((({hashed} & {mask}) + {COMBINE & mask}) & {mask})"
    return f"mod(mod({hashed}::numeric + {_TWO_64 + COMBINE}, {_TWO_64}), {modulus})::bigint"


def _in_buckets(bucket: str, owned: list[int], modulus: int) -> str:
    if not owned:
        return "false"
    if len(owned) == modulus:
        return "true"
    if owned[-1] - owned[0] == len(owned) - 1:
        return f"{bucket} BETWEEN {owned[0]} AND {owned[-1]}"
    return f"{bucket} = ANY ('{{{','.join(map(str, owned))}}}'::bigint[])"


def _in_list(sharding: ListSharding, column: str, shard: str) -> str:
    key = _comparable(sharding.key.type, column)
    if shard != sharding.default:
        here = [value for value, owner in sharding.values.items() if owner == shard]
        return f"{key} = ANY ({_array(sharding.key.type, here)})" if here else "false"
    elsewhere = [value for value, owner in sharding.values.items() if owner != shard]
    return f"{key} <> ALL ({_array(sharding.key.type, elsewhere)})" if elsewhere else "true"


def _in_ranges(sharding: RangeSharding, column: str, shard: str) -> str:
    key, type_ = _comparable(sharding.key.type, column), sharding.key.type
    parts = []
    for part in sharding.parts:
        if part.shard == shard:
            ends = [] if part.lower is None else [f"{key} >= {literal(type_, part.lower)}"]
            ends += [] if part.upper is None else [f"{key} < {literal(type_, part.upper)}"]
            parts.append(" AND ".join(ends) or "true")
    return f"({' OR '.join(f'({part})' for part in parts)})" if parts else "false"


def _comparable(type_: ValueType, column: str) -> str:
    return f'{column} COLLATE "C"' if type_ is ValueType.TEXT else column


def _array(type_: ValueType, values: Iterable[object]) -> str:
    return f"ARRAY[{', '.join(literal(type_, value) for value in values)}]"
