"""docs/shard-map.md: its YAML is read, its defaults and bounds are the code's, nothing is left out."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
import yaml

from shard_config import limits
from shard_config.file import codec
from shard_config.file.collection import CACHE, INDEX, SEARCH
from shard_config.file.schema import json_schema
from shard_config.hashing import HASHABLE
from shard_config.values import TYPE_NAMES
from tests.unit.shard_config_maps import ENV, WORDS, document

TEXT = (Path(__file__).parents[2] / "docs" / "shard-map.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```yaml\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS)
def test_every_block_is_a_map_or_a_part_of_one(block: str) -> None:
    tree = yaml.safe_load(block)
    part = re.match(r"# part: (\w+)\n", block)
    if part:
        whole = document(
            {
                "collections.documents.columns": {
                    "tenant": "text",
                    "title": "text",
                    "lang": "text",
                    "created_at": "timestamptz",
                }
            }
        )
        whole |= {"models": WORDS["models"]} if part[1] == "words" else {}
        whole["collections"]["documents"] |= tree if part[1] == "words" else {part[1]: tree}
        tree, block = whole, yaml.safe_dump(whole)
    codec.parse(block, "docs/shard-map.md", {**ENV, "MODEL_KEY": "k3y"})
    jsonschema_rs.Draft202012Validator(json_schema()).validate(tree)


def test_there_are_blocks_of_each_strategy() -> None:
    assert set(re.findall(r"strategy: (\w+)", "".join(BLOCKS))) == {"hash", "list", "range"}


def fields(schema: Any) -> set[str]:
    """Every field that the format has, at any depth."""
    if isinstance(schema, list):
        return set().union(*map(fields, schema))
    if not isinstance(schema, dict):
        return set()
    return set(schema.get("properties", ())) | set().union(*map(fields, schema.values()))


def test_every_field_is_documented() -> None:
    assert {
        name for name in fields(json_schema()) if f"`{name}`" not in TEXT and f"`{name}:" not in TEXT
    } == set()


def test_every_type_is_documented() -> None:
    assert {name for name in TYPE_NAMES if f"`{name}`" not in TEXT} == set()
    assert all(f"`{type_}`" in TEXT for type_ in HASHABLE)


def test_every_taken_name_is_documented() -> None:
    assert all(f"`{name}`" in TEXT for name in limits.TAKEN_NAMES)


@pytest.mark.parametrize(
    ("field", "default", "low", "high"),
    [
        ("m", INDEX["m"].default, *limits.M),
        ("ef_construction", INDEX["ef_construction"].default, *limits.EF_CONSTRUCTION),
        ("ef_search", SEARCH["ef_search"].default, *limits.EF_SEARCH),
        ("overfetch", f"{SEARCH['overfetch'].default:g}", *(f"{bound:g}" for bound in limits.OVERFETCH)),
        (
            "timeout",
            f"{SEARCH['timeout'].default:g}s",
            f"{limits.TIMEOUT[0] * 1000:g}ms",
            f"{limits.TIMEOUT[1] / 3600:g}h",
        ),
        ("target_recall", "none", *(f"{bound:g}" for bound in limits.TARGET_RECALL)),
        ("max_k", SEARCH["max_k"].default, *limits.MAX_K),
        ("ttl", f"{CACHE['ttl'].default:g}s", f"{limits.TTL[0]:g}", f"{limits.TTL[1] / 3600:g}h"),
        ("dimensions", "required", *limits.DIMENSIONS),
        ("shards", "required", 1, limits.SHARDS),
    ],
)
def test_the_tables_hold_the_defaults_and_the_bounds(
    field: str, default: object, low: object, high: object
) -> None:
    row = re.search(rf"^\| `{field}` \|.*$", TEXT, re.MULTILINE)
    assert row is not None
    assert f"| {default} | {low} to {high}" in row[0]


def test_the_other_bounds_are_the_codes() -> None:
    assert f"({limits.BUCKETS[0]} to\n{limits.BUCKETS[1]})" in TEXT
    assert f"at most {limits.FILE_BYTES // 2**20} MiB" in TEXT
