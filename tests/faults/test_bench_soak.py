"""A soak under faults, from the command to its verdict: what is right passes, and what is lost is found."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.faults.broken import Broken
from bench.faults.kinds import EARLY, SOAKED, Fault
from bench.results import Run, load_run
from bench.soak.course import QUICK
from bench.sql import fetch
from router.cli import main

DATASET = "clustered:n=2000,d=16,seed=3,q=50,c=20"
DATASET_FLAGS = ["--dataset", DATASET, "--faults", "--quick"]
SHORT = ["--duration", "4", "--shards", "1"]

pytestmark = pytest.mark.timeout(300)


def soaked(folder: Path, status: int, *flags: str) -> Run:
    assert main(["bench", "soak", *DATASET_FLAGS, *flags, "--out", str(folder)]) == status
    return load_run(folder / "soak.json")


async def steal(b: Broken) -> None:
    """Delete all tracked documents past the router: some are not written again, and none may be missing."""
    assert await fetch("DELETE FROM items WHERE owner IS NOT NULL RETURNING id", b.dsn("primary"))


@pytest.mark.full
def test_documents_that_are_lost_fail_the_soak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    thief = Fault("theft", "documents stolen", steal, seconds=1)
    monkeypatch.setattr("bench.soak.course.EARLY", ())
    monkeypatch.setattr("bench.soak.course.SOAKED", (thief,))
    monkeypatch.setattr("bench.soak.course.QUICK", ("theft",))
    run = soaked(tmp_path, 1, *SHORT)
    said = "\n".join(run.outcome.failures)
    assert "is stored as none, must be v" in said
    assert "is shown as none, may be v" in said
    metrics = {metric.name: metric.value for metric in run.outcome.metrics}
    assert metrics["documents tracked"] and metrics["writes acknowledged"]
    assert (metrics["unexplained errors"], metrics["writes unknown"], metrics["writes refused"]) == (0, 0, 0)


@pytest.mark.full
def test_nothing_is_lost_or_wrong_under_faults(tmp_path: Path) -> None:
    run = soaked(tmp_path, 0)
    assert run.outcome.failures == []
    reads, writes, _ = run.outcome.tables
    assert {row[0] for row in reads.rows} == {row[0] for row in writes.rows} == set(QUICK)
    assert set(QUICK) < {fault.name for fault in (*EARLY, *SOAKED)}
    metrics = {metric.name: metric.value or 0 for metric in run.outcome.metrics}
    assert metrics["writes acknowledged"] > 200
    assert metrics["comparisons with all rows"] > len(QUICK) / 2
    assert "growth was not judged: the run had too few faults" in run.outcome.notes
