"""Which changes of state are said, and when: a pure decision under an injected clock.

Invariant: each subject (a node's state, a shard's primary, Redis) is said at most once in a second, all
subjects together at most `most` times, and what was left out is said afterwards with the number of changes
in between. So the last line of a subject tells how it stands, and a flapping one floods nobody.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal, NamedTuple

import msgspec

__all__ = ["Changes", "Line", "Subject", "View"]

_EVERY = 1.0
# In a second, of one process: the first of many nodes that go at once show what happens.
_MOST = 100


class Subject(NamedTuple):
    """What changes: `event` names the line, `shard` and `node` say whose it is, if it is one's."""

    event: str
    shard: str | None = None
    node: str | None = None


class View(NamedTuple):
    """How a subject stands; a change is one of `state` alone.

    `cause` is a word out of few, `reason` a sentence. `bad` says that somebody may have to do something.
    """

    state: str | None
    reason: str | None = None
    cause: str | None = None
    bad: bool = False


class Line(msgspec.Struct, frozen=True):
    level: Literal["info", "warning"]
    event: str
    fields: dict[str, str | int | None]


class Changes:
    """What was said last of each subject, and what is still to be said."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, most: int = _MOST) -> None:
        self._clock = clock
        self._most = most
        self._said: dict[Subject, View] = {}
        self._now: dict[Subject, View] = {}
        self._next: dict[Subject, float] = {}  # when a subject may be said again
        self._held: dict[Subject, int] = {}  # changes since the last line, of those that wait for their turn
        self._second = float("-inf")
        self._lines = 0  # since then

    def __repr__(self) -> str:
        return f"<Changes of {len(self._now)} subjects, {len(self._held)} held>"

    @property
    def held(self) -> bool:
        """Whether `due` is to be called again within a second."""
        return bool(self._held)

    def note(self, subject: Subject, view: View) -> list[Line]:
        """What is to be said of it now; the first view of a subject is said only if it is bad."""
        before = self._now.get(subject)
        self._now[subject] = view
        if before is None:
            if not view.bad:
                self._said[subject] = view
                return []
            self._said[subject] = View(None)
        elif before.state == view.state:
            return []
        self._held[subject] = self._held.get(subject, 0) + 1
        return self._say(subject)

    def due(self) -> list[Line]:
        """What has waited long enough."""
        return [line for subject in list(self._held) for line in self._say(subject)]

    def _say(self, subject: Subject) -> list[Line]:
        now = self._clock()
        if now < self._next.get(subject, now) or not self._has_room(now):
            return []
        self._next[subject] = now + _EVERY
        before, view, changes = self._said[subject], self._now[subject], self._held.pop(subject)
        self._said[subject] = view
        return [_line(subject, before, view, changes)]

    def _has_room(self, now: float) -> bool:
        if now >= self._second + _EVERY:
            self._second, self._lines = now, 0
        self._lines += 1
        return self._lines <= self._most


def _line(subject: Subject, before: View, view: View, changes: int) -> Line:
    fields: dict[str, str | int | None] = {}
    if subject.shard is not None:
        fields["shard"] = subject.shard
    if subject.node is not None:
        fields["node"] = subject.node
    fields |= {"from": before.state, "to": view.state}
    if view.cause is not None:
        fields["cause"] = view.cause
    if view.reason is not None:
        fields["reason"] = view.reason
    if changes > 1:
        fields["changes"] = changes
    # One that is back where it was has been elsewhere meanwhile.
    bad = view.bad or before.state == view.state
    return Line("warning" if bad else "info", subject.event, fields)
