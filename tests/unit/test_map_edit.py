from __future__ import annotations

from datetime import date
from typing import Any

import pytest
import yaml

from shard_config.edit import Option, raise_version, set_search_options

BLOCK = """\
# our map
version: 7  # bumped by hand
collections:
  other: {search: {ef_search: 5}}
  docs:
    table: docs   # keep me
    search:
      timeout: 2s
      ef_search: 40 # guessed
"""


MEASURED = {"target_recall": 0.99, "recall": 0.995, "k": 10, "at": date(2026, 1, 31)}
SET: dict[str, Option] = {"ef_search": 64, "target_recall": 0.99, "tuned": MEASURED}


def tuned(text: str) -> tuple[str, dict[str, Any]]:
    edited = raise_version(set_search_options(text, "docs", SET))
    return edited, yaml.safe_load(edited)


@pytest.mark.parametrize(
    "text",
    [
        BLOCK,
        BLOCK.replace("      ef_search: 40 # guessed\n", ""),
        BLOCK.replace("    search:\n      timeout: 2s\n      ef_search: 40 # guessed\n", ""),
        BLOCK.replace("    search:\n      timeout: 2s\n      ef_search: 40 # guessed\n", "    search:\n"),
        BLOCK.replace("search:\n      timeout: 2s\n      ef_search: 40 # guessed", "search: {timeout: 2s}"),
        BLOCK.replace("search:\n      timeout: 2s\n      ef_search: 40 # guessed", "search: {}"),
        "version: 7\ncollections: {docs: {table: docs, search: {ef_search: 40}}}\n",
        "version: 7\ncollections: {docs: {table: docs}}\n",
    ],
)
def test_only_the_options_and_the_version_change(text: str) -> None:
    before = yaml.safe_load(text)
    edited, after = tuned(text)
    expected = dict(before["collections"]["docs"])
    expected["search"] = {**(expected.get("search") or {}), **SET}
    assert after == {
        "version": 8,
        "collections": {**before["collections"], "docs": expected},
    }
    for comment in ("# our map", "# bumped by hand", "# keep me", "# guessed"):
        assert (comment in edited) == (comment in text)


def test_tuning_again_replaces_what_was_measured() -> None:
    once, _ = tuned(BLOCK)
    twice, after = tuned(once)
    assert twice.replace("version: 9", "version: 8") == once
    assert after["version"] == 9


def test_what_somebody_wrote_in_lines_is_replaced_without_what_follows() -> None:
    lines = """\
version: 1
collections:
  docs:
    search:
      tuned:  # by hand
        recall: 0.9
        k: 5

      # about the timeout
      timeout: 2s
"""
    edited, after = tuned(lines)
    assert after["collections"]["docs"]["search"] == {**SET, "timeout": "2s"}
    assert "# by hand" in edited
    assert "\n\n      # about the timeout\n" in edited


def test_an_unknown_collection_is_an_error() -> None:
    with pytest.raises(ValueError, match="no collection nope"):
        set_search_options(BLOCK, "nope", {"ef_search": 1})
