from __future__ import annotations

import pytest
import yaml

from shard_config.edit import set_search_option

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


def tuned(text: str, note: str = "recall 0.99") -> tuple[str, dict[str, object]]:
    edited = set_search_option(text, "docs", "ef_search", 64, note)
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
def test_only_the_option_and_the_version_change(text: str) -> None:
    before = yaml.safe_load(text)
    edited, after = tuned(text)
    expected = dict(before["collections"]["docs"])
    expected["search"] = {**(expected.get("search") or {}), "ef_search": 64}
    assert after == {
        "version": 8,
        "collections": {**before["collections"], "docs": expected},
    }
    assert "# pgscatter tune: recall 0.99\n" in edited
    for comment in ("# our map", "# bumped by hand", "# keep me"):
        assert (comment in edited) == (comment in text)


def test_tuning_again_replaces_its_own_note() -> None:
    once, _ = tuned(BLOCK, "first")
    twice, after = tuned(once, "second")
    assert "first" not in twice
    assert "# pgscatter tune: second" in twice
    assert after["version"] == 9


def test_an_unknown_collection_is_an_error() -> None:
    with pytest.raises(ValueError, match="no collection nope"):
        set_search_option(BLOCK, "nope", "ef_search", 1, "")
