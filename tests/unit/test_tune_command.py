from __future__ import annotations

from pathlib import Path

import pytest

from router.cli import main
from router.commands.tune import _write
from shard_config import ShardMap, load
from shard_config.file.edit import Option

MAP = """\
version: 7
shards: {s0: {nodes: [{name: a, dsn: "postgresql://a/a"}]}}
collections:
  docs: {table: docs, id: {column: id, type: bigint},
    vector: &v {column: e, type: vector, dimensions: 3, metric: l2},
    sharding: {strategy: hash, key: id, buckets: 1, placement: {s0: [0]}}, search: &s {ef_search: 40}}
  more: {table: more, id: {column: id, type: bigint}, vector: *v,
    sharding: {strategy: hash, key: id, buckets: 1, placement: {s0: [0]}}, search: {ef_search: 9}}
"""
OPTIONS: dict[str, dict[str, Option]] = {"docs": {"ef_search": 64, "target_recall": 0.9}}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "map.yaml"
    made.write_text(MAP)
    return made


@pytest.fixture
def measured(path: Path) -> ShardMap:
    return load(path)


def test_what_was_edited_while_it_measured_stays(path: Path, measured: ShardMap) -> None:
    edited = MAP.replace("ef_search: 9", "ef_search: 10").replace("collections:", "collections: # ours")
    path.write_text(edited)
    _write(path, measured, OPTIONS)
    expected = edited.replace("version: 7", "version: 8")
    assert path.read_text() == expected.replace("{ef_search: 40", "{target_recall: 0.9, ef_search: 64")


@pytest.mark.parametrize(
    ("old", "new"), [("table: docs", "table: other"), ("ef_search: 40", "ef_search: 41"), ("//a/a", "//b/a")]
)
def test_a_map_that_says_something_else_by_now_about_what_was_measured_is_left_alone(
    path: Path, measured: ShardMap, old: str, new: str
) -> None:
    path.write_text(edited := MAP.replace(old, new))
    with pytest.raises(ValueError, match=r"left as it is: docs or its shards were changed since"):
        _write(path, measured, OPTIONS)
    assert path.read_text() == edited


def test_an_alias_that_would_change_another_collection_too_is_not_edited(path: Path) -> None:
    path.write_text(edited := MAP.replace("search: {ef_search: 9}", "search: *s"))
    with pytest.raises(ValueError, match="more than these collections would change"):
        _write(path, load(path), OPTIONS)
    assert path.read_text() == edited


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--target-recall", "x"], "--target-recall: expected a number from 0.5 to 0.9999, got 'x'"),
        (["--target-recall", "nan"], "--target-recall: expected a number from 0.5 to 0.9999, got 'nan'"),
        (["--k", "10001"], "--k: expected an integer from 1 to 10000, got '10001'"),
        (["--k", "x"], "--k: expected an integer from 1 to 10000, got 'x'"),
        (["--queries", "1"], "--queries: expected an integer from 2 to 100000, got '1'"),
        (["--filter", "[1]"], "--filter: not a JSON object: "),
        (["--filter", '{"a": "\udc80"}'], "--filter: not a JSON object: not UTF-8"),
    ],
)
def test_wrong_usage_is_status_2(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["tune", "--map", "map.yaml", *arguments])
    assert caught.value.code == 2
    assert said in capsys.readouterr().err


def test_the_help_is_as_it_is_meant(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["tune", "--help"])
    assert "95 % confidence" in " ".join(capsys.readouterr().out.split())
