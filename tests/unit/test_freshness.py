"""What writers tell and caches ask, under every order in which they can meet."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import pytest

from router.freshness import token
from router.freshness.freshness import Freshness
from router.freshness.redis_link import RedisLink
from router.freshness.worker_counters import WorkerCounters, create
from router.query.types import Found, Position, SearchQuery
from router.stages.local_cache import LocalCache, Store
from router.stages.stage import Figures
from tests.unit.queries import answer, query, shard_map

DOCUMENTS = "documents"


class Link:
    """A line to one Redis value, which a test holds up or cuts."""

    def __init__(self) -> None:
        self.on = True
        self.scripts = True  # whether it may run them
        self.told: list[dict[str, str]] = []  # the positions of each new token
        self.deleted = 0
        self.sent = asyncio.Event()
        self.answers = asyncio.Event()
        self.answers.set()

    async def call(
        self, command: Callable[[Any], Awaitable[object]], *, kind: str = "write"
    ) -> object | None:
        self.sent.set()
        return await command(self) if self.on else None

    async def eval(self, script: str, keys: int, key: str, *args: str) -> object | None:
        assert (script, key) == (token.REPLACE_TOKEN, "pgscatter:token:documents")
        if not self.scripts:
            return None
        await self.answers.wait()
        self.told.append(dict(zip(args[2::2], args[3::2], strict=True)))
        return 1

    async def delete(self, key: str) -> object:
        self.deleted += 1
        return 1


def at(lsn: int, shard: str = "s0") -> dict[str, str]:
    """A position as Redis is told of it."""
    return dict([token.script_args({shard: Position(1, lsn)})])


def freshness(link: Link | None = None, path: Path | None = None) -> Freshness:
    return Freshness(shard_map(), cast("RedisLink | None", link), path)


def write(to: Freshness, lsn: int) -> None:
    to.committed(DOCUMENTS, "s0", Position(1, lsn))
    to.wrote(DOCUMENTS)


async def test_a_write_is_known_at_once_and_pending_until_redis_has_heard_of_it() -> None:
    link = Link()
    ours = freshness(link)
    before = ours.version(DOCUMENTS)
    assert await ours.publish(DOCUMENTS)
    assert not link.sent.is_set()  # nothing was pending
    write(ours, 100)
    assert (ours.version(DOCUMENTS), ours.position("s0"), ours.position("s1")) == (before + 1, 100, 0)
    assert not ours.contains({"s0": (1, 99)})
    assert ours.contains({"s0": (1, 100), "s1": (1, 0)})
    assert await ours.publish(DOCUMENTS)
    assert link.told == [at(100)]
    await ours.close()


async def test_without_redis_nothing_is_ever_pending() -> None:
    ours = freshness()
    write(ours, 100)
    assert await ours.publish(DOCUMENTS)
    assert await ours.new_token(DOCUMENTS) is None
    await ours.close()


async def test_while_redis_is_away_writes_stay_pending_and_are_told_together_later() -> None:
    link = Link()
    ours = freshness(link)
    link.on = False
    for lsn in (100, 120, 110):
        write(ours, lsn)
        assert not await ours.publish(DOCUMENTS)
    link.on = True
    assert await ours.publish(DOCUMENTS)
    assert link.told == [at(120)]
    assert await ours.publish(DOCUMENTS)
    assert len(link.told) == 1
    await ours.close()


async def test_a_write_that_ends_while_redis_is_told_of_another_stays_pending() -> None:
    link = Link()
    ours = freshness(link)
    write(ours, 100)
    link.answers.clear()
    publishing = asyncio.create_task(ours.publish(DOCUMENTS))
    await link.sent.wait()
    write(ours, 110)
    link.answers.set()
    assert not await publishing
    assert await ours.publish(DOCUMENTS)
    assert link.told == [at(100), at(110)]
    await ours.close()


async def test_where_scripts_are_not_allowed_the_token_is_deleted_and_positions_are_kept() -> None:
    link = Link()
    ours = freshness(link)
    link.scripts = False
    write(ours, 100)
    assert await ours.publish(DOCUMENTS)
    assert link.deleted == 1
    link.scripts = True
    ours.wrote(DOCUMENTS)
    assert await ours.publish(DOCUMENTS)
    assert link.told == [at(100)]
    await ours.close()


@pytest.mark.parametrize("leaves", ["during the write", "while Redis is told"])
async def test_a_write_whose_caller_leaves_counts_and_is_published_all_the_same(leaves: str) -> None:
    link = Link()
    ours = freshness(link)
    link.answers.clear()
    writing = asyncio.Event()

    async def caller() -> None:
        async with ours.writing(DOCUMENTS):
            ours.committed(DOCUMENTS, "s0", Position(1, 100))
            writing.set()
            await asyncio.sleep(60 if leaves == "during the write" else 0)

    task = asyncio.create_task(caller())
    await writing.wait()
    if leaves == "while Redis is told":
        await link.sent.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled()
    assert ours.version(DOCUMENTS) == 1
    link.answers.set()
    async with asyncio.timeout(5):
        while not link.told:
            await asyncio.sleep(0)
    assert link.told == [at(100)]
    assert await ours.publish(DOCUMENTS)
    await ours.close()


async def test_closing_ends_what_is_being_published() -> None:
    link = Link()
    ours = freshness(link)
    link.answers.clear()
    with pytest.raises(RuntimeError):
        async with ours.writing(DOCUMENTS):
            raise RuntimeError
    await link.sent.wait()
    assert "1 publishing" in repr(ours)
    await ours.close()
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_write_between_the_reading_and_the_keeping_of_an_answer_makes_it_unreachable() -> None:
    ours = freshness()
    content = "old"

    class Reads:
        async def search(self, query: SearchQuery, deadline: float) -> Found:
            read = content
            write(ours, 100)  # commits after the rows were read
            return Found(answer(f'["{read}"]'), "miss")

        def describe(self) -> Figures:
            return {}

    cache = LocalCache(Reads(), Store(1 << 20), "map", ours.version)
    await cache.search(query(), 0.0)
    content = "new"
    found = await cache.search(query(), 0.0)
    assert (found.tier, bytes(found.answer.hits)) == ("miss", b'["new"]')
    await ours.close()


class Interrupted(WorkerCounters):
    """Calls `between` after each change, where another worker's turn may come."""

    between: Callable[[], None] = staticmethod(lambda: None)

    def note(self, shard: str, lsn: int) -> None:
        super().note(shard, lsn)
        self.between()

    def mark_pending(self, collection: str) -> None:
        super().mark_pending(collection)
        self.between()

    def bump(self, collection: str) -> None:
        super().bump(collection)
        self.between()


