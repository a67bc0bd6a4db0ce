"""How `pgscatter serve` was configured, and how that reaches its worker processes.

Flags win over environment variables, which win over defaults. A worker is a fresh process that imports
the application by name, so the whole configuration travels in one variable of its environment.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, MutableMapping
from typing import Any, get_args

import msgspec

from router.settings import Settings, origins_of

__all__ = ["HELP", "ServeConfig", "add_setting_flags", "export", "from_env", "read_settings"]

_VARIABLE = "PGSCATTER_SERVE_CONFIG"
_PREFIX = "PGSCATTER_"
_MOST = 1 << 53

HELP: dict[str, str] = {
    "max_body_bytes": "largest JSON body",
    "max_stream_bytes": "largest stream of newline-delimited documents",
    "max_line_bytes": "longest line of such a stream",
    "max_batch": "searches in one batch",
    "max_documents": "documents or ids in one JSON body",
    "max_filter_depth": "levels of nesting in a filter",
    "max_filter_conditions": "conditions in a filter",
    "max_filter_values": "values of one list in a filter, such as that of $in",
    "max_offset": "largest offset of a search",
    "max_timeout": "longest timeout that a search may ask for, in seconds",
    "max_concurrent": "requests answered at the same time by one worker",
    "max_answer_bytes": "largest answer to a search, a batch or a read",
    "answer_memory_bytes": "size of all large answers being made and sent, per worker",
    "cors_origins": "origins whose pages may call the router from a browser, joined by commas; * for all",
    "write_timeout": "longest time for a write, and between parts of a stream, in seconds",
    "drain_timeout": "longest time for requests to finish at shutdown, in seconds",
    "node_connections": "connections to a node for reads, and so statements there at once, per worker",
    "node_statements": "statements at once that a node is given however busy it seems, per worker",
    "node_together": "searches that one statement may carry",
    "node_queue": "searches that may wait for a node, per worker",
    "node_queue_wait": "how long a search may wait for a node",
    "write_connections": "connections to a node for writes, per worker",
    "connect_timeout": "longest time to connect to a node, in seconds",
    "cancel_timeout": "longest time for a node to confirm a cancelled statement, in seconds",
    "probe_interval": "time between two probes of a node, in seconds",
    "probe_timeout": "longest time for a probe, in seconds",
    "failover_wait": "longest time that a write waits for a shard without a primary, in seconds",
    "max_lag": "longest time that a replica may be behind and still be read, in seconds",
    "lag_policy": "what to read when only such replicas are left",
    "primary_reads": "whether primaries are read like replicas, only when no replica can be, or never",
    "zone": "nodes of this zone are read first",
    "statistics_interval": "time between two readings of PostgreSQL's statistics, in seconds; 0 reads none",
    "max_ejected": "share of a shard's nodes that may be left out although probes find them well",
    "hedge_quantile": "share of recent searches after whose time a second node is asked; 0 turns it off",
    "hedge_budget": "such second questions per question at most, per worker",
    "retry_budget": "parts of searches tried on another node per search, at most, per worker",
    "l1_bytes": "size of the cache in memory, per worker; 0 turns it off",
    "body_cache_bytes": "size of the memory of requests that came before, per worker; 0 turns it off",
    "l2_timeout": "longest time that Redis may take, in seconds",
    "l2_pause": "time between two questions to a Redis that failed, in seconds",
    "l2_max_entry_bytes": "largest answer kept in Redis",
    "recall_sample_rate": "share of searches repeated exactly to measure recall; 0 turns it off",
    "recall_budget": "such repetitions per second at most, per worker",
}

_MAY_BE_ZERO = frozenset(
    {
        "max_offset",
        "node_queue",
        "l1_bytes",
        "body_cache_bytes",
        "l2_pause",
        "l2_max_entry_bytes",
        "recall_sample_rate",
        "max_ejected",
        "hedge_quantile",
        "hedge_budget",
        "retry_budget",
        "failover_wait",
        "statistics_interval",
    }
)


class _Kind(msgspec.Struct, frozen=True):
    """What a setting's number is, for help and messages."""

    metavar: str
    name: str
    most: float = _MOST


