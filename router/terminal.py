"""How far a command has come: a live bar on a terminal, a line now and then elsewhere.

Everything goes to standard error, so that standard output holds results alone.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

__all__ = ["Display", "Meter"]

# The first line comes after this time, and each later one after half as long again as the one before.
_FIRST_LINE = 5.0
_LINE_FACTOR = 1.5
_LONGEST_PAUSE = 60.0


class Display:
    """Shows meters while it is entered; `say` writes a line above them."""

    def __init__(self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._clock = clock
        self._live: Progress | None = None
        if self._stream.isatty():
            self._live = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[shown]}"),
                TimeRemainingColumn(),
                console=Console(file=self._stream),
            )

    def __repr__(self) -> str:
        return f"<Display {'live' if self._live else 'plain'}>"

    def __enter__(self) -> Display:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def meter(self, what: str, total: int, unit: str) -> Meter:
        """Something that goes from 0 to `total`; `unit` names what `count` counts."""
        return Meter(self, what, total, unit, self._clock)

    def say(self, text: str) -> None:
        if self._live is not None:
            self._live.console.print(text, markup=False, highlight=False)
        else:
            self._stream.write(f"{text}\n")
            self._stream.flush()

    @property
    def live(self) -> Progress | None:
        return self._live


class Meter:
    """One bar, or one series of lines. Counting starts with the first `add` or `reach`."""

    def __init__(
        self, display: Display, what: str, total: int, unit: str, clock: Callable[[], float]
    ) -> None:
        self._display = display
        self._what = what
        self._total = max(total, 1)
        self._unit = unit
        self._clock = clock
        self._started = self._said = clock()
        self._pause = _FIRST_LINE
        self._skipped = 0
        self._done = 0
        self._count = 0
        self._task: TaskID | None = None
        if display.live is not None:
            self._task = display.live.add_task(what, total=self._total, shown="")

    def __repr__(self) -> str:
        return f"<Meter {self.line()}>"

    def __enter__(self) -> Meter:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def skip(self, done: int) -> None:
        """`done` of the total needs no work, and says nothing about speed."""
        self._skipped += done
        self.add(0, done)

    def add(self, count: int, done: int | None = None) -> None:
        """`count` more units; `done` more of the total, where that is measured otherwise."""
        self._count += count
        self._done += count if done is None else done
        self._show()

    def reach(self, count: int) -> None:
        """`count` units in all, which are of the total too."""
        self.add(max(0, count - self._count))

    def remain(self, left: int) -> None:
        """`left` units to go; the most that ever were is the total."""
        self._total = max(self._total, left)
        self._count = self._done = self._total - left
        self._show()

    def end(self) -> None:
        """Take the bar away."""
        if self._display.live is not None and self._task is not None:
            self._display.live.remove_task(self._task)

    def line(self) -> str:
        elapsed = max(self._clock() - self._started, 1e-6)
        speed = self._count / elapsed
        share = min(1.0, self._done / self._total)
        text = f"{self._what}: {share:.0%}, {self._count:,} {self._unit}, {speed:,.0f} {self._unit}/s"
        worked = self._done - self._skipped
        if worked > 0 and share < 1:
            text += f", {(self._total - self._done) * elapsed / worked:,.0f} s left"
        return text

    def _show(self) -> None:
        if self._display.live is not None and self._task is not None:
            elapsed = max(self._clock() - self._started, 1e-6)
            shown = f"{self._count:,} {self._unit}, {self._count / elapsed:,.0f}/s"
            self._display.live.update(self._task, total=self._total, completed=self._done, shown=shown)
        elif self._clock() - self._said >= self._pause:
            self._said = self._clock()
            self._pause = min(self._pause * _LINE_FACTOR, _LONGEST_PAUSE)
            self._display.say(self.line())
