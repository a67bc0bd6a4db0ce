"""The corpus: complete, in one order, and read without touching this process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from deploy.corpus import documents as corpus
from deploy.corpus.documents import Entry


@pytest.fixture(scope="module")
def found() -> list[Entry]:
    return corpus.entries()


def test_ids_count_up_in_order_of_distinct_names(found: list[Entry]) -> None:
    names = [entry.name for entry in found]
    assert [entry.id for entry in found] == list(range(len(found)))
    assert names == sorted(set(names))


def test_there_are_thousands_of_entries_and_none_is_empty(found: list[Entry]) -> None:
    assert len(found) > 5000
    assert all(entry.text.strip() for entry in found)
    assert {entry.kind for entry in found} == {"module", "class", "function", "method", "property"}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("functools.lru_cache", "function"),
        ("itertools.groupby", "class"),
        ("math.isclose", "function"),  # in C
        ("builtins.str.join", "method"),  # in C
        ("os.path.join", "function"),  # from posixpath
        ("asyncio.gather", "function"),  # and not asyncio.tasks.gather
        ("socket.socket.bind", "method"),  # from the private _socket.socket
        ("datetime.datetime.fromisoformat", "method"),  # a class method in C
        ("pathlib.PurePath.parent", "property"),
        ("json", "module"),
    ],
)
def test_what_people_look_for_is_there_under_the_name_they_know(
    found: list[Entry], name: str, kind: str
) -> None:
    entry = next(entry for entry in found if entry.name == name)
    assert (entry.kind, entry.module) == (kind, name.partition(".")[0])


def test_what_is_private_or_has_side_effects_is_not_there(found: list[Entry]) -> None:
    assert not [entry.name for entry in found if "._" in f".{entry.name}"]
    assert not {"antigravity", "this", "test", "turtle", "idlelib"} & {entry.module for entry in found}


def test_reading_it_twice_gives_the_same(found: list[Entry]) -> None:
    assert corpus.entries() == found


def test_reading_it_imports_nothing_here() -> None:
    code = "import sys, deploy.corpus.documents as c; c.entries(); sys.exit('mailbox' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_a_reader_that_fails_is_an_error_with_its_last_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = tmp_path / "fails.py"
    script.write_text("raise SystemExit('no library here')")
    monkeypatch.setattr(corpus, "_SCRIPT", script)
    with pytest.raises(RuntimeError, match="no library here"):
        corpus.entries()


def test_documents_carry_the_entry_as_text(tmp_path: Path) -> None:
    said: list[str] = []
    prepared = corpus.prepare(tmp_path, progress=said.append)
    documents: list[dict[str, Any]] = [
        msgspec.json.decode(line) for line in prepared.documents.read_bytes().splitlines()
    ]
    assert len(documents) == prepared.count
    assert len(said) == 1
    by_name = {document["name"]: document for document in documents}
    lru_cache = by_name["functools.lru_cache"]
    assert set(lru_cache) == {"id", "name", "module", "kind", "content"}
    assert lru_cache["content"].startswith("Least-recently-used cache decorator.")


def test_vectors_have_length_one_and_what_is_alike_is_near() -> None:
    made = corpus.vectors(["Recursively delete a directory tree.", "delete a tree of directories", "Gamma."])
    assert made.shape == (3, corpus.DIMENSIONS) and made.dtype == np.float32
    assert np.linalg.norm(made, axis=1) == pytest.approx([1, 1, 1])
    assert made[0] @ made[1] > 0.5 > made[0] @ made[2]