async def test_no_other_worker_sees_a_new_version_before_all_else_that_the_write_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would keep an old answer under the new version: from a replica that is behind, or from L2."""
    monkeypatch.setattr("router.freshness.freshness.WorkerCounters", Interrupted)
    create(tmp_path / "shared", shard_map())
    ours = freshness(Link(), tmp_path / "shared")
    other = in_another_process(tmp_path / "shared")
    seen: list[str] = []
    try:
        monkeypatch.setattr(Interrupted, "between", lambda self: seen.append(asked(other)))
        write(ours, 100)
    finally:
        other.communicate()
    # Version, position, pending: the version is the last to change.
    assert seen == ["0 100 0", "0 100 1", "1 100 1"]
    await ours.close()


async def test_a_worker_that_died_before_it_counted_its_commit_is_made_up_for(tmp_path: Path) -> None:
    create(tmp_path / "shared", shard_map())
    ours = freshness(Link(), tmp_path / "shared")
    dying = in_another_process(tmp_path / "shared")
    assert asked(dying) == "0 0 0"
    dying.kill()  # between a commit and `wrote`
    dying.communicate()
    assert (ours.version(DOCUMENTS), await ours.publish(DOCUMENTS)) == (0, True)
    successor = in_another_process(tmp_path / "shared")
    try:
        assert asked(successor) == "1 0 1"
        assert ours.version(DOCUMENTS) == 1
        # Only the successor can tell Redis: until it has, nobody uses what stands there.
        assert not await ours.publish(DOCUMENTS)
    finally:
        successor.communicate()
    await ours.close()


WORKER = """
import sys
from pathlib import Path
from router.freshness.worker_counters import WorkerCounters
from tests.unit.queries import shard_map
counters = WorkerCounters(shard_map(), Path(sys.argv[1]))
for _ in sys.stdin:
    print(counters.version("documents"), counters.position("s0"), counters.pending("documents"), flush=True)
"""


def in_another_process(path: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WORKER, str(path)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def asked(worker: subprocess.Popen[str]) -> str:
    """What it sees now: version, position and what is pending."""
    assert worker.stdin is not None and worker.stdout is not None
    worker.stdin.write("now\n")
    worker.stdin.flush()
    return worker.stdout.readline().strip()
