"""Judged queries from Debian's packages: names as queries, descriptions as what is searched.

The descriptions are those that this machine has: of all packages that it could install, as
`apt-cache dumpavail` prints them, and of those that are installed, which have the long ones. Invariant: of a
source that has several packages one is there, and no two documents are equal, so that one is the answer.
"""

from __future__ import annotations

import random
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from bench.errors import NotHere
from bench.judged.types import Judged, Query

__all__ = ["judged", "packages", "stanzas"]

_STATUS = Path("/var/lib/dpkg/status")
_LIST_SECONDS = 120.0
# Fewer than this is a container with nothing in it, and no collection.
_LEAST = 200
# Packages that are described by what they belong to: "documentation for", "development files of".
_PARTS = frozenset(
    {
        *("debug", "doc", "introspection", "kernel", "libdevel", "libs", "localization", "metapackages"),
        *("oldlibs", "otherosfs", "tasks"),
    }
)
_LEAST_CHARACTERS = 20


def judged(queries: int, documents: int, seed: int = 0, listed: str | None = None) -> Judged:
    """`documents` packages at most, drawn from what `listed` (or this machine) describes.

    Raises:
        NotHere: this machine describes too few.
    """
    found = packages(_described() if listed is None else listed)
    if len(found) < _LEAST:
        raise NotHere(f"{len(found)} packages are described on this machine; {_LEAST} are needed")
    chooser = random.Random(seed)
    chosen = sorted(found) if len(found) <= documents else sorted(chooser.sample(sorted(found), documents))
    asked = [
        Query(" ".join(re.split(r"[-_.+]+", name)).strip(), frozenset([place]))
        for place, name in enumerate(chosen)
    ]
    if len(asked) > queries:
        asked = chooser.sample(asked, queries)
    about = "name of a package in words -> its description"
    return Judged("debian names", about, [found[name] for name in chosen], asked)


def packages(listed: str) -> dict[str, str]:
    """Description by name; of a package that is there twice, the longest."""
    longest: dict[str, dict[str, str]] = {}
    for stanza in stanzas(listed):
        known = longest.get(stanza["Package"])
        if known is None or len(_description(stanza)) > len(_description(known)):
            longest[stanza["Package"]] = stanza
    sources, texts, kept = set(), set(), {}
    for name, stanza in sorted(longest.items()):
        source, text = stanza.get("Source", name).partition(" ")[0], _description(stanza)
        section = stanza.get("Section", "").rpartition("/")[2]
        if section in _PARTS or len(text) < _LEAST_CHARACTERS or source in sources or text in texts:
            continue
        sources.add(source)
        texts.add(text)
        kept[name] = text
    return kept


def stanzas(listed: str) -> Iterator[dict[str, str]]:
    """The fields of each package; a line that begins with a space goes on with the field before it."""
    for paragraph in listed.split("\n\n"):
        fields: dict[str, str] = {}
        name = ""
        for line in paragraph.splitlines():
            if line[:1] in (" ", "\t"):
                fields[name] = f"{fields.get(name, '')}\n{line[1:]}"
            else:
                name, _, value = line.partition(":")
                fields[name] = value.strip()
        if "Package" in fields:
            yield fields


def _description(stanza: dict[str, str]) -> str:
    """Its paragraphs are parted by a line with a full stop (Debian Policy, 5.6.13)."""
    return stanza.get("Description-en", stanza.get("Description", "")).replace("\n.\n", "\n\n")


def _described() -> str:
    texts = []
    if shutil.which("apt-cache"):
        command = ["apt-cache", "dumpavail"]
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_LIST_SECONDS
        )
        texts.append(done.stdout)
    if _STATUS.is_file():
        texts.append(_STATUS.read_text(errors="replace"))
    return "\n\n".join(texts)
