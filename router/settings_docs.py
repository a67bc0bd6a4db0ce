"""Writes the rows of `docs/settings.md`, whose headings and prose are written by hand.

    python -m router.settings_docs docs/settings.md

A row stays where it is; that of a new setting is put behind that of the setting before it. So the tables
together hold every setting once, in the order of `Settings`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from router.settings import Setting, described

__all__ = ["main", "rewritten"]

_ROW = re.compile(r"\| `(\w+)` \|")


def rewritten(text: str) -> str:
    """The page `text` with the rows that the settings have now."""
    settings = described()
    placed = {name for line in text.splitlines() if (name := _name(line))}
    runs: dict[str, list[Setting]] = {}
    last = next(setting.name for setting in settings if setting.name in placed)
    for setting in settings:
        last = setting.name if setting.name in placed else last
        runs.setdefault(last, []).append(setting)
    return "\n".join(_lines(text, runs)) + "\n"


def main() -> None:
    page = Path(sys.argv[1])
    page.write_text(rewritten(page.read_text(encoding="utf-8")), encoding="utf-8")


def _lines(text: str, runs: dict[str, list[Setting]]) -> Iterator[str]:
    for line in text.splitlines():
        name = _name(line)
        if name is None:
            yield line
        else:
            yield from map(_row, runs.get(name, ()))


def _name(line: str) -> str | None:
    row = _ROW.match(line)
    return None if row is None else row[1]


def _row(setting: Setting) -> str:
    return f"| `{setting.name}` | {setting.default} | {setting.takes} | {setting.description} |"


if __name__ == "__main__":
    main()
