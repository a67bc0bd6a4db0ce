"""What Python says about its own standard library, as documents to search.

It is real English, it is on every machine that can run this, and everybody can judge the answers.
The ids are the positions in order of names, so that one version of Python always gives one corpus.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from router.model_service.backend import BackendError
from router.model_service.static import WordLlamaEmbedder

__all__ = ["DIMENSIONS", "Entry", "Prepared", "entries", "prepare", "vectors", "write_documents"]

DIMENSIONS = WordLlamaEmbedder.dimensions

# It takes half a second on an idle core.
_COLLECT_TIMEOUT = 120.0
_SCRIPT = Path(__file__).with_name("docstrings.py")


class Entry(msgspec.Struct, frozen=True):
    """One documented thing, for instance `functools.lru_cache`.

    Attributes:
        module: the top-level module.
        kind: module, class, function, method or property.
        text: its docstring.
    """

    id: int
    name: str
    module: str
    kind: str
    text: str


class Document(msgspec.Struct, frozen=True):
    """An entry as a line of the file that `pgscatter load` reads, and has embedded."""

    id: int
    name: str
    module: str
    kind: str
    content: str


class Prepared(msgspec.Struct, frozen=True):
    """Where the corpus has been written, and how many documents it has."""

    documents: Path
    count: int


def entries() -> list[Entry]:
    """All entries, ids 0..n-1 in order of names.

    Raises:
        RuntimeError: the process that reads the library failed or hung.
    """
    # -I and -S: neither the environment nor installed packages may change what there is to read.
    command = [sys.executable, "-I", "-S", str(_SCRIPT)]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_COLLECT_TIMEOUT, check=True
        )
    except subprocess.TimeoutExpired as exc:
        raise RuntimeError(f"reading the standard library took more than {_COLLECT_TIMEOUT:g} s") from exc
    except subprocess.CalledProcessError as exc:
        said = exc.stderr.decode(errors="replace").strip()[-500:]
        raise RuntimeError(f"reading the standard library failed: {said}") from exc
    rows = msgspec.json.decode(done.stdout, type=list[tuple[str, str, str, str]])
    return [Entry(i, *row) for i, row in enumerate(rows)]


def vectors(texts: Sequence[str]) -> NDArray[np.float32]:
    """What the default model makes of the texts: shape (n, `DIMENSIONS`), each of length 1.

    Raises:
        RuntimeError: the model's package is not installed.
    """
    try:
        return WordLlamaEmbedder().run(texts).values.astype(np.float32, copy=False)
    except BackendError as exc:
        raise RuntimeError(str(exc)) from exc


def write_documents(path: Path, corpus: Sequence[Entry]) -> None:
    """One JSON document per line and entry."""
    encoder = msgspec.json.Encoder()
    with path.open("wb") as file:
        for one in corpus:
            document = Document(one.id, one.name, one.module, one.kind, one.text)
            file.write(encoder.encode(document) + b"\n")


def prepare(directory: Path, progress: Callable[[str], object] = lambda _: None) -> Prepared:
    """Write `stdlib.jsonl` into `directory`; `progress` hears of it.

    Raises:
        RuntimeError: the library cannot be read.
    """
    progress("reading the docstrings of Python's standard library")
    corpus = entries()
    prepared = Prepared(directory / "stdlib.jsonl", len(corpus))
    write_documents(prepared.documents, corpus)
    return prepared
