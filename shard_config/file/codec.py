"""From a file to a `ShardMap` and back: all that is wrong with it at once, or a map that can be trusted."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from shard_config import limits
from shard_config.file.collection import read_collections, show_collections
from shard_config.file.document import Refused, compose
from shard_config.file.fields import Field, integer, later, named_of, ref, shown, values
from shard_config.file.nodes import read_shards, show_shards
from shard_config.file.problems import MAX_PROBLEMS, Findings, MapError, Problem, TooManyProblems
from shard_config.file.reader import Context, Cursor
from shard_config.file.services import read_models, read_rerankers, show_models, show_rerankers
from shard_config.model import ShardMap

__all__ = ["MAP", "MapError", "about_dsns", "load", "parse", "read", "to_json"]

MAP = {
    "version": integer(limits.VERSION, help="Raise it with every change of the map.").required("1"),
    "shards": Field(
        read_shards,
        {**named_of(ref("shard")), "minProperties": 1, "maxProperties": limits.SHARDS},
        show=show_shards,
    ).required("{s0: {nodes: [{name: s0-a, dsn: ...}]}}"),
    "models": Field(
        read_models,
        {**named_of(ref("model")), "maxProperties": limits.SERVICES},
        help="Services that turn texts into vectors.",
        show=show_models,
    ),
    "rerankers": Field(
        read_rerankers,
        {**named_of(ref("reranker")), "maxProperties": limits.SERVICES},
        help="Services that score texts against a query.",
        show=show_rerankers,
    ),
    "collections": later(named_of(ref("collection")), show=show_collections),
}

_TOO_LARGE = f"larger than {limits.FILE_BYTES} bytes"


def load(path: str | os.PathLike[str], env: Mapping[str, str] = os.environ) -> ShardMap:
    """The shard map in the file at `path`.

    Raises:
        MapError: with all that is wrong; also where the file cannot be read.
    """
    return parse(read(path), os.fspath(path), env)


def read(path: str | os.PathLike[str]) -> str:
    """The text of the file at `path`, whatever it says.

    Raises:
        MapError: it cannot be read, or is no text.
    """
    name = os.fspath(path)
    try:
        with open(path, "rb") as file:
            data = file.read(limits.FILE_BYTES + 1)
    except OSError as exc:
        raise MapError([Problem(name, 0, 0, "", f"cannot be read: {exc.strerror or exc}")]) from exc
    if len(data) > limits.FILE_BYTES:
        raise MapError([Problem(name, 0, 0, "", _TOO_LARGE)])
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        line = data.count(b"\n", 0, exc.start) + 1
        column = exc.start - data.rfind(b"\n", 0, exc.start)
        raise MapError([Problem(name, line, column, "", "not UTF-8")]) from None


def parse(
    text: str,
    name: str = "shard map",
    env: Mapping[str, str] = os.environ,
) -> ShardMap:
    """The shard map that `text` describes.

    Args:
        name: what findings call the text.

    Raises:
        MapError: with all that is wrong.
    """
    if len(text) > limits.FILE_BYTES:
        raise MapError([Problem(name, 0, 0, "", _TOO_LARGE)])
    findings = Findings(name)
    try:
        root = compose(text)
        shard_map = _read(Cursor(root, "", 1, 1, Context(findings, env)))
    except Refused as exc:
        raise MapError([Problem(name, exc.line, exc.column, "", exc.message)]) from None
    except TooManyProblems:
        more = Problem(name, 0, 0, "", f"{MAX_PROBLEMS} problems or more; these were found first")
        raise MapError([more, *findings.problems]) from None
    if findings.problems:
        raise MapError(findings.problems)
    return shard_map


def about_dsns(
    text: str, name: str, shard_map: ShardMap, complaints: Callable[[str], Iterable[str]]
) -> list[Problem]:
    """What `complaints` says of each node's DSN, with its place in `text`, which is that of `shard_map`."""
    shards = Cursor(compose(text), "", 1, 1, Context(Findings(name), {}))["shards"]
    return [
        Problem(name, at["dsn"].line, at["dsn"].column, at["dsn"].path, said)
        for shard in shard_map.shards.values()
        for node, at in zip(shard.nodes, shards[shard.name]["nodes"].items(), strict=True)
        for said in complaints(node.dsn)
    ]


def to_json(shard_map: ShardMap) -> dict[str, Any]:
    """The map as JSON values under the names of the file, every default written out.

    But for `***` in place of passwords and keys, reading it back gives an equal map.
    """
    return shown(shard_map, MAP)


def _read(root: Cursor) -> ShardMap:
    found = values(root, MAP)
    collections = read_collections(found.pop("collections"), found["shards"], found["models"])
    return ShardMap(**found, collections=collections)
