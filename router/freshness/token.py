"""What stands in Redis beside the answers of one collection: its token, and the positions of its writes.

A token is a random name under which answers are stored; they count only while it is still there. Beside
it stand, for shards that were written, the newest log positions that routers have told of: `written`. Both
are one value, so that they come and go together. It has a `lineage`, another random name that stays when a
write brings a new token: within one lineage, `written` has every position that Redis was told of since the
lineage began; what it was told of before may have been lost. Pure, but for the script that Redis runs.

Positions are compared with their timelines. After a promotion the log goes on, on a later timeline, from
a point that may lie before the end of the earlier one: what lay beyond is void.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping

import msgspec

from router.query.types import Position

__all__ = [
    "REPLACE_TOKEN",
    "Token",
    "decode",
    "encode",
    "floors",
    "holds",
    "key_of",
    "random_token",
    "reaches",
    "script_args",
]

_TOKEN_BYTES = 12
# Hexadecimal of one width, so that the scripts compare numbers of 64 bits by comparing strings.
_TIMELINE, _POSITION = 8, 16

# Puts a new token (ARGV[1]) in the place of the old one, for ARGV[2] milliseconds, with the positions known
# so far and those told now (ARGV[3] a shard, ARGV[4] its position, and so on).
#
# A position below the known one was told late, or is of a log that began anew, as after a restore. Nobody
# can tell which. So the lineage ends, and the lower one stands: routers find out for themselves how far
# the log reaches (see `floors`), and a restored shard's answers are not refused for ever.
#
# On a Redis that is full, DEL is allowed, and so is what follows the first change that a script makes.
REPLACE_TOKEN = """
local known, value = pcall(cjson.decode, redis.call('GET', KEYS[1]) or '')
if not known or type(value) ~= 'table' or type(value.written) ~= 'table' then
  value = {lineage = ARGV[1], written = {}}
end
value.token = ARGV[1]
for i = 3, #ARGV, 2 do
  local before = value.written[ARGV[i]]
  if before and before > ARGV[i + 1] then
    value.lineage = ARGV[1]
  end
  value.written[ARGV[i]] = ARGV[i + 1]
end
redis.call('DEL', KEYS[1])
redis.call('SET', KEYS[1], cjson.encode(value), 'PX', ARGV[2])
return 1
"""


class Token(msgspec.Struct, frozen=True):
    token: str
    lineage: str
    written: dict[str, Position]


class _Value(msgspec.Struct, frozen=True):
    token: str
    lineage: str
    written: dict[str, str] = {}


_decoder = msgspec.json.Decoder(_Value)


def key_of(collection: str) -> str:
    """Where Redis keeps the collection's token."""
    return f"pgscatter:token:{collection}"


def random_token() -> str:
    return secrets.token_hex(_TOKEN_BYTES)


def encode(token: str) -> bytes:
    """The value of a token with which a lineage begins: no write has been told of yet."""
    return msgspec.json.encode(_Value(token, token))


def decode(value: bytes) -> Token:
    """A value in Redis; one that says nothing of positions, as earlier routers wrote, is a token too."""
    try:
        found = _decoder.decode(value)
        written = {shard: _parsed(text) for shard, text in found.written.items()}
        return Token(found.token, found.lineage, written)
    except (msgspec.DecodeError, ValueError):
        return Token(value.hex(), value.hex(), {})


def script_args(positions: Mapping[str, Position]) -> list[str]:
    """The arguments of `REPLACE_TOKEN` for newly written positions, by shard."""
    flat: list[str] = []
    for shard, (timeline, lsn) in positions.items():
        flat += [shard, f"{timeline:0{_TIMELINE}x}{lsn:0{_POSITION}x}"]
    return flat


def _parsed(text: str) -> Position:
    return Position(int(text[:_TIMELINE], 16), int(text[_TIMELINE:], 16))


def floors(written: Mapping[str, Position], heads: Mapping[str, Position]) -> dict[str, Position]:
    """What an answer must reach to be stored, per shard.

    `heads` is where the primaries' logs ended when they were probed, after the lineage was first seen: at or
    beyond every write that was told of before. Of two timelines the later one counts, and its positions.
    """
    return {shard: max(head, written.get(shard, head)) for shard, head in heads.items()}


def reaches(positions: Mapping[str, tuple[int, int]], floor: Mapping[str, Position]) -> bool:
    """Whether rows read at `positions` hold all that was written up to `floor`.

    The timeline must be as late and the log as long: a replica that is to follow a promotion may still be
    before the point where it happened.
    """
    return all(
        shard in floor and timeline >= floor[shard].timeline and lsn >= floor[shard].lsn
        for shard, (timeline, lsn) in positions.items()
    )


def holds(positions: Mapping[str, tuple[int, int]], written: Mapping[str, Position]) -> bool:
    """Whether an entry, which reached its floor when it was stored, holds the writes told of."""
    for shard, mark in written.items():
        if positions.get(shard, mark) < mark:
            return False
    return True
