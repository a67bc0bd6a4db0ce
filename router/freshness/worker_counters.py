"""Counters that the workers of one router share: versions, log positions, and writes pending towards Redis.

Each worker has a slot of a common file that only it writes: per collection, how many writes it has
finished, how many of them Redis has to hear of and how many Redis has heard of; per shard, how far the
write-ahead log reached after its last write, how often it found the shard's tables changed, and how much of
the log it has found to be lost. A reader takes the sum or the maximum over all slots, so that a write through
one worker is known to all others at once, without a message. A router of one worker keeps its only slot in
plain memory.

Invariant: no cell but the last ever decreases while the file exists, not even when a worker dies and another
one takes its slot. So a version that was read before a search is never the present one again after a write.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from pathlib import Path

from shard_config.model import ShardMap

__all__ = ["MAX_WORKERS", "WorkerCounters", "create"]

MAX_WORKERS = 64
_WORD_BYTES = 8


def _words(shard_map: ShardMap) -> int:
    return 2 + 3 * len(shard_map.collections) + 3 * len(shard_map.shards)


def create(path: Path, shard_map: ShardMap) -> None:
    """An empty file for up to `MAX_WORKERS` workers that serve `shard_map`."""
    path.write_bytes(bytes(MAX_WORKERS * _words(shard_map) * _WORD_BYTES))


class WorkerCounters:
    """One worker's view of the slots; it changes only its own.

    Other workers may read between any two of its changes, so their order matters; see `Freshness`.
    """

    def __init__(self, shard_map: ShardMap, path: Path | None = None) -> None:
        """Take a free slot of the file at `path`, or plain memory if it is None.

        Raises:
            RuntimeError: all slots are taken.
        """
        self._width = _words(shard_map)
        columns = iter(range(1, self._width))  # the first says how many workers had the slot
        self._versions, self._marked, self._sent = (
            dict(zip(shard_map.collections, columns, strict=False)) for _ in range(3)
        )
        self._positions = dict(zip(shard_map.shards, columns, strict=False))
        self._schemas = dict(zip(shard_map.shards, columns, strict=False))
        self._lost = dict(zip(shard_map.shards, columns, strict=False))
        (self._schemas_of_all,) = columns
        self._file: int | None = None
        slot, slots = 0, 1
        memory: mmap.mmap | bytearray = bytearray(self._width * _WORD_BYTES)
        if path is not None:
            self._file = os.open(path, os.O_RDWR)
            slot, slots = _take_slot(self._file), MAX_WORKERS
            memory = mmap.mmap(self._file, 0)
        self._memory = memory
        self._cells = memoryview(memory).cast("Q")
        self._own = slot * self._width
        self._slots = range(0, slots * self._width, self._width)
        self._cells[self._own] += 1
        if self._cells[self._own] > 1:
            # 1. The last owner of the slot commits a write.
            # 2. It is killed before it counts the write.
            # 3. This worker finds the slot free; caches of the others still answer from before the write.
            # Nobody can tell whether that happened, so every collection counts as written. The positions of
            # such commits are lost; their callers were never told that they had been made.
            for name in self._versions:
                self.mark_pending(name)
                self.bump(name)

    def __repr__(self) -> str:
        where = "memory" if self._file is None else f"slot {self._own // self._width}"
        return f"<WorkerCounters {where}, {len(self._versions)} collections, {len(self._positions)} shards>"

    def version(self, collection: str) -> int:
        """How many writes to `collection` the workers have finished."""
        column, cells = self._versions[collection], self._cells
        return sum([cells[slot + column] for slot in self._slots])

    def bump(self, collection: str) -> None:
        """Count a write; what was cached before is not found any more."""
        self._cells[self._own + self._versions[collection]] += 1

    def position(self, shard: str) -> int:
        """The write-ahead log position that holds everything written through any worker."""
        column, cells = self._positions[shard], self._cells
        return max([cells[slot + column] for slot in self._slots])

    def note(self, shard: str, lsn: int) -> None:
        """Remember that a write is contained in `lsn`; to be called before `bump`."""
        cell = self._own + self._positions[shard]
        self._cells[cell] = max(self._cells[cell], lsn)

    def mark_pending(self, collection: str) -> None:
        """Count a write that Redis has to hear of; to be called before `bump`."""
        self._cells[self._own + self._marked[collection]] += 1

    def own_pending(self, collection: str) -> int:
        """The number of this worker's last write that Redis has to hear of; 0 if it has heard of all."""
        marked = self._cells[self._own + self._marked[collection]]
        return marked if marked > self._cells[self._own + self._sent[collection]] else 0

    def pending(self, collection: str) -> int:
        """How many writes of all workers Redis has not heard of."""
        marked, sent, cells = self._marked[collection], self._sent[collection], self._cells
        return sum([cells[slot + marked] - cells[slot + sent] for slot in self._slots])

    def mark_sent(self, collection: str, number: int) -> None:
        """Redis has heard of this worker's writes up to `number`.

        `number` is what `own_pending` said before Redis was told: a write that ended while the command was
        under way has a later number, and stays pending.
        """
        cell = self._own + self._sent[collection]
        # Of two commands under way at once, the one that was sent first may be answered last.
        self._cells[cell] = max(self._cells[cell], number)

    @property
    def shared(self) -> bool:
        """Whether there may be other workers."""
        return self._file is not None

    def note_schema(self, shard: str) -> None:
        """Count that this worker has found other faults in the tables of `shard` than before, or none."""
        self._cells[self._own + self._schemas[shard]] += 1
        self._cells[self._own + self._schemas_of_all] += 1

    def schemas_noted(self, shard: str | None = None) -> int:
        """How often the other workers have, on `shard` or on all together."""
        column = self._schemas_of_all if shard is None else self._schemas[shard]
        return sum([self._cells[slot + column] for slot in self._slots if slot != self._own])

    def note_lost(self, shard: str, size_bytes: int) -> None:
        """So many bytes of the shard's log are lost, as far as this worker knows.

        Only the worker that was told of a write can tell that it is lost, and the others answer too.
        """
        self._cells[self._own + self._lost[shard]] = size_bytes

    def lost(self, shard: str) -> int:
        """The most that any worker has found to be."""
        column, cells = self._lost[shard], self._cells
        return max([cells[slot + column] for slot in self._slots])

    def close(self) -> None:
        self._cells.release()
        if isinstance(self._memory, mmap.mmap):
            self._memory.close()
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _take_slot(file: int) -> int:
    """The first slot that no living process holds; the lock goes with the process."""
    for slot in range(MAX_WORKERS):
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, slot)
        except OSError:
            continue
        return slot
    raise RuntimeError(f"more than {MAX_WORKERS} workers share one router")
