"""Batches of searches: which are taken on, and how many of a batch's searches are on their way at once. Pure.

A batch is admitted or refused as a whole, before its first statement. Once it is admitted, none of its
searches is refused for the length of a queue: they go at the pace of the nodes, a few at a time, so that each
waits little when its turn has come and single searches pass between.

Invariants: the searches of all batches that are on their way are at most `most`, but for one of each batch;
what the admitted batches are expected to take is never more than the longest that one may take.
"""

from __future__ import annotations

from collections.abc import Hashable
from types import TracebackType
from typing import Self

from router.query.errors import OverloadedError

__all__ = ["AdmittedBatch", "Batches"]

# Seconds that a search of a batch should take at most, its wait included, and of the time that the collection
# gives a search: the rest is for single searches, which take half of the node where there are some, and for
# searches that are slower than others.
_TARGET_SECONDS, _TARGET_SHARE = 0.25, 0.125
# Searches on their way. With one, each node would rest until the slowest has answered; where nothing is known
# of their cost, as many as keep within a usual time limit if each takes a tenth of a second; at most, enough
# to fill some statements of each node.
_LEAST, _FIRST, _MOST = 2, 4, 64
# Times as many at once as the remaining time asks for.
_SLACK = 1.5
# Seconds by which a turn may be earlier than the search that has it.
_MOST_CREDIT = 1.0


class Batches:
    """Those that a router has taken on; `most` of their searches wait for a node at the same time."""

    def __init__(self, most: int) -> None:
        self._most = max(most, 1)
        self._admitted: set[AdmittedBatch] = set()

    def __repr__(self) -> str:
        return f"<Batches {len(self._admitted)} admitted, {self.seconds:.1f} s left>"

    @property
    def seconds(self) -> float:
        """That the nodes are expected to be busy with what is left of all batches."""
        return sum([batch.seconds for batch in self._admitted])

    @property
    def share(self) -> int:
        """Searches that each batch may have on their way."""
        return max(self._most // max(len(self._admitted), 1), 1)

    def admit(
        self, searches: int, *, ahead: float, each: float, available: float, timeout: float
    ) -> AdmittedBatch:
        """Take a batch on; the caller leaves the returned context when it is done.

        Args:
            ahead: seconds of work that wait in front of the slowest shard.
            each: seconds that a search of the batch is expected to take there; 0 if that is not known.
            available: seconds that the batch may take.
            timeout: seconds that the collection gives a search.

        Raises:
            OverloadedError: it would not be done in time, or there are too many batches.
        """
        before = ahead + self.seconds
        if len(self._admitted) >= self._most:
            raise OverloadedError(f"{len(self._admitted)} batches are under way already", max(before, 1.0))
        if before + searches * each > available:
            raise OverloadedError(
                f"the batch's {searches} searches would take about {searches * each:.0f} s, after"
                f" {before:.0f} s for what was here before; {available:.0f} s are allowed",
                # Alone it may be too long as well; by then, more may be known.
                retry_after=max(before, 1.0),
            )
        batch = AdmittedBatch(self, searches, each, min(_TARGET_SECONDS, _TARGET_SHARE * timeout))
        self._admitted.add(batch)
        return batch

    def _ended(self, batch: AdmittedBatch) -> None:
        self._admitted.discard(batch)


class AdmittedBatch:
    """One batch, as the caller that its searches have in common; it knows how many may be on their way.

    Additive increase and multiplicative decrease of what is on its way, by how long an answer takes: where
    answers take longer than `target` seconds, one more search would only wait longer.
    """

    def __init__(self, batches: Batches, searches: int, each: float, target: float) -> None:
        self._batches = batches
        self._left = searches
        self._each = each
        self._target = target
        self._size = float(min(max(target / each, _LEAST), _MOST)) if each else float(_FIRST)
        self._grows = True  # with every answer, until one took too long
        self._settling = 0  # answers to searches that were sent under a former size
        self._turns: dict[Hashable, float] = {}

    def __repr__(self) -> str:
        return f"<AdmittedBatch {self._left} left, {self.size} at once>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._batches._ended(self)

    @property
    def size(self) -> int:
        """Searches that may be on their way."""
        return min(int(self._size), self._batches.share)

    @property
    def seconds(self) -> float:
        """That the nodes are expected to be busy with the rest."""
        return self._left * self._each

    def turn(self, node: Hashable, latest: float, spacing: float) -> float:
        """The turn of its next search with `node`: one spacing after its last, and no later than `latest`."""
        # All batches together leave half of a node to single searches.
        spacing *= max(len(self._batches._admitted), 1)
        turn = max(min(latest, self._turns.get(node, latest) + spacing), latest - _MOST_CREDIT)
        self._turns[node] = turn
        return turn

    def answered(self, seconds: float, remaining: float) -> None:
        """One of its searches has ended, `seconds` after it was sent; the batch has `remaining` left."""
        self._left -= 1
        if self._settling > 0:
            self._settling -= 1
        elif seconds > self._target:
            self._grows = False
            self._settling = int(self._size)
            self._size = max(self._size * max(self._target / seconds, 0.5), _LEAST)
        else:
            self._size = min(self._size + (1.0 if self._grows else 1.0 / self._size), _MOST)
        # Where they are late for another reason than that they wait for each other, such as a node that keeps
        # silent, fewer at once are no faster, and the rest would not be done in time.
        # After the batch's end nothing remains, and by a clock of milliseconds a refusal takes no time.
        least = _SLACK * self._left * seconds / max(remaining, seconds, 0.001)
        self._size = max(self._size, min(least, _MOST))
