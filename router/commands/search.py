"""`pgscatter search`: one search of a running router, its answer as a table."""

from __future__ import annotations

import argparse
import base64
import io
import os
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec
import numpy as np

from router.client import Client, ClientError, redacted
from router.commands.answer_table import CommandAnswer, show
from router.commands.numbers import real
from router.commands.secrets import read_secret

__all__ = ["add_parser", "json_object"]

_MAX_VECTOR_BYTES = 1 << 20
_NPY_MAGIC = b"\x93NUMPY"
# Columns that tell a reader what a hit is, shown without being asked for.
_TITLES = ("name", "title")
_MODES = ("vector", "fulltext", "hybrid")


class _Collection(msgspec.Struct):
    """What we need of the router's description of a collection."""

    content: bool = False
    columns: dict[str, str] = {}


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser("search", help="ask a running router")
    parser.add_argument("--url", required=True, help="the router, for instance http://127.0.0.1:8080")
    parser.add_argument("--collection", required=True, metavar="C")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--text", help="what to look for, in words")
    what.add_argument(
        "--vector", metavar="FILE", help="a vector to look for: .npy or a JSON list; - is standard input"
    )
    parser.add_argument(
        "--mode",
        choices=_MODES,
        help="by meaning, by the words themselves, or by both (default: vector, which is by meaning)",
    )
    parser.add_argument(
        "--rerank", metavar="MODEL", help="order the best hits by this re-ranking service of the map"
    )
    parser.add_argument(
        "--match",
        choices=["all", "any"],
        help="whether a document must have all words of the text, or any of them (default: all)",
    )
    parser.add_argument("--k", type=int, default=10, metavar="K", help="how many hits (default: 10)")
    parser.add_argument(
        "--filter", type=json_object, metavar="JSON", help="""for instance '{"kind": "class"}'"""
    )
    parser.add_argument(
        "--include",
        type=_names,
        metavar="NAMES",
        help="content, metadata, vector and columns, with commas between them"
        " (default: the content, and a column name or title)",
    )
    parser.add_argument("--exact", action="store_true", help="read every row instead of the index")
    parser.add_argument("--explain", action="store_true", help="show what happened on each shard")
    parser.add_argument("--json", action="store_true", help="print the answer as it came")
    parser.add_argument(
        "--api-key", metavar="KEY", help="default: $PGSCATTER_API_KEY, which no list of processes shows"
    )
    parser.add_argument("--api-key-file", type=Path, metavar="FILE", help="file with the key")
    wait = real("seconds", 0.001, 3600)
    parser.add_argument(
        "--timeout", type=wait, default=30.0, metavar="SECONDS", help="to wait at most (default: 30)"
    )
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    try:
        client = Client(args.url, _key(args), args.timeout)
        path = f"/v1/collections/{quote(args.collection, safe='')}"
        body: dict[str, Any] = {"k": args.k, "include": args.include, **_sought(args)}
        if args.include is None:
            body["include"] = _default_include(client.call("GET", path))
        if args.filter is not None:
            body["filter"] = args.filter
        if args.mode is not None:
            body["mode"] = args.mode
        if args.match is not None:
            body["match"] = args.match
        if args.rerank is not None:
            body["rerank"] = {"model": args.rerank}
        body |= {name: True for name in ("exact", "explain") if getattr(args, name)}
        raw = client.call("POST", f"{path}/search", body)
        if args.json:
            print(raw.decode())
        else:
            show(msgspec.json.decode(raw, type=CommandAnswer), body["include"], asked=args.k)
    except (ClientError, _VectorError, _KeyFileError) as exc:
        print(f"pgscatter search: {exc}", file=sys.stderr)
        return 1
    except (msgspec.DecodeError, UnicodeDecodeError):
        print(f"pgscatter search: what answers at {redacted(args.url)} is not pgscatter", file=sys.stderr)
        return 1
    return 0


class _KeyFileError(Exception):
    pass


def _key(args: argparse.Namespace) -> str | None:
    """
    Raises:
        _KeyFileError
    """
    if args.api_key_file is None:
        return args.api_key or os.environ.get("PGSCATTER_API_KEY")
    try:
        return read_secret(args.api_key_file)
    except ValueError as exc:
        raise _KeyFileError(f"--api-key-file: {exc}") from exc


def _default_include(described: bytes) -> list[str]:
    collection = msgspec.json.decode(described, type=_Collection)
    titles = [name for name in _TITLES if name in collection.columns]
    return [*titles, *(["content"] if collection.content else [])]


# What the arguments hold.


class _VectorError(Exception):
    """The file holds no vector; the message says which file, and why."""


def _sought(args: argparse.Namespace) -> dict[str, Any]:
    """By text or by vector, as the request says it.

    Raises:
        _VectorError
    """
    if args.text is not None:
        return {"text": args.text}
    try:
        data = _bytes_of(args.vector)
        if data.startswith(_NPY_MAGIC):
            return {"vector": _from_npy(data)}
        return {"vector": msgspec.json.decode(data, type=list[float])}
    except (OSError, ValueError, msgspec.DecodeError) as exc:
        name = "standard input" if args.vector == "-" else args.vector
        raise _VectorError(f"no vector in {name}: {exc}") from exc


def _bytes_of(name: str) -> bytes:
    if name == "-":
        data = sys.stdin.buffer.read(_MAX_VECTOR_BYTES + 1)
    else:
        with Path(name).open("rb") as file:
            data = file.read(_MAX_VECTOR_BYTES + 1)
    if len(data) > _MAX_VECTOR_BYTES:
        raise ValueError(f"it is larger than {_MAX_VECTOR_BYTES} bytes")
    return data


def _from_npy(data: bytes) -> str:
    """Base64 of the float32 components, which loses nothing on the way."""
    array = np.load(io.BytesIO(data), allow_pickle=False)
    if array.dtype.kind not in "fiu" or array.shape[-1:] != (array.size,):
        raise ValueError(f"an array of {array.dtype} and shape {array.shape} is not one vector")
    return base64.b64encode(array.astype("<f4").tobytes()).decode()


def json_object(text: str) -> dict[str, Any]:
    """
    Raises:
        argparse.ArgumentTypeError
    """
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except UnicodeError as exc:
        # Python decodes bytes of an argument that are no UTF-8 to lone surrogates, which JSON cannot hold.
        raise argparse.ArgumentTypeError("not a JSON object: not UTF-8") from exc
    except msgspec.DecodeError as exc:
        raise argparse.ArgumentTypeError(f"not a JSON object: {exc}") from exc


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]
