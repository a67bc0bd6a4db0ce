"""What a run of a scenario found, and everything needed to judge it; kept as JSON.

A metric has a name that stays the same from run to run, so that two runs can be compared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar

import msgspec

from bench.environment import Environment
from bench.errors import BenchError
from bench.interleave import Spread
from bench.sample import Sample

__all__ = [
    *("Better", "Cell", "Figure", "Metric", "Outcome", "Run", "Series", "Table", "Timeline"),
    *("load_run", "save_run"),
]

T = TypeVar("T")

_FORMAT = 1
Better = Literal["higher", "lower"]
Cell: TypeAlias = str | float | None


class Metric(msgspec.Struct, frozen=True, kw_only=True):
    """One figure; `value` None means that it could not be measured, and `note` says why.

    Attributes:
        better: which way is up; a target is reached from there.
        low, high: the least and greatest of the rounds.
    """

    name: str
    value: float | None
    unit: str = ""
    better: Better = "higher"
    low: float | None = None
    high: float | None = None
    target: float | None = None
    note: str = ""

    @classmethod
    def of(
        cls,
        name: str,
        found: Spread | float | None,
        unit: str = "",
        better: Better = "higher",
        target: float | None = None,
        note: str = "",
    ) -> Metric:
        """From one figure, or the spread over rounds; None is not measured."""
        low, value, high = (
            (found.low, found.median, found.high) if isinstance(found, Spread) else (None, found, None)
        )
        return cls(
            name=name, value=value, unit=unit, better=better, low=low, high=high, target=target, note=note
        )

    @property
    def met(self) -> bool | None:
        """Whether the target is reached; None without a target or a value."""
        if self.target is None or self.value is None:
            return None
        return self.value >= self.target if self.better == "higher" else self.value <= self.target


class Table(msgspec.Struct, frozen=True):
    title: str
    columns: list[str]
    rows: list[list[Cell]]

    @classmethod
    def of(cls, title: str, columns: Mapping[str, Callable[[T], Cell]], items: Iterable[T]) -> Table:
        """A row per item; `columns` says how to read each cell."""
        rows = [[read(item) for read in columns.values()] for item in items]
        return cls(title, list(columns), rows)


class Series(msgspec.Struct, frozen=True):
    """Points as (x, y), and the least and greatest y of the rounds."""

    name: str
    points: list[tuple[float, float, float, float]]

    @classmethod
    def of(cls, name: str, found: Mapping[Any, Spread]) -> Series:
        """By x."""
        return cls(name, [(float(x), one.median, one.low, one.high) for x, one in found.items()])


class Figure(msgspec.Struct, frozen=True):
    """A plot; `name` is its file's."""

    name: str
    title: str
    x: str
    y: str
    series: list[Series]
    log_x: bool = False
    log_y: bool = False


class Timeline(msgspec.Struct, frozen=True):
    """What happened to searches over time, and to nodes: a plot, `name` being its file's.

    Attributes:
        points: (seconds, p50 and p99 in seconds, share answered, share of full answers).
        states: of the nodes that were not always up.
        marks: moments with a word.
    """

    name: str
    title: str
    points: list[tuple[float, float, float, float, float]]
    states: dict[str, list[tuple[float, str]]]
    marks: list[tuple[float, str]]


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What a scenario returns; `samples` are its measurements by variant, a round each.

    `failures` are what makes the run fail: not what is slow, but what is wrong.
    """

    metrics: list[Metric] = []
    tables: list[Table] = []
    figures: list[Figure] = []
    timelines: list[Timeline] = []
    notes: list[str] = []
    samples: dict[str, list[Sample]] = {}
    failures: list[str] = []

    @property
    def plots(self) -> list[Figure | Timeline]:
        return [*self.figures, *self.timelines]


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """An outcome with its circumstances; `began` is ISO 8601 in UTC, `command` made it."""

    format: int = _FORMAT
    scenario: str
    began: str
    seconds: float
    dataset: str
    rows: int
    dimensions: int
    settings: dict[str, str]
    environment: Environment
    outcome: Outcome
    command: str = ""


def save_run(run: Run, path: Path) -> None:
    path.write_bytes(msgspec.json.format(msgspec.json.encode(run)))


def load_run(path: Path) -> Run:
    """
    Raises:
        BenchError: no such file, or no run.
    """
    try:
        run = msgspec.json.decode(path.read_bytes(), type=Run)
    except OSError as exc:
        raise BenchError(f"{path}: {exc.strerror}") from exc
    except msgspec.DecodeError as exc:
        raise BenchError(f"{path} is no result of pgscatter bench: {exc}") from exc
    if run.format != _FORMAT:
        raise BenchError(f"{path} has format {run.format}, this pgscatter reads {_FORMAT}")
    return run
