"""The body of a patch becomes a checked `Patch`, or one error that names all that is wrong with it.

Invariants: what PostgreSQL is sent it stores without an error about its values, as of whole documents; what
identifies and places a document, and its vector, stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import msgspec

from router.decode.body import decode_object
from router.decode.document import CONTENT, checked
from router.decode.metadata import checked_text, checked_value
from router.query.errors import InvalidError, Problem, invalid
from router.query.patch import Patch, changes_of
from shard_config import metadata_path
from shard_config.model import Collection, Column

__all__ = ["patch_of"]

_SHOWN = 200
_METADATA = "metadata"
_NULL = b"null"


def patch_of(
    set_: Mapping[str, msgspec.Raw], unset: Sequence[str], collection: Collection, most: int
) -> Patch:
    """The patch that sets the fields `set_` to JSON values and takes the fields `unset` away.

    Raises:
        InvalidError: with every problem found, each with its place in the request.
    """
    if len(set_) + len(unset) > most:
        raise InvalidError.at("", _too_many(most))
    reader = _Reader(collection, most)
    for name, raw in set_.items():
        reader.attempt(reader.set, name, raw, f"set.{name[:_SHOWN]}")
    for i, name in enumerate(unset):
        reader.attempt(reader.unset, name, f"unset[{i}]")
    if not set_ and not unset:
        reader.problems.append(Problem("", "a patch sets or unsets at least one field"))
    if reader.steps > most:
        reader.problems.append(Problem("", _too_many(most)))
    if reader.problems:
        raise invalid(reader.problems)
    return reader.patch()


class _Reader:
    """One patch; collects what it does, and what is wrong with it."""

    def __init__(self, collection: Collection, most: int) -> None:
        self.problems: list[Problem] = []
        self._collection = collection
        self._most = most
        self.steps = 0  # of all paths
        self._places: dict[tuple[str, ...], str] = {}  # of each field, as the steps of its path
        self._around: dict[tuple[str, ...], str] = {}  # of what lies around a field, where that field is
        self._values: dict[str, object] = {}
        self._unset: list[str] = []
        self._members: list[tuple[tuple[str, ...], str]] = []
        self._removed: list[tuple[str, ...]] = []

    def attempt(self, change: Callable[..., None], *args: object) -> None:
        try:
            change(*args)
        except InvalidError as exc:
            self.problems.extend(exc.problems)

    def patch(self) -> Patch:
        return Patch(self._values, tuple(self._unset), changes_of(self._members, self._removed))

    def set(self, name: str, raw: msgspec.Raw, place: str) -> None:
        found = self._field(name, place)
        self._claim(name if isinstance(found, Column) else _METADATA, found, place)
        data = bytes(raw)
        if isinstance(found, Column):
            value = decode_object(b'{"":' + data + b"}", place, exact=True)[""]
            self._values[found.column] = None if value is None else checked(found, value, place)
        elif found:
            self._members.append((found, checked_value(data, place, len(found) + 1)))
        else:
            text = None if data.strip() == _NULL else checked_text(data, place)
            self._values[str(self._collection.metadata)] = text

    def unset(self, name: str, place: str) -> None:
        found = self._field(name, place)
        self._claim(name if isinstance(found, Column) else _METADATA, found, place)
        if isinstance(found, Column):
            self._unset.append(found.column)
        elif found:
            self._removed.append(found)
        else:
            self._unset.append(str(self._collection.metadata))

    def _claim(self, first: str, found: Column | tuple[str, ...], place: str) -> None:
        """See that no other field is the same, or within this one, or around it."""
        steps = (first,) if isinstance(found, Column) else (first, *found)
        self.steps += len(steps)
        around = [steps[:end] for end in range(1, len(steps))]
        for known in (*around, steps):
            if (other := self._places.get(known)) is not None:
                raise InvalidError.at(place, f"{other} changes it as well; a patch changes a field once")
        if (other := self._around.get(steps)) is not None:
            raise InvalidError.at(place, f"{other} is within it; a patch changes a field once")
        self._places[steps] = place
        for known in around:
            self._around.setdefault(known, place)

    def _field(self, name: str, place: str) -> Column | tuple[str, ...]:
        """The column, or the steps of a path into the metadata, of which there are none for the whole.

        Raises:
            InvalidError: there is no such field, or it is none that a patch may change.
        """
        collection = self._collection
        key = collection.sharding.key.name
        if name == "id":
            raise InvalidError.at(place, "the id stays: store the document under another one, and delete it")
        if name == key:
            why = "the sharding key stays, which says where the document lives"
            raise InvalidError.at(place, f"{why}: delete it, and store it anew")
        if name in collection.columns:
            return collection.columns[name]
        if name == "vector":
            raise InvalidError.at(place, "a patch changes no vector: store the document with its new one")
        if name == "content" and collection.content is not None:
            return Column("content", collection.content, CONTENT.type)
        if collection.metadata is not None:
            if name == _METADATA:
                return ()
            if name.startswith(f"{_METADATA}."):
                try:
                    return metadata_path.steps(name.removeprefix(f"{_METADATA}."))
                except ValueError as exc:
                    raise InvalidError.at(place, str(exc)) from exc
        known = [name for name in collection.columns if name != key]
        known += ["content"] if collection.content is not None else []
        known += ["metadata", "metadata.<path>"] if collection.metadata is not None else []
        fields = f"what a patch of {collection.name} can change is {', '.join(known) or 'nothing'}"
        raise InvalidError.at(place, f"unknown field {name[:80]!r}; {fields}")


def _too_many(most: int) -> str:
    return f"more than {most} fields in one patch (--max-patch-fields), each step of a path counted as one"
