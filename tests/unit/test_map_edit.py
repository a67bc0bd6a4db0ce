from __future__ import annotations

from datetime import date
from typing import Any

import pytest
import yaml

from shard_config.file.edit import Option, raise_version, set_search_options

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


@pytest.mark.parametrize("line_end", ["\r\n", "\r"])
def test_line_ends_stay_what_they_are(line_end: str) -> None:
    for text in (BLOCK, BLOCK.replace("    search:\n      timeout: 2s\n      ef_search: 40 # guessed\n", "")):
        edited, _ = tuned(text.replace("\n", line_end))
        assert edited.replace(line_end, "\n") == tuned(text)[0]
        assert "\n" not in edited.replace("\r\n", "")
    edited, _ = tuned(BLOCK.rstrip("\n"))
    assert not edited.endswith("\n")


@pytest.mark.parametrize(
    "search",
    ["search: &ours {timeout: 2s}", "search: &ours {}", "search: &ours\n      timeout: 2s", "search: {\n }"],
)
def test_an_anchor_or_an_empty_mapping_is_no_obstacle(search: str) -> None:
    text = f"version: 7\ncollections:\n  docs:\n    {search}\n"
    before = yaml.safe_load(text)["collections"]["docs"]["search"]
    edited, after = tuned(text)
    assert after["collections"]["docs"]["search"] == {**before, **SET}
    assert ("&ours" in edited) == ("&ours" in text)
