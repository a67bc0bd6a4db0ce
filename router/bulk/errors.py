"""Why a load stops.

LoadError          `lines`, each naming what is wrong and where
├── SourceError    the file cannot be read, or does not fit the collection
├── RowsError      rows of it are bad, more than were to be skipped
├── EmbeddingError the model's service fails, and has for too long
└── ShardError     a shard failed, or has rows of these ids already
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["EmbeddingError", "LoadError", "RowsError", "ShardError", "SourceError"]


class LoadError(Exception):
    """`begun`: rows may have been stored, and loading again goes on from there."""

    def __init__(self, *lines: str) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines
        self.begun = False

    @classmethod
    def of(cls, errors: Iterable[BaseException]) -> LoadError:
        """One error with the lines of many."""
        return cls(
            *dict.fromkeys(line for error in errors for line in getattr(error, "lines", (str(error),)))
        )


class SourceError(LoadError):
    pass


class RowsError(LoadError):
    pass


class EmbeddingError(LoadError):
    pass


class ShardError(LoadError):
    pass
