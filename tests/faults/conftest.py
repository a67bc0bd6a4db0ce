"""A primary and its replica for tests that may do anything to them."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psycopg
import pytest

from deploy.local import Cluster
from deploy.local.processes import until

_PRIMARY = """
SELECT NOT pg_is_in_recovery() AND current_setting('synchronous_standby_names') = ''
   AND (SELECT timeline_id = 1 FROM pg_control_checkpoint())
"""
_REPLICA = "SELECT pg_is_in_recovery() AND NOT pg_is_wal_replay_paused()"
_FOLLOWED = "SELECT EXISTS (SELECT FROM pg_stat_replication WHERE state = 'streaming')"
# A primary that came back waits for its replica, which tries again after wal_retrieve_retry_interval.
_FOLLOWED_SECONDS = 5.0


class Pairs:
    """One pair at a time: the one of the test before, where that left it as it was, or a new one.

    `folder` keeps the first one's files as they were when it was new: to copy them takes a tenth of the time
    that initdb and pg_basebackup take.
    """

    def __init__(self, folder: Path) -> None:
        self._files = folder / "nodes"
        self._stack = ExitStack()
        self._pair: Cluster | None = None

    def take(self) -> Cluster:
        if self._pair is None or not _as_new(self._pair):
            self.close()
            self._pair = self._stack.enter_context(self._new())
        return self._pair

    @contextmanager
    def _new(self) -> Iterator[Cluster]:
        directory = Path(tempfile.mkdtemp(prefix="pgscatter-"))
        directory.chmod(0o755)
        if self._files.exists():
            shutil.copytree(self._files, directory / "nodes")
        with Cluster.temporary(shards=1, replicas=1, directory=directory, fsync=False) as pair:
            if not self._files.exists():
                pair.down()
                shutil.copytree(directory / "nodes", self._files)
                pair.up(shards=1, replicas=1, owned=True)
            yield pair

    def close(self) -> None:
        self._pair = None
        self._stack.close()


def _as_new(pair: Cluster) -> bool:
    """Whether both run, in the roles of their beginning, and the replica follows."""
    try:
        return (
            _says(pair, "s0-a", _PRIMARY)
            and _says(pair, "s0-b", _REPLICA)
            and until(lambda: _says(pair, "s0-a", _FOLLOWED), _FOLLOWED_SECONDS)
        )
    except psycopg.Error:
        return False


def _says(pair: Cluster, name: str, sql: str) -> bool:
    options = "-c statement_timeout=2000"
    with psycopg.connect(pair.node(name).dsn, connect_timeout=2, options=options) as connection:
        row = connection.execute(sql).fetchone()
        return row is not None and bool(row[0])


@pytest.fixture(scope="session")
def pairs() -> Iterator[Pairs]:
    with tempfile.TemporaryDirectory() as folder:
        made = Pairs(Path(folder))
        yield made
        made.close()


@pytest.fixture
def pair(pairs: Pairs, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """One shard that a test may turn upside down; one that is as new is used again."""
    failed = request.session.testsfailed
    yield pairs.take()
    if request.session.testsfailed > failed:
        pairs.close()
