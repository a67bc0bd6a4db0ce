"""A search's answer for people to read: hits, how complete they are, and what each shard did."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

__all__ = ["CommandAnswer", "show"]

# A terminal folds the table by itself; a pipe has no width, and 80 columns would cut off the content.
_PIPE_WIDTH = 120
_REASONS = {
    "exhausted": "nothing else matches",
    "no_words": "the text has no word to search for",
    "max_distance": "the rest is too far away",
    "scan_limit": "the index scan stopped early, and no time was left to read every row",
    "candidates": "lists were ranked as deep as they may be, and hold no more groups",
    "legs": "a ranked list is missing",
    "coverage": "shards are missing",
}
# What hits are ordered by, or were before the last step.
_MEASURES = ("rerank_score", "score", "distance")
_UNSETTLED = {
    "ties": "no time was left to find the lowest ids of equally near rows",
    "scan_limit": "the index scan stopped early, and no time was left to look for nearer rows",
}


# The part of an answer that is shown; a newer router may say more.
class _Counts(msgspec.Struct):
    total: int
    queried: int
    ok: int
    skipped: int


class _Failure(msgspec.Struct):
    shard: str
    state: str
    error: str


class _Coverage(msgspec.Struct):
    full: bool
    shards: _Counts
    failures: list[_Failure] = []
    stale: list[str] = []
    lost: list[str] = []


class _Short(msgspec.Struct):
    reason: str


class _Unsettled(msgspec.Struct):
    shard: str
    reason: str


class _Leg(msgspec.Struct):
    name: str
    error: str | None = None


class _Step(msgspec.Struct):
    done: bool
    reason: str | None = None


class _Explanation(msgspec.Struct):
    shards: list[dict[str, Any]]


class CommandAnswer(msgspec.Struct):
    hits: list[dict[str, Any]]
    took_ms: float
    cache: str
    coverage: _Coverage
    map_version: int
    short: _Short | None = None
    unsettled: list[_Unsettled] = []
    legs: list[_Leg] = []
    rerank: _Step | None = None
    diversity: _Step | None = None
    explain: _Explanation | None = None


def show(answer: CommandAnswer, include: Sequence[str], asked: int) -> None:
    """Print to standard output."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, _PIPE_WIDTH)
    if answer.hits:
        console.print(_hits(answer.hits, include, [leg.name for leg in answer.legs]))
    if answer.explain is not None:
        console.print(_explained(answer.explain.shards))
    console.print(_summary(answer, asked))
    for warning in _warnings(answer):
        console.print(Text(warning, style="bold red"))


def _hits(hits: Sequence[dict[str, Any]], include: Sequence[str], legs: Sequence[str]) -> Table:
    """`legs` are the lists that the hits were fused of: each hit says how far up it was in which."""
    measures = [name for name in _MEASURES if any(name in hit for hit in hits)]
    ranked = [name for name in legs if any(name in hit.get("ranks", {}) for hit in hits)]
    table = Table(box=None, pad_edge=False)
    # Columns that must not wrap keep their width; the others give way, the widest first.
    table.add_column("#", justify="right", no_wrap=True)
    table.add_column("id", no_wrap=True)
    for name in (
        *(_line(name.replace("_", " ")) for name in measures),
        *(f"in {_line(leg)}" for leg in ranked),
    ):
        table.add_column(Text(name), justify="right", no_wrap=True)
    table.add_column("shard", no_wrap=True)
    for name in include:
        table.add_column(Text(_line(name)))
    for rank, hit in enumerate(hits, 1):
        known = [_cell(hit["id"]), *(_measure(hit.get(name)) for name in measures)]
        known += [*(_cell(hit.get("ranks", {}).get(name)) for name in ranked), _cell(hit["shard"])]
        table.add_row(str(rank), *known, *(_cell(hit.get(name)) for name in include))
    return table


def _measure(value: float | None) -> Text:
    return _cell(None) if value is None else Text(f"{float(value):.4f}")


def _explained(reports: Sequence[dict[str, Any]]) -> Table:
    columns = ("shard", "state", "node", "role", "attempts", "hedged")
    times = ("queue_ms", "execute_ms", "total_ms")
    table = Table(box=None, pad_edge=False, title="on each shard:", title_justify="left", title_style="bold")
    for name in (*columns, *times, "asked", "returned", "kept"):
        justify: Literal["left", "right"] = "left" if name in columns[:4] else "right"
        table.add_column(name.replace("_", " "), justify=justify)
    for report in reports:
        table.add_row(
            *(_cell(report.get(name)) for name in columns),
            *(Text(f"{report.get(name, 0.0):.1f}") for name in times),
            *(_cell(report.get(name)) for name in ("asked", "returned", "kept")),
        )
    return table


def _summary(answer: CommandAnswer, asked: int) -> Text:
    counts = answer.coverage.shards
    count = len(answer.hits)
    hits = f"{count} hit{'' if count == 1 else 's'}"
    if answer.short is not None:
        reason = _REASONS.get(answer.short.reason, answer.short.reason)
        hits += f" of {asked} ({reason if answer.hits else reason.replace('nothing else', 'nothing')})"
    shards = f"{counts.ok} of {counts.total} shards"
    if counts.skipped:
        shards += f" ({counts.skipped} not needed)"
    cache = f"cache {answer.cache}"
    return Text(f"{hits} in {answer.took_ms:.1f} ms, {cache}, {shards}, map version {answer.map_version}")


def _warnings(answer: CommandAnswer) -> list[str]:
    """What a reader must not overlook."""
    coverage, warnings = answer.coverage, []
    if not coverage.full:
        missing = coverage.shards.queried - coverage.shards.ok
        warnings.append(f"INCOMPLETE: {missing} of {coverage.shards.queried} shards are missing")
        warnings += [_line(f"  {it.shard} {it.state}: {it.error}") for it in coverage.failures]
    for leg in answer.legs:
        if leg.error is not None:
            warnings.append(_line(f"MISSING: the list {leg.name}: {leg.error}"))
    if coverage.stale:
        warnings.append(f"OUT OF DATE: {', '.join(coverage.stale)} lag behind what was written")
    if coverage.lost:
        warnings.append(f"LOST: {', '.join(coverage.lost)} lack writes that were acknowledged")
    for step, done in ((answer.rerank, "RE-RANKED"), (answer.diversity, "DIVERSIFIED")):
        if step is not None and not step.done:
            warnings.append(_line(f"NOT {done}: {step.reason}"))
    for one in answer.unsettled:
        warnings.append(_line(f"UNSETTLED: {one.shard}: {_UNSETTLED.get(one.reason, one.reason)}"))
    return warnings


def _cell(value: Any) -> Text:
    """The first line of a text, anything else as JSON."""
    match value:
        case None:
            return Text("-", style="dim")
        case str():
            return _one_line(value.lstrip().partition("\n")[0])
        case _:
            return _one_line(json.dumps(value, ensure_ascii=False))


def _one_line(text: str) -> Text:
    return Text(_line(text), no_wrap=True, overflow="ellipsis")


def _line(text: str) -> str:
    """Without control characters, which could make the terminal show something else."""
    return "".join(c if c.isprintable() else " " for c in text)
