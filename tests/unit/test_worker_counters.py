from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from router.freshness.worker_counters import WorkerCounters, create
from tests.unit.queries import shard_map

WORKER = """
import sys
from pathlib import Path
from router.freshness.worker_counters import WorkerCounters
from tests.unit.queries import shard_map
counters = WorkerCounters(shard_map(), Path(sys.argv[1]))
counters.mark_pending("documents"); counters.bump("documents"); counters.note("s1", 500)
print(counters.version("documents"), counters.own_pending("documents"), flush=True)
sys.stdin.read()
"""


def test_one_worker_counts_in_memory() -> None:
    counters = WorkerCounters(shard_map())
    counters.bump("documents")
    counters.note("s1", 7)
    counters.note("s1", 5)
    assert (counters.version("documents"), counters.position("s1"), counters.position("s0")) == (1, 7, 0)


def test_workers_see_each_others_writes_and_nothing_goes_back_when_one_dies(tmp_path: Path) -> None:
    path = tmp_path / "shared"
    create(path, shard_map())
    ours = WorkerCounters(shard_map(), path)
    ours.bump("documents")
    first = start_worker(path)
    assert first.stdout is not None
    assert first.stdout.readline() == "2 1\n"
    assert (ours.version("documents"), ours.position("s1"), ours.pending("documents")) == (2, 500, 1)
    first.kill()
    first.communicate()
    assert ours.version("documents") == 2
    # The next one takes the dead worker's slot, with what it had not told Redis, and perhaps nobody.
    heir = start_worker(path)
    assert heir.communicate()[0] == "4 3\n"
    assert (ours.version("documents"), ours.pending("documents")) == (4, 3)
    ours.close()


def test_what_one_worker_has_found_to_be_lost_all_know_and_also_after_its_end(tmp_path: Path) -> None:
    path = tmp_path / "shared"
    create(path, shard_map())
    ours = WorkerCounters(shard_map(), path)
    noting = WORKER.replace("sys.stdin.read()", "counters.note_lost('s1', 7)")
    subprocess.run([sys.executable, "-c", noting, str(path)], check=True, stdout=subprocess.DEVNULL)
    assert (ours.lost("s0"), ours.lost("s1")) == (0, 7)
    ours.note_lost("s1", 9)
    ours.note_lost("s1", 0)  # what was lost is there again, as far as this one knows
    assert ours.lost("s1") == 7
    ours.close()


def test_what_other_workers_found_of_the_tables_is_counted_by_shard(tmp_path: Path) -> None:
    path = tmp_path / "shared"
    create(path, shard_map())
    ours = WorkerCounters(shard_map(), path)
    ours.note_schema("s0")
    assert (ours.shared, ours.schemas_noted(), ours.schemas_noted("s0")) == (True, 0, 0)
    noting = WORKER.replace("sys.stdin.read()", "counters.note_schema('s1'); counters.note_schema('s1')")
    subprocess.run([sys.executable, "-c", noting, str(path)], check=True, stdout=subprocess.DEVNULL)
    assert (ours.schemas_noted(), ours.schemas_noted("s0"), ours.schemas_noted("s1")) == (2, 0, 2)
    ours.close()
    assert not WorkerCounters(shard_map()).shared


def start_worker(path: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WORKER, str(path)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_slots_are_told_apart_in_repr(tmp_path: Path) -> None:
    create(tmp_path / "shared", shard_map())
    counters = WorkerCounters(shard_map(), tmp_path / "shared")
    assert repr(counters) == "<WorkerCounters slot 0, 1 collections, 4 shards>"
    counters.close()