# All others are times or whole numbers, as their type says.
_SHARE = _Kind("SHARE", "a share", 1.0)
_KINDS = {
    "recall_sample_rate": _SHARE,
    "max_ejected": _SHARE,
    "hedge_quantile": _SHARE,
    "hedge_budget": _SHARE,
    "retry_budget": _SHARE,
    "recall_budget": _Kind("RATE", "a rate"),
}


class ServeConfig(msgspec.Struct, frozen=True):
    """What a worker needs to know.

    Attributes:
        shared_path: the file of all workers, if there are several.
        map_copy: the map's text as it was when the command started, if there are several workers: one
            that replaces another must serve what the others serve, whatever became of the file.
        keys_copy: the same of the keys, as `router.http.keys_file.save` writes them; None if all is open.
    """

    map_path: str
    redis_url: str | None = None
    settings: Settings = Settings()
    log_level: str = "info"
    workers: int = 1
    shared_path: str | None = None
    map_copy: str | None = None
    keys_copy: str | None = None


def export(config: ServeConfig, env: MutableMapping[str, str]) -> None:
    """Put `config` where `from_env` of a child process finds it."""
    env[_VARIABLE] = msgspec.json.encode(config).decode()


def from_env(env: Mapping[str, str]) -> ServeConfig:
    """
    Raises:
        RuntimeError: the process was not started by `pgscatter serve`.
    """
    try:
        return msgspec.json.decode(env[_VARIABLE], type=ServeConfig)
    except KeyError as exc:
        raise RuntimeError(f"{_VARIABLE} is not set; start the application with pgscatter serve") from exc


def add_setting_flags(parser: argparse.ArgumentParser) -> None:
    """A flag per field of `Settings`."""
    group = parser.add_argument_group(
        "limits", f"each is an environment variable as well, such as {_PREFIX}MAX_BATCH"
    )
    for field in msgspec.structs.fields(Settings):
        group.add_argument(
            f"--{field.name.replace('_', '-')}",
            metavar=_metavar(field),
            help=f"{HELP[field.name]} (default {'none' if field.default == '' else field.default})",
        )


def read_settings(args: argparse.Namespace, env: Mapping[str, str]) -> Settings:
    """The settings that flags and environment say.

    Raises:
        ValueError: naming the flag or variable, and what it takes.
    """
    values: dict[str, Any] = {}
    for field in msgspec.structs.fields(Settings):
        flag = f"--{field.name.replace('_', '-')}"
        variable = _PREFIX + field.name.upper()
        text, source = getattr(args, field.name), flag
        if text is None:
            text, source = env.get(variable), variable
        if text is not None:
            values[field.name] = _value(text, field, source)
    return Settings(**values)


def _metavar(field: msgspec.structs.FieldInfo) -> str:
    if field.type is str:
        return "ORIGINS" if field.name == "cors_origins" else "NAME"
    return "|".join(get_args(field.type)) or _kind(field).metavar


def _value(text: str, field: msgspec.structs.FieldInfo, source: str) -> float | str:
    if field.name == "cors_origins":
        try:
            origins_of(text)
        except ValueError as exc:
            raise ValueError(f"{source}: {exc}") from exc
    if field.type is str:
        return text
    choices = get_args(field.type)
    if choices and text not in choices:
        raise ValueError(f"{source}: expected one of {', '.join(choices)}, got {text[:40]!r}")
    return text if choices else _number(text, field, source)


def _kind(field: msgspec.structs.FieldInfo) -> _Kind:
    usual = _Kind("SECONDS", "a number of seconds") if field.type is float else _Kind("N", "a whole number")
    return _KINDS.get(field.name, usual)


def _number(text: str, field: msgspec.structs.FieldInfo, source: str) -> float:
    kind, zero = _kind(field), field.name in _MAY_BE_ZERO
    least = "of at least 0" if zero else "above 0"
    most = "" if kind.most == _MOST else f" and at most {kind.most:g}"
    try:
        value: float = field.type(text)
    except ValueError:
        value = math.nan
    if not (0 <= value <= kind.most) or (value == 0 and not zero):
        raise ValueError(f"{source}: expected {kind.name} {least}{most}, got {text[:40]!r}")
    return value
