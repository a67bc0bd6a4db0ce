"""`pgscatter map`: what it prints, where, and with which exit status."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from router.commands import map as command
from shard_config.file.schema import json_schema
from tests.unit.shard_config_maps import ENV, document


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENV.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def run() -> Any:
    def run(*arguments: object) -> int:
        parser = argparse.ArgumentParser(prog="pgscatter")
        command.add_parser(parser.add_subparsers(required=True))
        args = parser.parse_args(["map", *map(str, arguments)])
        return int(args.run(args))

    return run


def write(folder: Path, tree: dict[str, Any] | None = None) -> Path:
    path = folder / "map.yaml"
    path.write_text(yaml.safe_dump(tree or document()))
    return path


def test_validate_says_what_is_in_a_valid_map(run: Any, tmp_path: Path, capsys: Any) -> None:
    path = write(tmp_path)
    assert run("validate", path) == 0
    said = capsys.readouterr()
    assert said.out == f"{path}: valid; version 12, 2 shards, 3 nodes, 1 collection\n"
    assert said.err == ""


def test_validate_reports_every_fault_on_standard_error(run: Any, tmp_path: Path, capsys: Any) -> None:
    path = write(tmp_path, document({"version": "x", "collections.documents.index.m": 1}))
    assert run("validate", path) == 1
    said = capsys.readouterr()
    assert said.out == ""
    first, second = sorted(said.err.splitlines(), key=lambda line: "version" in line)
    assert "collections.documents.index.m: expected an integer from 2 to 100, got 1" in first
    assert "version: expected an integer" in second


@pytest.mark.parametrize("verb", ["validate", "show"])
def test_a_file_that_is_not_there_is_a_failure(run: Any, tmp_path: Path, capsys: Any, verb: str) -> None:
    assert run(verb, tmp_path / "none.yaml") == 1
    assert "cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [[], ["validate"], ["check", "x"], ["locate", "--key", "1", "x"], ["locate", "--collection", "c", "x"],
     ["locate", "--collection", "c", "--key", "1", "--id", "2", "x"]],
)  # fmt: skip
def test_wrong_usage_exits_with_2(run: Any, capsys: Any, arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run(*arguments)
    assert caught.value.code == 2
    assert "usage: pgscatter map" in capsys.readouterr().err


def test_show_names_shards_nodes_collections_and_placement(run: Any, tmp_path: Path, capsys: Any) -> None:
    assert run("show", write(tmp_path)) == 0
    said = capsys.readouterr().out
    for part in ("version 12", "s0-b", "postgresql://router:***@10.0.0.12:5432/search", "0-3; 7", "4-6"):
        assert part in said
    assert "Collection documents: table public.documents, vector(384) by cosine" in said
    assert "8 buckets by the hash of id" in said
    assert ENV["PGPASSWORD"] not in said


def test_show_names_what_filters_have_indexes_on(run: Any, tmp_path: Path, capsys: Any) -> None:
    columns = {"tenant": {"column": "tenant_id", "type": "text", "index": True}, "price": "float8"}
    metadata = {"column": "meta", "indexes": {'"a.b".c': "array"}}
    tree = document({"collections.documents.columns": columns, "collections.documents.metadata": metadata})
    assert run("show", write(tmp_path, tree)) == 0
    assert 'by the hash of id, indexes on tenant, metadata."a.b".c (array)\n' in capsys.readouterr().out


def test_show_puts_lists_and_ranges_into_words(run: Any, tmp_path: Path, capsys: Any) -> None:
    many = [f"t{at}" for at in range(10)]
    tree = document(strategy="list", key="tenant", placement={"s0": many, "s1": "[b]"}, default="s1")
    assert run("show", write(tmp_path, tree)) == 0
    said = capsys.readouterr().out
    assert "t0; t1; t2; t3; t4; t5; t6; t7 and 2 more" in said
    assert "all others; [b]" in said
    parts = {"s0": [{"to": 1}, {"from": 5}], "s1": {"from": 1, "to": 5}}
    assert run("show", write(tmp_path, document(strategy="range", key="price", placement=parts))) == 0
    said = capsys.readouterr().out
    assert "below 1.0; from 5.0" in said
    assert "from 1.0, below 5.0" in said
    whole = document(strategy="range", key="price", placement={"s0": {}})
    assert run("show", write(tmp_path, whole)) == 0
    assert "everything" in capsys.readouterr().out


def test_show_json_is_the_map_without_passwords(run: Any, tmp_path: Path, capsys: Any) -> None:
    assert run("show", "--json", write(tmp_path)) == 0
    said = capsys.readouterr().out
    assert json.loads(said)["collections"]["documents"]["sharding"]["placement"] == {
        "s0": ["0-3", "7"],
        "s1": ["4-6"],
    }
    assert ENV["PGPASSWORD"] not in said


def test_schema_prints_the_schema(run: Any, capsys: Any) -> None:
    assert run("schema") == 0
    assert json.loads(capsys.readouterr().out) == json_schema()


@pytest.mark.parametrize("flag", ["--key", "--id"])
def test_locate_names_shard_and_bucket(run: Any, tmp_path: Path, capsys: Any, flag: str) -> None:
    # The row hash of 42 is 0xafd30d9a116a5a62, so its remainder by 8 is 2.
    assert run("locate", "--collection", "documents", flag, "42", write(tmp_path)) == 0
    assert capsys.readouterr().out == "shard: s0\nbucket: 2 of 8\n"
    # That of -1 ends in a5, so 5.
    assert run("locate", "--collection", "documents", flag, "-1", write(tmp_path)) == 0
    assert capsys.readouterr().out == "shard: s1\nbucket: 5 of 8\n"


def test_locate_by_list_has_no_bucket(run: Any, tmp_path: Path, capsys: Any) -> None:
    path = write(tmp_path, document(strategy="list", key="tenant", placement={"s1": "acme"}))
    assert run("locate", "--collection", "documents", "--key", "acme", path) == 0
    assert capsys.readouterr().out == "shard: s1\n"
    assert run("locate", "--collection", "documents", "--key", "other", path) == 1
    assert capsys.readouterr().err == "no shard holds the tenant 'other'\n"


def test_locate_says_why_it_cannot(run: Any, tmp_path: Path, capsys: Any) -> None:
    path = write(tmp_path)
    assert run("locate", "--collection", "documents", "--key", "x", path) == 1
    assert "expected an integer" in capsys.readouterr().err
    assert run("locate", "--collection", "docs", "--key", "1", path) == 1
    assert "no collection 'docs'" in capsys.readouterr().err
    path = write(tmp_path, document(strategy="list", key="tenant", placement={"s1": "acme"}))
    assert run("locate", "--collection", "documents", "--id", "1", path) == 1
    assert "documents are placed by tenant, so give --key" in capsys.readouterr().err
