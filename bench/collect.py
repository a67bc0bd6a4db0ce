"""The results of a folder as one Markdown text: all targets first, met or short, then every scenario.

What a figure cannot say, such as why a target is missed, is written by hand into NAME.remarks.md beside
NAME.json, and stands in that scenario's section.
"""

from __future__ import annotations

from pathlib import Path

from bench import report
from bench.errors import BenchError
from bench.results import Run, load_run

__all__ = ["collected", "load_runs"]

# What a reader wants first; the rest follows by name.
_FIRST = ("overhead", "peers", "concurrency", "scaling")


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
        [run.scenario, *report.target_row(metric)]
        for run in runs
        for metric in run.outcome.metrics
        if metric.target is not None
    ]
    if rows:
        parts += ["## Targets", report.table(["scenario", *report.TARGET_COLUMNS], rows)]
    for run in runs:
        parts += [f"## {run.scenario}", *report.sections(run, level=3, plots=plots)]
        remarks = folder / f"{run.scenario}.remarks.md"
        if remarks.is_file():
            parts += ["### Remarks", remarks.read_text().strip()]
    return "\n\n".join(parts) + "\n"


_INTRODUCTION = (
    "Written by `pgscatter bench collect` from the results of the runs named below; each section has the"
    " command that made it, the machine and the time. Compare figures within a section: the machine, and"
    " what else it did, may differ between two."
)
