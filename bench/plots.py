"""Figures of a run as PNG files."""

from __future__ import annotations

from pathlib import Path

from bench.errors import BenchError
from bench.results import Figure, Run

__all__ = ["draw"]

_INCHES = (8, 5)
_DPI = 120


def draw(run: Run, folder: Path) -> list[Path]:
    """One file per figure, named after scenario and figure.

    Raises:
        BenchError: matplotlib is missing.
    """
    return [_draw(one, run, folder / f"{run.scenario}-{one.name}.png") for one in run.outcome.figures]


def _draw(wanted: Figure, run: Run, path: Path) -> Path:
    try:
        # Not pyplot: it keeps every figure, and may want a display.
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure as Plot
    except ImportError as exc:
        raise BenchError("plots need matplotlib: pip install 'pgscatter[bench]'") from exc
    plot = Plot(figsize=_INCHES, dpi=_DPI, layout="constrained")
    canvas = FigureCanvasAgg(plot)
    axes = plot.add_subplot()
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
    axes.set(title=f"{wanted.title}\n{run.dataset}", xlabel=wanted.x, ylabel=wanted.y)
    axes.grid(alpha=0.3)
    axes.legend()
    canvas.print_figure(str(path), format="png")
    return path
