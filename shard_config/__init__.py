"""The shard map: which nodes there are, and on which shard each row lives. Imports nothing of `router`."""

from shard_config.file.codec import load, parse, to_json
from shard_config.file.problems import MapError
from shard_config.model import Collection, ShardMap
from shard_config.partition import NoPlaceError, locate, locate_many

__all__ = [
    "Collection",
    "MapError",
    "NoPlaceError",
    "ShardMap",
    "load",
    "locate",
    "locate_many",
    "parse",
    "to_json",
]
