"""What the workers of one router tell each other: write versions and write positions.

Each worker counts its own writes per collection, and those that Redis has yet to be told of, and
notes per shard how far the write-ahead log stood after them, in slots that only it writes; whoever
reads takes the sum or the maximum over all workers. With that, every worker's caches know at once of
a write through any of them, and reads wait for replicas to reach it. One worker alone keeps the same
in plain memory.

Invariant: no number in it ever goes back while the file exists, not even when a worker dies and another
takes its slot.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from pathlib import Path

from shard_config.model import ShardMap

__all__ = ["MAX_WORKERS", "Shared", "create"]

MAX_WORKERS = 64
_WORD_BYTES = 8


def _words(shard_map: ShardMap) -> int:
    return 1 + 3 * len(shard_map.collections) + len(shard_map.shards)


def create(path: Path, shard_map: ShardMap) -> None:
    """An empty file for up to `MAX_WORKERS` workers that serve `shard_map`."""
    path.write_bytes(bytes(MAX_WORKERS * _words(shard_map) * _WORD_BYTES))


class Shared:
    """One worker's view of the slots; `bump` and `note` write only its own."""

    def __init__(self, shard_map: ShardMap, path: Path | None = None) -> None:
        """Take a free slot of the file at `path`, or plain memory if it is None.

        Raises:
            RuntimeError: all slots are taken.
        """
        self._width = _words(shard_map)
        columns = iter(range(1, self._width))  # the first says how many workers had the slot
        self._versions, self._owed, self._paid = (
            dict(zip(shard_map.collections, columns, strict=False)) for _ in range(3)
        )
        self._positions = dict(zip(shard_map.shards, columns, strict=True))
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
            # Whoever had the slot may have died between a commit and telling of it.
            for name in self._versions:
                self.bump(name)
                self.owe(name)

    def __repr__(self) -> str:
        where = "memory" if self._file is None else f"slot {self._own // self._width}"
        return f"<Shared {where}, {len(self._versions)} collections, {len(self._positions)} shards>"

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

    def owe(self, collection: str) -> None:
        """Count a write that Redis has to be told of."""
        self._cells[self._own + self._owed[collection]] += 1

    def owed_here(self, collection: str) -> int:
        """The number of this worker's last write that Redis has to be told of; 0 if there is none."""
        owed = self._cells[self._own + self._owed[collection]]
        return owed if owed > self._cells[self._own + self._paid[collection]] else 0

    def owed(self, collection: str) -> int:
        """Writes of any worker that Redis has not been told of."""
        owed, paid, cells = self._owed[collection], self._paid[collection], self._cells
        return sum([cells[slot + owed] - cells[slot + paid] for slot in self._slots])

    def paid(self, collection: str, number: int) -> None:
        """Redis knows of this worker's writes up to `number`, which `owed_here` said before it was told."""
        cell = self._own + self._paid[collection]
        self._cells[cell] = max(self._cells[cell], number)

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
