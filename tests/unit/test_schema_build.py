from __future__ import annotations

from typing import Any

import asyncpg
import pytest

from router.schema import build
from router.schema.build import BuildLimits, build_index, graph_bytes
from shard_config.model import Node
from tests.unit.bulk_sources import collection

MIB = 1 << 20
# Nobody listens there, so progress is not told.
NODE = Node("s0-a", "postgresql://nobody@127.0.0.1:1/none")


class Fake:
    """A connection that notes what it is told; `failures` are raised by builds, one after the other."""

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.memory_kib: list[int] = []
        self.workers: list[str] = []
        self.built: list[str] = []
        self.notice: str | None = None
        self._listener: Any = None

    def is_closed(self) -> bool:
        return False

    def add_termination_listener(self, listener: Any) -> None:
        pass

    remove_termination_listener = remove_log_listener = add_termination_listener

    def add_log_listener(self, listener: Any) -> None:
        self._listener = listener

    async def fetchval(self, statement: str) -> str:
        return {"SHOW max_parallel_maintenance_workers": "2", "SELECT pg_backend_pid()": "1"}[statement]

    async def execute(self, statement: str, *args: Any) -> None:
        if "maintenance_work_mem" in statement:
            self.memory_kib.append(args[0])
        elif "max_parallel_maintenance_workers" in statement:
            self.workers.append(args[0])
        else:
            self.built.append(statement)
            if self.failures:
                raise self.failures.pop(0)
            if self.notice is not None:
                self._listener(self, asyncpg.PostgresLogMessage.new({"M": self.notice, "C": "00000"}))


async def built(fake: Any, memory: int, limits: BuildLimits) -> str | None:
    return await build_index(NODE, fake, "CREATE INDEX", 1000, memory, limits, lambda _: None)


@pytest.mark.parametrize(
    ("needed", "limits", "memory", "workers"),
    [
        (20 * MIB, BuildLimits(), 32 * MIB, "0"),
        (40 * MIB, BuildLimits(), 96 * MIB, "2"),
        (500 * MIB, BuildLimits(), 500 * MIB, "2"),
        (5000 * MIB, BuildLimits(), 1024 * MIB, "2"),
        (5000 * MIB, BuildLimits(memory_bytes=64 * MIB, workers=7), 64 * MIB, "7"),
        (500 * MIB, BuildLimits(workers=0), 500 * MIB, "0"),
    ],
)
async def test_a_build_gets_what_it_needs_within_its_limits(
    needed: int, limits: BuildLimits, memory: int, workers: str
) -> None:
    fake = Fake()
    assert await built(fake, needed, limits) is None
    assert (fake.memory_kib, fake.workers, fake.built) == ([memory // 1024], [workers], ["CREATE INDEX"])


async def test_too_little_shared_memory_is_answered_by_building_alone() -> None:
    full = {"S": "ERROR", "C": "53100", "M": "could not resize shared memory segment"}
    fake = Fake(asyncpg.PostgresError.new(full))
    note = await built(fake, 500 * MIB, BuildLimits())
    assert note is not None
    assert "could not resize shared memory segment" in note
    assert fake.workers == ["2", "0"]
    assert fake.memory_kib == [500 * 1024, 64 * 1024]
    assert len(fake.built) == 2


async def test_what_a_failed_concurrent_build_has_left_is_dropped_before_the_next() -> None:
    full = {"S": "ERROR", "C": "53100", "M": "could not resize shared memory segment"}
    fake = Fake(asyncpg.PostgresError.new(full))
    statement = "CREATE INDEX CONCURRENTLY items_hnsw ON public.items USING hnsw (embedding vector_l2_ops)"
    assert await build_index(NODE, fake, statement, 1000, 500 * MIB, BuildLimits(), lambda _: None)
    dropped = "DROP INDEX CONCURRENTLY IF EXISTS public.items_hnsw"
    assert fake.built == [statement, dropped, statement]


async def test_what_the_server_remarks_is_passed_on() -> None:
    fake = Fake()
    fake.notice = "hnsw graph no longer fits into maintenance_work_mem after 100 tuples"
    assert await built(fake, MIB, BuildLimits()) == fake.notice


def test_what_is_quantized_needs_less() -> None:
    sizes = [
        graph_bytes(collection(dimensions=512, **{"index.quantization": quantization}), 10_000)
        for quantization in ("none", "halfvec", "binary")
    ]
    assert sizes == sorted(sizes, reverse=True)
    assert build.graph_bytes(collection(), 0) < 8 * MIB
