"""`pgscatter serve`: the router as an HTTP server."""

from __future__ import annotations

import argparse
import fcntl
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from router.commands.secrets import holds_password, redis_url
from router.freshness.worker_counters import MAX_WORKERS, create
from router.http.open_files import raise_limit
from router.http.systemd import inherited_listener, notify
from router.logs import LEVELS, configure
from router.postgres.dsn_files import file_complaints
from router.serve_config import ServeConfig, add_setting_flags, export, read_settings
from shard_config import MapError, ShardMap
from shard_config.file import codec

if TYPE_CHECKING:
    from router.http.keys import Keys
    from router.http.keys_watch import KeysWatch
    from router.http.life import Life
    from router.http.server import Bounds

__all__ = ["add_parser"]

_APP = "router.app:create_app"


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "serve",
        help="serve searches and writes over HTTP",
        # argparse shows the usage before an error: with all flags, the error would be off the screen.
        usage="%(prog)s --map FILE [FLAG ...]   (--help lists the flags)",
    )
    parser.add_argument("--map", required=True, metavar="FILE", help="the shard map")
    parser.add_argument(
        "--redis",
        metavar="URL",
        help="Redis for the cache that several routers share; ${VAR} in it is read from the environment"
        " (default: $PGSCATTER_REDIS)",
    )
    parser.add_argument(
        "--redis-password-file",
        metavar="FILE",
        help="file with the password of Redis (default: $PGSCATTER_REDIS_PASSWORD_FILE)",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default %(default)s)")
    parser.add_argument("--port", type=int, default=8080, help="port, 0 for any (default %(default)s)")
    parser.add_argument(
        "--reuse-port",
        action="store_true",
        help="share the port with a router that was started like this by the same account; the newest takes "
        "all new connections",
    )
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="processes (default %(default)s)")
    parser.add_argument(
        "--api-keys", metavar="FILE", help="YAML file of keys; required unless the host is loopback"
    )
    parser.add_argument("--log-level", choices=LEVELS, default="info", help="(default %(default)s)")
    add_setting_flags(parser)
    parser.set_defaults(run=_run, parser=parser)


def _run(args: argparse.Namespace) -> int:
    if threading.current_thread() is threading.main_thread():
        # There is nothing to reload before it serves.
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    raise_limit()
    config = _config(args)
    # Imported here, because no other command needs uvicorn.
    from router.http.keys_file import KeysError
    from router.http.keys_file import load as load_keys
    from router.http.keys_watch import KeysWatch
    from router.http.life import Life
    from router.http.server import is_loopback

    watch, keys = None, None
    try:
        text = codec.read(args.map)
        shard_map = codec.parse(text, args.map)
        if args.api_keys is not None:
            configure(config.log_level)  # the file may deserve a warning
            path = Path(args.api_keys).absolute()
            watch = KeysWatch(path, partial(load_keys, path, os.environ))
            keys = watch.load()
        files = codec.about_dsns(text, args.map, shard_map, file_complaints)
        if files:
            return _failed("\n".join(map(str, files)))
        listener = _listener(args)
    except (MapError, KeysError, ValueError) as exc:
        return _failed(str(exc))
    except OSError as exc:
        return _failed(f"cannot listen on {args.host} port {args.port}: {exc.strerror or exc}")
    with listener:
        if keys is None and not is_loopback(listener):
            return _failed(
                f"{listener.getsockname()[0]} can be reached from other machines, and there are no keys; "
                "name a file of keys with --api-keys, or listen on 127.0.0.1"
            )
        configure(config.log_level, pid=config.workers > 1)
        life = Life()
        life.obey_signals()
        service = _Service(config, shard_map, listener, life)
        if config.workers == 1:
            return service.alone(keys, watch)
        return service.supervised(text, keys, watch)


