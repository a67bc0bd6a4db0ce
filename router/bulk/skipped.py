"""Bad rows of a load: how many there are, how many may be, and the first few to show."""

from __future__ import annotations

from collections.abc import Sequence

from router.bulk.batch import Refused, Source
from router.bulk.errors import RowsError

__all__ = ["Skipped"]

# Bad rows that are named: at least so many, so that whoever mends a file sees what is wrong with it; and of
# those that may be left out at most so many.
_SHOWN, _MOST_SHOWN = 5, 1000


class Skipped:
    """Counts bad rows and stops the load at one too many; `rows` are the first of this run."""

    def __init__(self, source: Source, allowed: int, earlier: int) -> None:
        self.count = earlier
        self.rows: list[Refused] = []
        self._source = source
        self._allowed = allowed
        self._most = max(_SHOWN, min(allowed, _MOST_SHOWN))

    def __repr__(self) -> str:
        return f"<Skipped {self.count} of at most {self._allowed}>"

    @property
    def room(self) -> int:
        """How many more bad rows are worth looking for: one too many, and enough to show."""
        return max(self._allowed - self.count + 1, _SHOWN - len(self.rows), 1)

    def take(self, refused: Sequence[Refused]) -> None:
        """
        Raises:
            RowsError: more rows are bad than may be.
        """
        self.count += len(refused)
        self.rows += refused[: max(0, self._most - len(self.rows))]
        if self.count > self._allowed:
            lines = self._named()
            if self._allowed:
                lines.append(
                    f"{self._source.path}: {self.count} bad rows so far; {self._allowed} may be skipped"
                )
            raise RowsError(*lines)

    def lines(self) -> list[str]:
        """The bad rows that were left out, each with the reason."""
        lines = self._named()
        if unnamed := self.count - len(lines):
            some = f"{unnamed} bad rows more, of earlier runs or beyond the first {self._most}"
            lines.append(f"{self._source.path}: {some}")
        return lines

    def _named(self) -> list[str]:
        path = self._source.path
        return [f"{path}, {self._source.place(row.row)}: {row.reason}" for row in self.rows]
