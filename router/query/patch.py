"""Partial changes of documents, as one frozen value. Pure.

Invariant: no field of a patch lies within another one of it, so that the order of changes does not matter.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

__all__ = ["Changes", "Patch", "changes_of"]


class Changes(msgspec.Struct, frozen=True):
    """What becomes of the members of a JSON object; those that are not named stay as they are.

    Attributes:
        members: the JSON text of each that is set.
        removed: those that are to be gone.
        within: what is changed within members that are objects themselves. One that is missing or null is
            made an object if anything is set within it.
    """

    members: dict[str, str] = {}
    removed: tuple[str, ...] = ()
    within: dict[str, Changes] = {}

    @property
    def sets(self) -> bool:
        """Whether anything is set, and not only removed."""
        return bool(self.members) or any(inner.sets for inner in self.within.values())

    def removals(self) -> Iterator[tuple[str, ...]]:
        """Paths of all that is removed."""
        yield from ((name,) for name in self.removed)
        for name, inner in self.within.items():
            yield from ((name, *path) for path in inner.removals())


class Patch(msgspec.Struct, frozen=True):
    """Changes of one document, or of many.

    Attributes:
        values: by column of the table, what it is set to; None is NULL.
        unset: columns of the table that get what they have when a document leaves them out.
        metadata: what is changed within the metadata, if they are not set as a whole.
    """

    values: dict[str, object] = {}
    unset: tuple[str, ...] = ()
    metadata: Changes | None = None


def changes_of(
    members: Sequence[tuple[tuple[str, ...], str]], removed: Sequence[tuple[str, ...]]
) -> Changes | None:
    """The changes that set each path of `members` to its JSON text and remove each path of `removed`.

    None of the paths begins with another one.
    """
    if not members and not removed:
        return None
    inner: dict[str, tuple[list[tuple[tuple[str, ...], str]], list[tuple[str, ...]]]] = {}
    for path, value in members:
        if len(path) > 1:
            inner.setdefault(path[0], ([], []))[0].append((path[1:], value))
    for path in removed:
        if len(path) > 1:
            inner.setdefault(path[0], ([], []))[1].append(path[1:])
    within = {name: changes_of(*both) for name, both in inner.items()}
    return Changes(
        {path[0]: value for path, value in members if len(path) == 1},
        tuple(path[0] for path in removed if len(path) == 1),
        {name: changes for name, changes in within.items() if changes is not None},
    )
