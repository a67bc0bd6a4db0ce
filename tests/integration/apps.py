"""A map file for the cluster with collections of a test's own, and the commands as a user runs them."""

from __future__ import annotations

import contextlib
import io
import itertools
import subprocess
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

import yaml

from deploy.local import Cluster
from router.cli import main
from tests.integration.worlds import VERSIONS

__all__ = ["applied_map", "collection", "pgscatter", "write_map"]

_numbers = itertools.count()
_COMMAND_SECONDS = 100.0  # less than a test may take


def collection(**changes: Any) -> dict[str, Any]:
    """A collection as it stands in a map, on a table that nobody else uses."""
    base: dict[str, Any] = {
        "table": f"public.served_{next(_numbers)}",
        "id": {"column": "id", "type": "bigint"},
        "vector": {"column": "embedding", "type": "vector", "dimensions": 4, "metric": "l2"},
        "content": "content",
        "metadata": "metadata",
        "columns": {"category": "text", "price": "float8"},
        "search": {"timeout": "20s"},
        "sharding": {
            "strategy": "hash",
            "key": "id",
            "buckets": 16,
            "placement": {"s0": ["0-3"], "s1": ["4-7"], "s2": ["8-11"], "s3": ["12-15"]},
        },
    }
    return {**base, **changes}


def write_map(
    cluster: Cluster,
    path: Path,
    collections: dict[str, Any],
    version: int | None = None,
    models: dict[str, Any] | None = None,
) -> Path:
    """Without `version` it is newer than every map before: tests share shards, which refuse older ones."""
    shards: dict[str, dict[str, list[dict[str, str]]]] = {}
    for node in cluster.nodes:
        shards.setdefault(node.shard, {"nodes": []})["nodes"].append({"name": node.name, "dsn": node.dsn})
    path.write_text(
        yaml.safe_dump(
            {
                "version": version or next(VERSIONS),
                "shards": shards,
                "models": models or {},
                "collections": collections,
            },
            sort_keys=False,
        )
    )
    return path


def pgscatter(*arguments: object, check: bool = True) -> subprocess.CompletedProcess[str]:
    """The command as a user runs it; `check` says that it must succeed."""
    argv = [str(argument) for argument in arguments]
    # The servers that a cluster's command starts must not be children of the tests, which would have to
    # reap them.
    done = _as_process(argv) if argv[0] == "cluster" else _in_process(argv)
    assert not check or done.returncode == 0, done.stderr
    return done


def _as_process(argv: list[str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "router.cli", *argv]
    return subprocess.run(command, capture_output=True, text=True, timeout=_COMMAND_SECONDS)


def _in_process(argv: list[str]) -> subprocess.CompletedProcess[str]:
    """Without the start of a Python and its imports, which take longer than most commands.

    In a thread of its own, since the test may itself run in an event loop.
    """
    stdout, stderr = io.StringIO(), io.StringIO()
    status: list[int] = []

    def run() -> None:
        try:
            status.append(main(argv))
        except SystemExit as end:
            status.append(end.code if isinstance(end.code, int) else 1)
        except BaseException:
            # As the interpreter would end.
            traceback.print_exc()
            status.append(1)

    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        thread = threading.Thread(target=run, name=" ".join(argv[:2]), daemon=True)
        thread.start()
        thread.join(_COMMAND_SECONDS)
    assert status, f"pgscatter {' '.join(argv)} goes on:\n{stderr.getvalue()}"
    return subprocess.CompletedProcess(argv, status[0], stdout.getvalue(), stderr.getvalue())


def applied_map(
    cluster: Cluster, folder: Path, *, models: dict[str, Any] | None = None, **collections: dict[str, Any]
) -> Path:
    """A map file whose collections exist on every shard."""
    path = write_map(cluster, folder / "map.yaml", collections, models=models)
    pgscatter("schema", "apply", "--map", path)
    return path
