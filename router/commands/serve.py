"""`pgscatter serve`: the router as an HTTP server."""

from __future__ import annotations

import argparse
import os
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from router.freshness.worker_counters import MAX_WORKERS, create
from router.logs import LEVELS, configure
from router.postgres.dsn_files import files_of_map
from router.serve_config import ServeConfig, add_setting_flags, export, read_settings
from shard_config import MapError, ShardMap
from shard_config.file import codec

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from router.http.keys import Keys

__all__ = ["add_parser"]

_APP = "router.app:create_app"
_REDIS_SCHEMES = ("redis://", "rediss://", "unix://")


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "serve",
        help="serve searches and writes over HTTP",
        # argparse shows the usage before an error: with all flags, the error would be off the screen.
        usage="%(prog)s --map FILE [FLAG ...]   (--help lists the flags)",
    )
    parser.add_argument("--map", required=True, metavar="FILE", help="the shard map")
    parser.add_argument("--redis", metavar="URL", help="Redis for the cache that several routers share")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default %(default)s)")
    parser.add_argument("--port", type=int, default=8080, help="port, 0 for any (default %(default)s)")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes (default %(default)s)")
    parser.add_argument(
        "--api-keys", metavar="FILE", help="YAML file of keys; required unless the host is loopback"
    )
    parser.add_argument("--log-level", choices=LEVELS, default="info", help="(default %(default)s)")
    add_setting_flags(parser)
    parser.set_defaults(run=_run, parser=parser)


def _run(args: argparse.Namespace) -> int:
    config = _config(args)
    # Imported here, because no other command needs uvicorn.
    from router.http.keys_file import KeysError
    from router.http.keys_file import load as load_keys
    from router.http.server import is_loopback, listen, run

    try:
        text = codec.read(args.map)
        shard_map = codec.parse(text, args.map, directory=Path(args.map).parent)
        keys = None if args.api_keys is None else load_keys(Path(args.api_keys), os.environ)
    except (MapError, KeysError) as exc:
        return _failed(str(exc))
    files = files_of_map(shard_map)
    if files:
        return _failed("\n".join(f"{args.map}: {complaint}" for complaint in files))
    try:
        listener = listen(args.host, args.port)
    except OSError as exc:
        return _failed(f"cannot listen on {args.host} port {args.port}: {exc.strerror or exc}")
    with listener:
        if keys is None and not is_loopback(listener):
            return _failed(
                f"{args.host} can be reached from other machines, and there are no keys; "
                "name a file of keys with --api-keys, or listen on 127.0.0.1"
            )
        with _app(config, shard_map, text, keys) as app:
            configure(config.log_level)

            def ready() -> None:
                _say(f"pgscatter serves map version {shard_map.version} on {_url(listener)}")

            drain = config.settings.drain_timeout
            return run(app, listener, workers=config.workers, drain_timeout=drain, ready=ready)


def _config(args: argparse.Namespace) -> ServeConfig:
    """What the flags say; leaves with status 2 if they are wrong."""
    parser: argparse.ArgumentParser = args.parser
    if not 1 <= args.workers <= MAX_WORKERS:
        parser.error(f"--workers: expected 1 to {MAX_WORKERS}, got {args.workers}")
    if not 0 <= args.port <= 65535:
        parser.error(f"--port: expected 0 to 65535, got {args.port}")
    if args.redis is not None and not args.redis.startswith(_REDIS_SCHEMES):
        parser.error(f"--redis: expected a URL that begins with {', '.join(_REDIS_SCHEMES)}")
    if args.redis is not None:
        # Imported here, because only routers with a Redis need its client.
        from router.freshness.redis_link import check_url

        try:
            check_url(args.redis)
        except ValueError as exc:
            parser.error(f"--redis: {exc}")
    try:
        settings = read_settings(args, os.environ)
    except ValueError as exc:
        parser.error(str(exc))
    return ServeConfig(
        map_path=os.path.abspath(args.map),
        redis_url=args.redis,
        settings=settings,
        log_level=args.log_level,
        workers=args.workers,
    )


@contextmanager
def _app(
    config: ServeConfig, shard_map: ShardMap, text: str, keys: Keys | None
) -> Iterator[str | Callable[[], ASGIApp]]:
    """The application, or for several workers the name of one that reads what was read here from a copy.

    The files themselves may have been edited when a worker replaces one that died. Two workers with different
    maps would write one document to different shards, and a file that is just being saved would end worker
    after worker.
    """
    if config.workers == 1:
        from router.app import application

        yield partial(application, config, shard_map, keys)
        return
    # A temporary folder is readable by its owner only: keys and passwords are in it.
    with tempfile.TemporaryDirectory(prefix="pgscatter-") as folder:
        export(_shared(config, shard_map, text, keys, Path(folder)), os.environ)
        yield _APP


def _shared(
    config: ServeConfig, shard_map: ShardMap, text: str, keys: Keys | None, folder: Path
) -> ServeConfig:
    """Put what several workers have in common into `folder`."""
    metrics = folder / "metrics"
    metrics.mkdir()
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(metrics)
    versions, map_copy = folder / "versions", folder / "map.yaml"
    create(versions, shard_map)
    map_copy.write_text(text, encoding="utf-8")
    keys_copy = None
    if keys is not None:
        from router.http.keys_file import save

        keys_copy = folder / "keys.json"
        save(keys, keys_copy)
    return msgspec.structs.replace(
        config,
        shared_path=str(versions),
        map_copy=str(map_copy),
        keys_copy=None if keys_copy is None else str(keys_copy),
    )


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _failed(message: str) -> int:
    _say(message)
    return 1


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
