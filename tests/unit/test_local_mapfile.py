"""The map of a local cluster is a map, or is refused with places in the file that was given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from deploy.local.mapfile import Part, checked_collections, write_map
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


def checked(folder: Path, text: str) -> Part:
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


TUNED = """\
  search:
    ef_search: 80
    target_recall: 0.99
    tuned: {target_recall: 0.99, recall: 0.995, lower_bound: 0.991, k: 10, queries: 500, filters: 0, \
shards: 2, at: 2026-01-31}
"""


def tuned_map(folder: Path) -> Path:
    """A map that was made from GOOD, with what `pgscatter tune` wrote into it and a node that has a zone."""
    path = folder / "shard_map.yaml"
    write_map(path, NODES, checked(folder, GOOD + TUNED))
    text = path.read_text()
    path.write_text(text.replace("- name: s0-a\n", "- name: s0-a\n      zone: east\n"))
    assert load(path).shards["s0"].nodes[0].zone == "east"
    return path


def brought_again(folder: Path, text: str) -> tuple[Any, list[str]]:
    """What `cluster up --collections` with this text makes of the map, and what it says."""
    said: list[str] = []
    file, path = folder / "collections.yaml", folder / "shard_map.yaml"
    file.write_text(text)
    write_map(path, NODES, checked_collections(file, path, list(NODES), said.append))
    return load(path), said


@pytest.mark.parametrize(
    "more", ["", "  search: {timeout: 3s}\n", "  search: {ef_search: 80}\n", "  cache: {ttl: 5s}\n"]
)
def test_what_tune_wrote_stays_when_the_collections_come_again(tmp_path: Path, more: str) -> None:
    before = load(tuned_map(tmp_path)).collections["documents"].search
    shard_map, said = brought_again(tmp_path, GOOD + more)
    search = shard_map.collections["documents"].search
    assert (search.ef_search, search.target_recall, search.tuned) == (80, 0.99, before.tuned)
    assert said == []
    assert shard_map.shards["s0"].nodes[0].zone == "east"
    assert search.timeout == (3.0 if "timeout" in more else 2.0)


def test_nothing_new_leaves_the_map_as_it_is(tmp_path: Path) -> None:
    text = tuned_map(tmp_path).read_text()
    brought_again(tmp_path, GOOD)
    assert (tmp_path / "shard_map.yaml").read_text() == text


@pytest.mark.parametrize(
    ("text", "part"),
    [
        (GOOD + "  search: {ef_search: 40}\n", "search.ef_search"),
        (GOOD + "  search: {overfetch: 4}\n", "search.overfetch"),
        (GOOD.replace("l2", "cosine"), "vector"),
        (GOOD + "  index: {m: 32}\n", "index"),
        (GOOD.replace("public.documents", "public.others"), "table"),
    ],
)
def test_what_tune_measured_for_something_else_is_dropped_with_a_word(
    tmp_path: Path, text: str, part: str
) -> None:
    tuned_map(tmp_path)
    shard_map, said = brought_again(tmp_path, text)
    assert shard_map.collections["documents"].search.tuned is None
    assert said == [
        f"collection documents: `pgscatter tune` measured another {part}; its result is dropped"
        f" ({tmp_path / 'collections.yaml'})"
    ]


def test_a_map_keeps_its_mode_and_a_link_stays_one(tmp_path: Path) -> None:
    path, real = tmp_path / "shard_map.yaml", tmp_path / "real.yaml"
    tuned_map(tmp_path).rename(real)
    real.chmod(0o600)
    path.symlink_to(real)
    shard_map, _ = brought_again(tmp_path, GOOD + "  cache: {ttl: 5s}\n")
    assert shard_map.version == 2
    assert path.is_symlink()
    assert real.stat().st_mode & 0o777 == 0o600


def test_a_collection_that_leaves_the_map_is_named(tmp_path: Path) -> None:
    tuned_map(tmp_path)
    shard_map, said = brought_again(tmp_path, GOOD.replace("documents:", "others:"))
    assert list(shard_map.collections) == ["others"]
    assert said == [f"collection documents leaves the map; its tables stay ({tmp_path / 'collections.yaml'})"]


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


SERVICES = """\
models: {m: {url: "http://127.0.0.1:8200/v1", dimensions: 4, api_key: "${MODEL_KEY}"}}
rerankers: {r: {url: "http://127.0.0.1:8200/v1"}}
"""


def test_services_come_with_the_collections_and_stay_when_a_file_does_not_speak_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODEL_KEY", "k3y")
    path = tmp_path / "shard_map.yaml"
    searched = GOOD + "  embedder: m\n"
    write_map(path, NODES, checked(tmp_path, SERVICES + under(searched)))
    embedder = load(path).collections["documents"].embedder
    assert embedder is not None
    assert embedder.api_key == "k3y"
    assert "k3y" not in path.read_text()
    text = path.read_text()
    for part in (checked_collections(None, path, list(NODES)), checked(tmp_path, searched)):
        write_map(path, NODES, part)
        assert path.read_text() == text
    write_map(path, NODES, checked(tmp_path, "rerankers: {}\n" + under(searched)))
    assert (load(path).version, list(load(path).rerankers), list(load(path).models)) == (2, [], ["m"])
    with pytest.raises(MapError, match=r"collections\.yaml:1:14: models\.m\.url: expected an http"):
        checked(tmp_path, SERVICES.replace("http://127.0.0.1:8200/v1", "ftp://x", 1) + under(searched))


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
