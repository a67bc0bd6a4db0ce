from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from router.freshness.worker_counters import Shared, create
from tests.unit.queries import shard_map

WORKER = """
import sys
from pathlib import Path
from router.freshness.worker_counters import Shared
from tests.unit.queries import shard_map
shared = Shared(shard_map(), Path(sys.argv[1]))
shared.bump("documents"); shared.owe("documents"); shared.note("s1", 500)
print(shared.version("documents"), shared.owed_here("documents"), flush=True)
sys.stdin.read()
"""


def test_one_worker_counts_in_memory() -> None:
    shared = Shared(shard_map())
    shared.bump("documents")
    shared.note("s1", 7)
    shared.note("s1", 5)
    assert (shared.version("documents"), shared.position("s1"), shared.position("s0")) == (1, 7, 0)


def test_workers_see_each_others_writes_and_nothing_goes_back_when_one_dies(tmp_path: Path) -> None:
    path = tmp_path / "shared"
    create(path, shard_map())
    ours = Shared(shard_map(), path)
    ours.bump("documents")
    first = start_worker(path)
    assert first.stdout is not None
    assert first.stdout.readline() == "2 1\n"
    assert (ours.version("documents"), ours.position("s1"), ours.owed("documents")) == (2, 500, 1)
    first.kill()
    first.communicate()
    assert ours.version("documents") == 2
    # The next one takes the dead worker's slot, with what it had not told Redis, and perhaps nobody.
    heir = start_worker(path)
    assert heir.communicate()[0] == "4 3\n"
    assert (ours.version("documents"), ours.owed("documents")) == (4, 3)
    ours.close()


def start_worker(path: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WORKER, str(path)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_slots_are_told_apart_in_repr(tmp_path: Path) -> None:
    create(tmp_path / "shared", shard_map())
    shared = Shared(shard_map(), tmp_path / "shared")
    assert repr(shared) == "<Shared slot 0, 1 collections, 4 shards>"
    shared.close()
