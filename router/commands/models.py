"""`pgscatter models serve`: embedding and re-ranking models as an HTTP service."""

from __future__ import annotations

import argparse
import os
import socket
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from router.commands.numbers import between
from router.commands.secrets import read_secret
from router.http.open_files import raise_limit
from router.logs import LEVELS, AccessLog, configure
from router.model_service.limits import Limits, described
from router.model_service.specs import DEFAULT, ModelSpec
from router.serve_config import add_setting_flags, read_values

if TYPE_CHECKING:
    from router.model_service.backend import Embedder, Reranker

__all__ = ["add_parser"]

_KEY_VARIABLE = "PGSCATTER_MODELS_API_KEY"


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser("models", help="serve models that embed and re-rank texts")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    serve = verbs.add_parser(
        "serve",
        help="serve them over HTTP, until SIGTERM or Ctrl-C",
        usage="%(prog)s [--embedder NAME=BACKEND ...] [--reranker NAME=BACKEND ...] [FLAG ...]   "
        "(--help lists the flags)",
    )
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on (default %(default)s)")
    serve.add_argument(
        "--port",
        type=between((0, 65535)),
        default=8200,
        metavar="P",
        help="port, 0 for any (default %(default)s)",
    )
    serve.add_argument(
        "--embedder",
        action="append",
        metavar="NAME=BACKEND",
        help="a model that embeds: wordllama or sentence-transformers:PATH_OR_NAME; may be given several "
        "times (default wordllama=wordllama)",
    )
    serve.add_argument(
        "--reranker",
        action="append",
        metavar="NAME=BACKEND",
        help="a model that re-ranks: cross-encoder:PATH_OR_NAME or wordllama; may be given several times",
    )
    serve.add_argument(
        "--api-key-file",
        metavar="FILE",
        help="file with the key that requests must bring; required unless the host is loopback "
        f"(default: the key in ${_KEY_VARIABLE})",
    )
    serve.add_argument("--log-level", choices=LEVELS, default="info", help="(default %(default)s)")
    add_setting_flags(serve, described())
    serve.set_defaults(run=_serve, parser=serve)


def _serve(args: argparse.Namespace) -> int:
    limits, embedders, rerankers = _wanted(args)
    raise_limit()
    # Imported here, because the help needs neither uvicorn nor numpy.
    from router.http.life import Life
    from router.http.server import Bounds, is_loopback, listen, serve
    from router.model_service.backend import BackendError
    from router.model_service.edge import Edge
    from router.model_service.specs import load_embedder, load_reranker

    try:
        key = _api_key(args.api_key_file)
        # Bound before the models are loaded, which may take minutes: that the port is taken is said at once.
        listener = listen(args.host, args.port)
    except ValueError as exc:
        return _failed(str(exc))
    except OSError as exc:
        return _failed(f"cannot listen on {args.host} port {args.port}: {exc.strerror or exc}")
    with listener:
        if key is None and not is_loopback(listener):
            return _failed(
                f"{listener.getsockname()[0]} can be reached from other machines, and there is no key; "
                f"name a file with one by --api-key-file, set {_KEY_VARIABLE}, or listen on 127.0.0.1"
            )
        configure(args.log_level)
        try:
            embed = {spec.name: load_embedder(spec) for spec in embedders}
            rerank = {spec.name: load_reranker(spec) for spec in rerankers}
        except BackendError as exc:
            return _failed(str(exc))
        life = Life()
        life.obey_signals()
        log = AccessLog(sys.stderr, level=args.log_level)
        return serve(
            lambda life: Edge(embed, rerank, limits, life, log, key),
            listener,
            life,
            Bounds(limits.drain_delay, limits.drain_timeout),
            ready=partial(_ready, listener, embed, rerank),
        )


def _wanted(args: argparse.Namespace) -> tuple[Limits, list[ModelSpec], list[ModelSpec]]:
    """What the flags say; leaves with status 2 if they are wrong."""
    parser: argparse.ArgumentParser = args.parser
    try:
        limits = Limits(**read_values(args, os.environ, described()))
        embedders = [_spec("--embedder", text) for text in args.embedder or ()] or [DEFAULT]
        rerankers = [_spec("--reranker", text) for text in args.reranker or ()]
    except ValueError as exc:
        parser.error(str(exc))
    names = [spec.name for spec in (*embedders, *rerankers)]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        parser.error(f"two models are named {twice!r}; requests could not say which")
    return limits, embedders, rerankers


def _spec(flag: str, text: str) -> ModelSpec:
    try:
        return ModelSpec.parse(text)
    except ValueError as exc:
        raise ValueError(f"{flag}: {exc}") from exc


def _api_key(file: str | None) -> str | None:
    """
    Raises:
        ValueError: the file holds no key.
    """
    return os.environ.get(_KEY_VARIABLE) or None if file is None else read_secret(Path(file))


def _ready(
    listener: socket.socket, embedders: Mapping[str, Embedder], rerankers: Mapping[str, Reranker]
) -> None:
    models = [
        *(f"{name} ({one.backend}, {one.dimensions} dimensions)" for name, one in embedders.items()),
        *(f"{name} ({one.backend}, re-ranks)" for name, one in rerankers.items()),
    ]
    host, port = listener.getsockname()[:2]
    host = f"[{host}]" if ":" in host else host
    _say(f"pgscatter serves {', '.join(models)} on http://{host}:{port}")


def _failed(message: str) -> int:
    _say(message)
    return 1


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
