"""The real thing, once per session: four shards with a replica each, Redis, and routers on demand."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from deploy.local import Cluster


class Served(str):
    """A router's URL, and its process."""

    pid: int


Serve = Callable[..., AbstractContextManager[Served]]

# A test run in the background may have been started with Ctrl-C ignored, and what ignores it hands that
# down to the commands that tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Tests connect on their own as well, and the router reads PGSCATTER_*: what the caller has set is not tested.
for name in [name for name in os.environ if name.startswith(("PG", "PATRONI_"))]:
    del os.environ[name]


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Iterator[Any]:
    """Reports go from process to process as UTF-8, which lacks the surrogates that some tests write."""
    return _encodable((yield))


def _encodable(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    if isinstance(value, dict):
        return {_encodable(key): _encodable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_encodable, value))
    return value


_START_SECONDS = 30.0
_STOP_SECONDS = 45.0


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Four shards with one replica each, shared by tests that leave every node running."""
    with Cluster.temporary(shards=4, replicas=1) as running:
        yield running


@pytest.fixture(scope="session")
def serve() -> Serve:
    """`with serve(map_path, redis=…, workers=…) as url`: `pgscatter serve` as its own process, ready."""
    return _serve


@contextmanager
def _serve(map_path: Path, **options: object) -> Iterator[Served]:
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    command = [sys.executable, "-m", "router.cli", "serve", "--map", str(map_path), "--port", "0", *flags]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=dict(os.environ))
    assert process.stderr is not None
    lines: list[str] = []
    listening = threading.Event()

    def read() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            lines.append(line)
            if " on http" in line:
                listening.set()
        listening.set()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        assert listening.wait(_START_SECONDS), "the router did not start in time"
        found = re.search(r" on (http\S+)", "".join(lines))
        assert found, "".join(lines)
        url = Served(found[1])
        url.pid = process.pid
        yield url
    finally:
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
        finally:
            reader.join(5)
            process.stderr.close()
    assert process.returncode == 0, "".join(lines[-20:])
    problems = [line for line in lines if '"level":"error"' in line]
    assert not problems, "".join(problems)
