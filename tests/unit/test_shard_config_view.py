"""The map as JSON: in the file's own form, complete, and without passwords."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import yaml

from shard_config import to_json
from shard_config.file import codec
from tests.unit.shard_config_maps import ENV, REMOVED, WORDS, document, parse

NODES = "shards.s0.nodes"


def test_the_view_reads_back_as_the_map_it_shows() -> None:
    by_day = {"s0": [{"to": "2026-01-01"}], "s1": [{"from": "2026-01-01"}]}
    by_tenant = {"s0": ["$${x}", "no"], "s1": ["7"]}
    shardings: list[dict[str, Any]] = [
        {"strategy": "hash", "key": "id", "buckets": 8, "placement": {"s0": ["0-3", 7], "s1": "4-6"}},
        {"strategy": "list", "key": "tenant", "placement": by_tenant, "default": "s1"},
        {"strategy": "list", "key": "price", "placement": {"s0": [0.1, 1e300]}},
        {"strategy": "range", "key": "day", "placement": by_day},
    ]
    for sharding in shardings:
        # Without passwords the two are equal in every field.
        nodes = [
            {"name": "a", "dsn": "postgresql://h/d", "zone": "z"},
            {"name": "b", "dsn": "postgresql://g/d", "patroni": "https://g:8008"},
        ]
        changes = {
            NODES: nodes,
            **WORDS,
            "models.m.api_key": REMOVED,
            "collections.documents.metadata": {"column": "meta", "indexes": {'"a.b"."".x': "array"}},
            "collections.documents.columns.price": {"type": "float8", "index": True},
        }
        shard_map = parse(document(changes, **sharding))
        view = to_json(shard_map)
        assert codec.parse(yaml.safe_dump(view), env={}) == shard_map
        assert json.loads(json.dumps(view)) == view
        assert to_json(codec.parse(yaml.safe_dump(view), env={})) == view


def test_the_view_shows_no_password() -> None:
    view = json.dumps(to_json(parse(document())))
    assert ENV["PGPASSWORD"] not in view
    assert "postgresql://router:***@10.0.0.11:5432/search" in view


def test_the_view_shows_no_key_of_a_service() -> None:
    shard_map = parse(document(WORDS))
    view = to_json(shard_map)
    assert (shard_map.models["m"].api_key, view["models"]["m"]["api_key"]) == ("k3y", "***")
    assert "k3y" not in json.dumps(view) + repr(shard_map)


def test_bounds_beyond_python_s_values_are_read_from_the_form_that_is_shown() -> None:
    written = {
        "date": ["-infinity", "0044-03-15 BC", "9999-12-31", "10000-01-01", "infinity"],
        "timestamptz": ["-infinity", "0044-03-15T12:00:00Z BC", "10000-01-01T00:00:00Z", "infinity"],
        "float8": ["-Infinity", 0.5, "Infinity", "NaN"],
        "numeric": ["-Infinity", "0.5", "Infinity", "NaN"],
    }
    for type_, bounds in written.items():
        ranges = [{"from": low, "to": high} for low, high in pairwise(bounds)]
        placements: list[tuple[str, dict[str, Any]]] = [("range", {"s0": ranges}), ("list", {"s0": bounds})]
        for strategy, placement in placements:
            fields = {"collections.documents.columns": {"k": type_}}
            tree = document(fields, strategy=strategy, key="k", placement=placement)
            shard_map = parse(tree)
            shown = to_json(shard_map)
            assert shown["collections"]["documents"]["sharding"]["placement"] == placement
            assert codec.parse(json.dumps(shown), env={}).collections == shard_map.collections
