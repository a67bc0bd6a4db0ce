"""The real thing, once per session: four shards with a replica each, Redis, and routers on demand."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from deploy.local import Cluster
from deploy.local.router import serve_arguments, serving


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
# How long an example takes says how busy the machine is.
hypothesis.settings.register_profile(
    "tests", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("tests")
# Most tests stop routers that no load balancer knows.
os.environ["PGSCATTER_DRAIN_DELAY"] = "0"
# Beside other tests a server, or a router, may not run for seconds, which must change no answer.
_PATIENCE = {"probe_timeout": 15, "connect_timeout": 15, "node_queue_wait": 15}
# A file of keys that a group may write is refused.
os.umask(0o022)


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


@pytest.fixture(autouse=True)
def _log_level() -> Iterator[None]:
    """A command that runs in this process sets the level of all that is logged, for later tests too."""
    level = logging.root.level
    yield
    logging.root.setLevel(level)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Four shards with one replica each, shared by tests that leave every node running."""
    with Cluster.temporary(shards=4, replicas=1, fsync=False) as running:
        yield running


@pytest.fixture(scope="session")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Serve:
    """`with serve(map_path, redis=…, workers=…) as url`: `pgscatter serve` as its own process, listening."""

    @contextmanager
    def started(map_path: Path, **settings: object) -> Iterator[Served]:
        log = tmp_path_factory.mktemp("serve") / "log"
        with serving(serve_arguments(map_path, **{**_PATIENCE, **settings}), log, ready=False) as router:
            url = Served(router.url)
            url.pid = router.pid
            yield url
        lines = log.read_text().splitlines()
        assert router.watcher.returncode == 0, "\n".join(lines[-20:])
        assert not [line for line in lines if '"level":"error"' in line]

    return started
