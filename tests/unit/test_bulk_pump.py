from __future__ import annotations

from pathlib import Path

import pytest

from router.bulk.batch import Refused
from router.bulk.errors import LoadError, RowsError
from router.bulk.skipped import Skipped
from router.bulk.sources import open_source
from tests.unit.bulk_sources import collection, write_lines


def test_bad_rows_are_counted_over_all_runs(tmp_path: Path) -> None:
    source = open_source(write_lines(tmp_path / "a.jsonl", {}), collection(), "train", None)
    skipped = Skipped(source, allowed=3, earlier=1)
    skipped.take([Refused(7, "odd"), Refused(9, "even")])
    assert skipped.count == 3
    with pytest.raises(RowsError) as caught:
        skipped.take([Refused(11, "last")])
    assert [line.rpartition("/")[2] for line in caught.value.lines] == [
        "a.jsonl, line 7: odd",
        "a.jsonl, line 9: even",
        "a.jsonl, line 11: last",
        "a.jsonl: 4 bad rows so far; 3 may be skipped",
    ]


def test_errors_of_several_shards_become_one_with_each_line_once() -> None:
    error = LoadError.of([LoadError("s0: gone", "s1: gone"), LoadError("s1: gone")])
    assert error.lines == ("s0: gone", "s1: gone")


def test_the_first_bad_rows_are_looked_for_and_one_too_many(tmp_path: Path) -> None:
    source = open_source(write_lines(tmp_path / "a.jsonl", {}), collection(), "train", None)
    assert Skipped(source, allowed=0, earlier=0).room == 5
    skipped = Skipped(source, allowed=100, earlier=40)
    assert skipped.room == 61