class _Service:
    """A router that has all it needs, and says when it serves and when that ends."""

    def __init__(self, config: ServeConfig, shard_map: ShardMap, listener: socket.socket, life: Life) -> None:
        self._config = config
        self._shard_map = shard_map
        self._listener = listener
        self._life = life

    def alone(self, keys: Keys | None, watch: KeysWatch | None) -> int:
        from router.app import application
        from router.http.server import serve

        app = partial(application, self._config, self._shard_map, keys, watch)
        return serve(app, self._listener, self._life, self._bounds, ready=self._ready, ending=self._ending)

    def supervised(self, text: str, keys: Keys | None, watch: KeysWatch | None) -> int:
        """Workers read what was read here from a copy.

        The files themselves may have been edited when a worker replaces one that died. Two workers with
        different maps would write one document to different shards, and a file that is just being saved
        would end worker after worker. The copy of the keys is renewed when their file changes.
        """
        from router.http.supervisor import supervise

        # A temporary folder is readable by its owner only: digests of keys, and passwords, are in it.
        with tempfile.TemporaryDirectory(prefix="pgscatter-") as folder, ExitStack() as stack:
            copy = Path(folder) / "keys.json"
            stack.enter_context(_locked(folder))
            if keys is not None and watch is not None:
                stack.enter_context(_copying(keys, watch, copy, self._life))
            config = _shared(self._config, self._shard_map, text, Path(folder))
            if keys is not None:
                config = msgspec.structs.replace(config, keys_copy=str(copy))
            export(config, os.environ)
            return supervise(
                _APP,
                self._listener,
                self._life,
                self._bounds,
                workers=config.workers,
                ready=partial(self._all_ready, config),
                ending=self._ending,
            )

    @property
    def _bounds(self) -> Bounds:
        from router.http.server import Bounds

        settings = self._config.settings
        return Bounds(settings.drain_delay, settings.drain_timeout)

    def _all_ready(self, config: ServeConfig) -> None:
        export(msgspec.structs.replace(config, replaces=True), os.environ)
        self._ready()

    def _ready(self) -> None:
        _say(f"pgscatter serves map version {self._shard_map.version} on http://{_address(self._listener)}")
        notify("READY=1", os.environ)

    def _ending(self) -> None:
        notify("STOPPING=1", os.environ)


def _config(args: argparse.Namespace) -> ServeConfig:
    """What the flags say; leaves with status 2 if they are wrong."""
    parser: argparse.ArgumentParser = args.parser
    if not 1 <= args.workers <= MAX_WORKERS:
        parser.error(f"--workers: expected 1 to {MAX_WORKERS}, got {args.workers}")
    if not 0 <= args.port <= 65535:
        parser.error(f"--port: expected 0 to 65535, got {args.port}")
    try:
        url = redis_url(args.redis, args.redis_password_file, os.environ)
        settings = read_settings(args, os.environ)
    except ValueError as exc:
        parser.error(str(exc))
    if args.redis is not None and holds_password(args.redis):
        _say(
            "pgscatter serve: any list of processes shows the password in --redis; "
            "write ${VAR} there, or use PGSCATTER_REDIS or --redis-password-file"
        )
    return ServeConfig(
        map_path=os.path.abspath(args.map),
        redis_url=url,
        settings=settings,
        log_level=args.log_level,
        workers=args.workers,
    )


def _listener(args: argparse.Namespace) -> socket.socket:
    """
    Raises:
        OSError, ValueError
    """
    from router.http.server import listen

    listener = inherited_listener(os.environ)
    return listen(args.host, args.port, reuse_port=args.reuse_port) if listener is None else listener


@contextmanager
def _copying(keys: Keys, watch: KeysWatch, copy: Path, life: Life) -> Iterator[None]:
    """Keep in `copy` what `keys` are by their file."""
    from router.http.keys_file import save
    from router.http.keys_watch import watching

    saved = True

    def look(asked: bool) -> None:
        nonlocal saved
        saved = not watch.look(keys, asked) and saved
        if not saved:  # nor, perhaps, at the look before: the disk may be full
            save(keys, copy)
            saved = True

    save(keys, copy)
    with watching(look, life.take_reload):
        yield


@contextmanager
def _locked(folder: str) -> Iterator[None]:
    """Keep `systemd-tmpfiles`, which passes over locked folders, from clearing what was written days ago."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        yield
    finally:
        os.close(descriptor)


def _shared(config: ServeConfig, shard_map: ShardMap, text: str, folder: Path) -> ServeConfig:
    """Put what several workers have in common into `folder`."""
    metrics = folder / "metrics"
    metrics.mkdir()
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(metrics)
    versions, map_copy = folder / "versions", folder / "map.yaml"
    create(versions, shard_map)
    map_copy.write_text(text, encoding="utf-8")
    return msgspec.structs.replace(config, shared_path=str(versions), map_copy=str(map_copy))


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _failed(message: str) -> int:
    _say(message)
    return 1


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
