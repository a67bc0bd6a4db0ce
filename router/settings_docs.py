"""Writes the rows of `docs/settings.md`, whose headings and prose are written by hand.

    python -m router.settings_docs docs/settings.md

A row belongs to a table that begins with `| setting |`; other tables are left alone.

A row stays where it is; that of a new setting is put behind that of the setting before it. So the tables
together hold every setting once, in the order of `Settings`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from router.settings import Setting, described

__all__ = ["main", "rewritten"]

_HEAD = "| setting |"
_ROW = re.compile(r"\| `(\w+)` \|")


def rewritten(text: str, settings: Sequence[Setting] = described()) -> str:
    """The page `text` with the rows that `settings` have now."""
    placed = {name for _, name in _named(text) if name}
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
    for line, name in _named(text):
        if name is None:
            yield line
        else:
            yield from map(_row, runs.get(name, ()))


def _named(text: str) -> Iterator[tuple[str, str | None]]:
    """Each line, with the setting's name if it is the row of one."""
    inside = False
    for line in text.splitlines():
        inside = line.startswith("|") and (inside or line.startswith(_HEAD))
        row = _ROW.match(line) if inside else None
        yield line, None if row is None else row[1]


def _row(setting: Setting) -> str:
    return f"| `{setting.name}` | {setting.default} | {setting.takes} | {setting.description} |"


if __name__ == "__main__":
    main()
