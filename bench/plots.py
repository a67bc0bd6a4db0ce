"""Figures of a run as PNG files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.errors import BenchError
from bench.results import Figure, Run, Timeline

__all__ = ["draw"]

_INCHES = (8, 5)
_DPI = 120


def draw(run: Run, folder: Path) -> list[Path]:
    """One file per figure, named after scenario and figure.

    Raises:
        BenchError: matplotlib is missing.
    """
    drawn = []
    for wanted in run.outcome.plots:
        plot, title = _empty(), f"{wanted.title}\n{run.dataset}"
        if isinstance(wanted, Figure):
            _draw_curves(wanted, plot.add_subplot(), title)
        else:
            _draw_timeline(wanted, plot.subplots(3, 1, sharex=True, height_ratios=(3, 1.5, 1)), title)
        drawn.append(folder / f"{run.scenario}-{wanted.name}.png")
        plot.savefig(drawn[-1])
    return drawn


def _draw_curves(wanted: Figure, axes: Any, title: str) -> None:
    for series in wanted.series:
        x, y, low, high = ([point[i] for point in series.points] for i in range(4))
        (line,) = axes.plot(x, y, marker="o", label=series.name)
        axes.fill_between(x, low, high, alpha=0.2, color=line.get_color())
    if wanted.log_x:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter("{x:g}")
    if wanted.log_y:
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0 if not wanted.name.startswith("recall") else None)
    axes.set(title=title, xlabel=wanted.x, ylabel=wanted.y)
    axes.grid(alpha=0.3)
    axes.legend()


def _draw_timeline(wanted: Timeline, places: Any, title: str) -> None:
    """Latency, completeness and nodes' states above one another, over the same time."""
    latency, complete, nodes = places
    at, p50, p99, answered, full = zip(*wanted.points, strict=True)
    for name, seconds in (("p50", p50), ("p99", p99)):
        latency.plot(at, [1e3 * value for value in seconds], marker=".", label=name)
    latency.set(ylabel="ms", yscale="log", title=title)
    complete.plot(at, [100 * value for value in answered], label="answered")
    complete.plot(at, [100 * value for value in full], linestyle="--", label="with all shards")
    complete.set(ylabel="% of searches", ylim=(-5, 105))
    levels = ("unknown", "down", "foreign", "deposed", "ejected", "up")
    for name, known in wanted.states.items():
        nodes.step(
            [when for when, _ in known], [levels.index(state) for _, state in known], where="post", label=name
        )
    nodes.set(xlabel="s", yticks=range(len(levels)), yticklabels=levels, ylim=(-0.5, len(levels) - 0.5))
    for axes in places:
        for when, _ in wanted.marks:
            axes.axvline(when, color="grey", linestyle=":")
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[1]:
            axes.legend(loc="upper right")
    for when, word in wanted.marks:
        latency.annotate(word, (when, 1), xycoords=("data", "axes fraction"), va="top", fontsize="small")


def _empty() -> Any:
    """A figure to draw on."""
    try:
        # Not pyplot: it keeps every figure, and may want a display.
        from matplotlib.figure import Figure as Plot
    except ImportError as exc:
        raise BenchError("plots need matplotlib: pip install 'pgscatter[bench]'") from exc
    return Plot(figsize=_INCHES, dpi=_DPI, layout="constrained")
