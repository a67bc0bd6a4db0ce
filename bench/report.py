"""Runs as Markdown: targets first, met or not, then tables, then circumstances.

What a figure cannot say, such as why a target is missed, is written by hand into NAME.remarks.md beside
NAME.json, and stands in that scenario's section where results are put together.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from bench.environment import Environment
from bench.errors import BenchError
from bench.results import Metric, Run, load_run

__all__ = ["collected", "figure", "load_runs", "markdown", "table"]

_TARGET_COLUMNS = ["", "measured", "rounds", "target", ""]
# What a reader wants first; the rest follows by name.
_FIRST = ("overhead", "peers", "concurrency", "scaling")


def markdown(run: Run) -> str:
    return "\n\n".join([f"# pgscatter bench {run.scenario}", *_sections(run)]) + "\n"


def _sections(run: Run, *, level: int = 2, plots: bool = True) -> list[str]:
    """Everything below the title, with headings of that level; the plots lie beside the text."""
    outcome, head = run.outcome, "#" * level
    parts = [_circumstances(run)]
    if run.command:
        parts.append(f"```sh\n{run.command}\n```")
    if outcome.failures:
        parts += [f"{head} Failures", "\n".join(f"- {failure}" for failure in outcome.failures)]
    targets = [metric for metric in outcome.metrics if metric.target is not None]
    if targets:
        parts += [f"{head} Targets", table(_TARGET_COLUMNS, map(_target_row, targets))]
    for one in outcome.tables:
        rows = ([_cell(cell) for cell in row] for row in one.rows)
        parts += [f"{head} {one.title}", table(one.columns, rows)]
    if plots:
        parts += [f"![{plot.title}]({run.scenario}-{plot.name}.png)" for plot in outcome.plots]
    if outcome.notes:
        parts += [f"{head} Notes", "\n".join(f"- {note}" for note in outcome.notes)]
    settings = ([name, value] for name, value in run.settings.items())
    packages = ", ".join(f"{name} {number}" for name, number in run.environment.packages.items())
    parts += [f"{head} Settings", table(["setting", "value"], settings), packages]
    return [*parts, *_systems(run.environment)]


def _systems(machine: Environment) -> list[str]:
    """Servers and routers, as they were set."""
    servers = ", ".join(f"{name} {value}" for name, value in machine.servers.items())
    router = ", ".join(f"{name} {value}" for name, value in machine.router.items())
    flags = "; ".join(f"`{flags}`" if flags else "no flags" for flags in machine.flags)
    parts = [("Servers: ", servers), ("Router: ", router), ("Routers ran with: ", flags)]
    return [what + text for what, text in parts if text]


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


def figure(value: float | None, unit: str = "") -> str:
    """Three digits are what a bench can tell."""
    if value is None:
        return "not measured"
    text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    if unit in ("", "x", "%"):
        return text + unit
    return f"{text} {unit}"


def _target_row(metric: Metric) -> list[str]:
    """Under `_TARGET_COLUMNS`."""
    relation = ">=" if metric.better == "higher" else "<="
    verdict = {True: "met", False: "**not met**", None: "not measured"}[metric.met]
    spread = "" if metric.low is None else f"{figure(metric.low)} to {figure(metric.high)}"
    # A range is part of a target, so it is written out, as many digits as it has.
    target = f"{relation} {metric.target:g}{metric.unit if metric.unit in 'x%' else ' ' + metric.unit}"
    named = f"{metric.name} ({metric.note})" if metric.note else metric.name
    return [named, figure(metric.value, metric.unit), spread, target, verdict]


def _circumstances(run: Run) -> str:
    machine = run.environment
    parts = [
        f"{run.dataset}, {run.rows:,} x {run.dimensions}" if run.rows else run.dataset,
        f"{run.began}, {run.seconds:.0f} s",
        f"{machine.processor}, {machine.cores} cores, {machine.memory_bytes / 2**30:.0f} GiB",
        f"{machine.system}, Python {machine.python}, commit {machine.commit or 'unknown'}",
        f"load {machine.load:.2f} at the start",
    ]
    return "; ".join(parts)


def _cell(cell: str | float | None) -> str:
    return cell if isinstance(cell, str) else figure(cell)


def load_runs(folder: Path) -> list[Run]:
    """The latest result of each scenario, as they lie in `folder`.

    Raises:
        BenchError: there are none, or one of them is no result.
    """
    runs = [load_run(path) for path in sorted(folder.glob("*.json"))]
    if not runs:
        raise BenchError(f"{folder} has no results of pgscatter bench (NAME.json)")
    order = {name: i for i, name in enumerate(_FIRST)}
    return sorted(runs, key=lambda run: (order.get(run.scenario, len(order)), run.scenario))


def collected(runs: list[Run], folder: Path, *, plots: bool) -> str:
    """`folder` has the remarks; with `plots`, the text will lie beside the plots and shows them."""
    parts = ["# Results of pgscatter bench", _INTRODUCTION]
    rows = [
        [run.scenario, *_target_row(metric)]
        for run in runs
        for metric in run.outcome.metrics
        if metric.target is not None
    ]
    if rows:
        parts += ["## Targets", table(["scenario", *_TARGET_COLUMNS], rows)]
    for run in runs:
        parts += [f"## {run.scenario}", *_sections(run, level=3, plots=plots)]
        remarks = folder / f"{run.scenario}.remarks.md"
        if remarks.is_file():
            parts += ["### Remarks", remarks.read_text().strip()]
    return "\n\n".join(parts) + "\n"


_INTRODUCTION = (
    "Written by `pgscatter bench collect` from the results of the runs named below; each section has the"
    " command that made it, the machine and the time. Compare figures within a section: the machine, and"
    " what else it did, may differ between two."
)
