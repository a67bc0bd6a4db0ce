"""The map of a local cluster is a map, or is refused with places in the file that was given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from deploy.local.mapfile import checked_collections, write_map
from shard_config import MapError, load

GOOD = """\
documents:
  table: public.documents
  id: {column: id, type: bigint}
  vector: {column: embedding, dimensions: 4, metric: l2}
  sharding: {strategy: hash, key: id, buckets: 10}
"""
NODES = {
    name: [{"name": f"{name}-a", "dsn": f"postgresql://127.0.0.1:{port}/postgres"}]
    for name, port in (("s0", 5001), ("s1", 5002))
}


def checked(folder: Path, text: str) -> dict[str, Any]:
    file = folder / "collections.yaml"
    file.write_text(text)
    return checked_collections(file, folder / "shard_map.yaml", list(NODES))


def under(text: str) -> str:
    return "collections:\n" + "".join(f"  {line}\n" for line in text.splitlines())


@pytest.mark.parametrize("text", [GOOD, under(GOOD)])
def test_what_was_checked_is_written_and_kept(tmp_path: Path, text: str) -> None:
    path = tmp_path / "shard_map.yaml"
    write_map(path, NODES, checked(tmp_path, text))
    placed = load(path).collections["documents"].sharding
    assert placed.placement == ("s0",) * 5 + ("s1",) * 5  # type: ignore[union-attr]
    write_map(path, NODES, checked_collections(None, path, list(NODES)))
    assert load(path).version == 1
    moved = {**NODES, "s1": [{**NODES["s1"][0], "dsn": "postgresql://127.0.0.1:5003/postgres"}]}
    write_map(path, moved, checked_collections(None, path, list(NODES)))
    assert load(path).version == 2
    assert load(path).collections["documents"].sharding == placed


def test_words_are_what_maps_take_them_for(tmp_path: Path) -> None:
    values = ["no", "1e5", "12:30", "2026-01-31", "0x10"]
    text = GOOD.replace(
        "sharding: {strategy: hash, key: id, buckets: 10}",
        "columns: {tenant: text}\n"
        f"  sharding: {{strategy: list, key: tenant, placement: {{s0: {values!r}, s1: [maybe]}}}}",
    )
    write_map(tmp_path / "map.yaml", NODES, checked(tmp_path, text))
    sharding = load(tmp_path / "map.yaml").collections["documents"].sharding
    assert [value for value, shard in sharding.values.items() if shard == "s0"] == values  # type: ignore[union-attr]


def test_of_a_whole_map_the_collections_are_taken(tmp_path: Path) -> None:
    whole = f"version: 7\nshards: {{other: {{nodes: []}}}}\n{under(GOOD)}"
    assert checked(tmp_path, whole) == checked(tmp_path, GOOD)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (GOOD.replace("10}", "4, placement: {s9: [0-3]}}"), ":5:63: documents.sharding.placement.s9: "),
        (GOOD.replace("  table: public.documents\n", ""), ":1:1: documents: missing field 'table'"),
        (under(GOOD.replace("l2", "far")), ":5:48: collections.documents.vector.metric: "),
        (f"version: 1\nshards: {{}}\nmore: 1\n{under(GOOD)}", ":3:1: more: unknown field"),
        (f"{under(GOOD)}other: 1\n", ":7:1: other: unknown field"),
        ("documents: {table: [", ":2:1: not valid YAML"),
        (GOOD + GOOD, ":6:1: documents: the key stands twice in one mapping, first in line 1"),
        ("documents: 5\n", ":1:1: documents: expected a mapping, got 5"),
        ("collections: [1]\n", ":1:1: collections: expected a mapping of collections"),
        ("[1]\n", ": expected a mapping of collections"),
        (GOOD.replace("buckets: 10", "buckets: 100000000000"), ":5:39: documents.sharding.buckets: "),
    ],
)
def test_what_would_be_no_map_is_named_by_its_place_in_the_file(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(MapError) as caught:
        checked(tmp_path, text)
    lines = str(caught.value).splitlines()
    assert all(line.startswith(f"{tmp_path / 'collections.yaml'}:") for line in lines), lines
    assert any(line.startswith(f"{tmp_path / 'collections.yaml'}{says}") for line in lines), lines


def test_faults_of_the_map_from_before_are_its_own(tmp_path: Path) -> None:
    path = tmp_path / "shard_map.yaml"
    write_map(path, NODES, checked(tmp_path, GOOD))
    good = path.read_text()
    path.write_text(good.replace("metric: l2", "metric: far"))
    with pytest.raises(MapError, match=r"shard_map\.yaml:\d+:\d+: collections\.documents\.vector\.metric: "):
        checked_collections(None, path, list(NODES))
    path.write_text(good.replace("version: 1", "version: x"))
    with pytest.raises(MapError, match=r"shard_map\.yaml:1:1: version: expected an integer"):
        checked(tmp_path, GOOD)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(MapError, match=r"gone\.yaml: cannot be read: No such file"):
        checked_collections(tmp_path / "gone.yaml", tmp_path / "shard_map.yaml", ["s0"])
