"""cluster.json: the servers of a cluster, as they were when a command last looked.

Invariant: a reader finds a whole file or none, since a new one takes the old one's place at once.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import msgspec

__all__ = ["STATE_FILE", "ClusterError", "NodeInfo", "RedisInfo", "State", "read_state", "write_state"]

STATE_FILE = "cluster.json"


class ClusterError(Exception):
    pass


@dataclass(frozen=True)
class NodeInfo:
    """One PostgreSQL server; `pid` is None while it is not running."""

    name: str
    shard: str
    role: str
    host: str
    port: int
    pid: int | None
    user: str
    database: str
    dsn: str


@dataclass(frozen=True)
class RedisInfo:
    url: str
    host: str
    port: int
    pid: int | None


@dataclass(frozen=True)
class State:
    """Every server; `replicas` is how many each shard has. `redis_url` repeats what scripts look for."""

    shards: int
    replicas: int
    nodes: Annotated[list[NodeInfo], msgspec.Meta(min_length=1)]
    redis: RedisInfo
    redis_url: str

    @property
    def members(self) -> dict[str, list[str]]:
        """The names of each shard's nodes."""
        found: dict[str, list[str]] = {}
        for node in self.nodes:
            found.setdefault(node.shard, []).append(node.name)
        return found

    @property
    def ports(self) -> dict[str, int]:
        """Of each server by its name, Redis included."""
        return {**{node.name: node.port for node in self.nodes}, "redis": self.redis.port}


def read_state(directory: Path) -> State | None:
    """None where there is no such file.

    Raises:
        ClusterError: it cannot be read, or is none.
    """
    path = directory / STATE_FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=State)
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise ClusterError(f"{path}: cannot be read: {exc.strerror}") from exc
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise ClusterError(f"{path}: not as a cluster writes it: {exc}") from exc


def write_state(directory: Path, state: State) -> None:
    fresh = directory / f"{STATE_FILE}.new"
    fresh.write_text(json.dumps(asdict(state), indent=2) + "\n")
    fresh.replace(directory / STATE_FILE)
