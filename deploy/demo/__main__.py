"""`make demo`: models, a cluster, a corpus, a router and a few searches, all on this machine.

    python -m deploy.demo [--smoke] [--dir DIR] [--shards N] [--replicas R] [--port P]

Everything is done by the commands that a user has, and each is printed before it runs. Invariant:
whatever ends the demo, Ctrl-C and SIGKILL included, ends its servers.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from deploy.corpus.documents import DIMENSIONS, prepare
from deploy.demo.commands import DemoError, run, typed
from deploy.demo.searches import SEARCHES, arguments, show
from deploy.local import Cluster, ClusterError
from deploy.local.models import model_service
from deploy.local.router import Router, RouterError, serve_arguments, serving

__all__ = ["main"]

_POLL = 0.5
_USUAL_PORT = 8080
_MODELS = ("models", "serve", "--port", "0")

_COLLECTIONS = """\
models:
  wordllama: {{url: "{url}", dimensions: {dimensions}}}
collections:
  stdlib:
    table: public.stdlib
    id: {{column: id, type: bigint}}
    vector: {{column: embedding, type: vector, dimensions: {dimensions}, metric: cosine}}
    content: content
    columns: {{name: text, module: text, kind: text}}
    embedder: wordllama
    fulltext: {{columns: [content]}}
    sharding: {{strategy: hash, key: id, buckets: 64}}
"""


def main(argv: Sequence[str] | None = None) -> int:
    args = _arguments(argv)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _leave)
    stack = contextlib.ExitStack()
    try:
        return _demo(args, stack)
    except KeyboardInterrupt:
        print()
        return 130
    except (DemoError, ClusterError, RouterError, RuntimeError, OSError) as exc:
        print(f"demo: {exc}", file=sys.stderr)
        return 1
    finally:
        # A second Ctrl-C must not leave half of it standing.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        stack.close()


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m deploy.demo", description="Shows pgscatter on this machine."
    )
    parser.add_argument("--smoke", action="store_true", help="leave after the searches")
    parser.add_argument("--dir", type=Path, help="where to keep the data (default: they are not kept)")
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--replicas", type=int, default=1, help="per shard")
    parser.add_argument("--port", type=int, help="of the router (default: 8080, or any if that is taken)")
    return parser.parse_args(argv)


def _leave(number: int, _: object) -> NoReturn:
    sys.exit(128 + number)


def _demo(args: argparse.Namespace, stack: contextlib.ExitStack) -> int:
    port = _free_port(args.port)
    say = _Clock()
    directory = _directory(args.dir, stack)
    prepared = prepare(directory, progress=say)
    say("starting the model service")
    print(f"$ {typed(_MODELS)}", flush=True)
    models = stack.enter_context(model_service(log=directory / "models.log"))
    collections = directory / "collections.yaml"
    collections.write_text(_COLLECTIONS.format(url=models, dimensions=DIMENSIONS))

    say(f"starting {args.shards} shards with {args.replicas} replicas each, and Redis")
    cluster = Cluster(directory / "cluster", lambda line: say(f"  {line}"))
    cluster.up(args.shards, args.replicas, collections, owned=True)
    stack.callback(cluster.down)

    where = ("--map", str(cluster.map_path), "--collection", "stdlib")
    say("creating the tables")
    run("schema", "apply", *where)
    say(f"loading {prepared.count:,} documents")
    run("load", str(prepared.documents), *where)

    say("starting the router")
    serve = serve_arguments(cluster.map_path, port=port, redis=cluster.redis_url)
    print(f"$ {typed(serve)}", flush=True)
    router = stack.enter_context(serving(serve, directory / "serve.log"))
    stack.callback(say, "stopping the router, the servers and the model service")
    say(f"ready at {router.url}")
    for shown in SEARCHES:
        show(shown, router.url)
    print(flush=True)
    if not args.smoke:
        _stay(router, cluster)
    return 0


class _Clock:
    """Says what is being done, and when."""

    def __init__(self) -> None:
        self._started = time.monotonic()

    def __call__(self, line: str) -> None:
        print(f"[{time.monotonic() - self._started:5.1f} s] {line}", flush=True)


def _directory(kept: Path | None, stack: contextlib.ExitStack) -> Path:
    if kept is not None:
        kept.mkdir(parents=True, exist_ok=True)
        return kept.absolute()
    directory = Path(tempfile.mkdtemp(prefix="pgscatter-demo-"))
    stack.callback(shutil.rmtree, directory, ignore_errors=True)
    directory.chmod(0o755)  # PostgreSQL may have to run as another user
    return directory


def _free_port(wanted: int | None) -> int:
    """The port to serve on; 0 is any. Without a wish it is the usual one, unless somebody has it.

    Raises:
        DemoError: the wanted one is taken.
    """
    port = _USUAL_PORT if wanted is None else wanted
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as exc:
            if wanted is None:
                return 0
            raise DemoError(f"cannot listen on port {port}: {exc}") from exc
    return port


def _explain_how_to_go_on(url: str, cluster: Cluster) -> None:
    search = arguments(url, "--text", "compress data")
    where = ("--dir", str(cluster.directory))
    node = cluster.nodes[0].name
    print(
        f"""\
It stays up until you press Ctrl-C. In another terminal:

    {typed(search)}
    curl {url}/v1/collections/stdlib/search -H 'Content-Type: application/json' \\
        -d '{{"text": "compress data", "k": 3, "include": ["name"]}}'
    {typed(("cluster", "kill", node, *where))}    # then search again
    {typed(("cluster", "start", node, *where))}
    {typed(("cluster", "status", *where))}

and in a browser: {url}/docs""",
        flush=True,
    )


def _stay(router: Router, cluster: Cluster) -> None:
    """Say how to go on, and wait for Ctrl-C, or the router's end.

    Raises:
        DemoError: the router ended by itself.
    """
    try:
        _explain_how_to_go_on(router.url, cluster)
        while router.watcher.poll() is None:
            time.sleep(_POLL)
    except KeyboardInterrupt:
        print()
    else:
        raise DemoError(f"the router ended; it said last:\n{router.last_words()}")


if __name__ == "__main__":
    sys.exit(main())
