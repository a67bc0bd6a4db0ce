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

from router.text import TextModel, fit

__all__ = ["DIMENSIONS", "Entry", "Prepared", "entries", "prepare", "searchable", "write_documents"]

DIMENSIONS = 256
_WEIGHT = 3  # of name and first paragraph, see `searchable`

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
    """An entry as a line of the file that `pgscatter load` reads."""

    id: int
    name: str
    module: str
    kind: str
    content: str
    vector: list[float]


class Prepared(msgspec.Struct, frozen=True):
    """Where the corpus and the model that embeds it have been written."""

    documents: Path
    model: Path
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


def searchable(entry: Entry) -> str:
    """What is embedded: name and first paragraph count more than the details that follow.

    Without that, "least recently used cache decorator" finds `functools.lru_cache` fourth on Python
    3.13, behind docstrings so short that they are about nothing but caches; with it, first on 3.11 to
    3.13 by a margin of at least 0.14, for every seed tried.
    """
    summary = entry.text.partition("\n\n")[0]
    return "\n".join([*[entry.name, summary] * _WEIGHT, entry.text])


def write_documents(path: Path, corpus: Sequence[Entry], model: TextModel) -> None:
    """One JSON document per line and entry, with its vector."""
    vectors = model.embed_many([searchable(entry) for entry in corpus])
    encoder = msgspec.json.Encoder()
    with path.open("wb") as file:
        for entry, vector in zip(corpus, vectors, strict=True):
            file.write(encoder.encode(_document(entry, vector)) + b"\n")


def prepare(
    directory: Path,
    dimensions: int = DIMENSIONS,
    seed: int = 0,
    progress: Callable[[str], object] = lambda _: None,
) -> Prepared:
    """Write `stdlib.jsonl` and `stdlib.model` into `directory`; `progress` hears of every step."""
    progress("reading the docstrings of Python's standard library")
    corpus = entries()
    progress(f"fitting the text model on {len(corpus):,} docstrings")
    model = fit([searchable(entry) for entry in corpus], dimensions, seed)
    prepared = Prepared(directory / "stdlib.jsonl", directory / "stdlib.model", len(corpus))
    model.save(prepared.model)
    progress(f"embedding {len(corpus):,} docstrings")
    write_documents(prepared.documents, corpus, model)
    return prepared


def _document(entry: Entry, vector: NDArray[np.float32]) -> Document:
    # Seven decimals are what a float32 below 1 has; as doubles they would take twice the space.
    rounded = vector.astype(np.float64).round(7).tolist()
    return Document(entry.id, entry.name, entry.module, entry.kind, entry.text, rounded)
