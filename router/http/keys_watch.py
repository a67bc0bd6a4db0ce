"""Keeps the keys in force as their file has them, while the router runs.

Invariant: a file that cannot be used changes nothing but `Keys.outdated`; the keys before stay in force.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeAlias

from router.http.keys import Key, Keys
from router.http.keys_file import KeysError

__all__ = ["KeysWatch", "watching"]

_logger = logging.getLogger(__name__)

# Seconds between two looks. A file that is found changed is read when the next look finds it the same, since
# an editor may still be writing it.
_LOOK = 0.5

# Where a path leads to now; None for a pipe, which can be read once.
_Mark: TypeAlias = tuple[int, ...] | None


class KeysWatch:
    """Reads the file at `path` with `read`, and again whenever it has changed.

    Make it before the file is read first, so that no change is missed. A `copy` is what a supervisor puts
    there for its workers: it is replaced as a whole, and the supervisor alone logs that.
    """

    def __init__(self, path: Path, read: Callable[[], Keys], *, copy: bool = False) -> None:
        self._path = path
        self._read = read
        self._copy = copy
        self._seen = self._used = _mark(path)
        self._complaint = ""  # the last, until the file can be used

    def __repr__(self) -> str:
        return f"<KeysWatch {self._path}>"

    def load(self) -> Keys:
        """
        Raises:
            KeysError
        """
        return self._read()

    def look(self, keys: Keys, asked: bool = False) -> bool:
        """Bring `keys` up to date, at once if `asked`; whether anything about them is different now."""
        mark = _mark(self._path)
        if mark is None:
            if asked and not self._copy:
                _logger.error("keys not reloaded", extra={"reason": f"{self._path} is a pipe, read once"})
            return False
        if not asked:
            settled = self._copy or mark == self._seen
            self._seen = mark
            if mark == self._used or not settled:
                return False
        self._seen = self._used = mark
        before = {key.name: key for key in keys}, keys.outdated
        try:
            keys.replace(self._read())
            self._complaint = ""
        except KeysError as exc:
            if isinstance(exc.__cause__, OSError):
                # No descriptor is free, say: what it holds may open nothing any more, and is read at the next
                # look though it has not changed.
                self._used = None
            if self._copy:
                return False
            if asked or str(exc) != self._complaint:
                _logger.error("keys not reloaded; those before stay in force", extra={"reason": str(exc)})
            self._complaint = str(exc)
            keys.outdated = True
        after = {key.name: key for key in keys}
        if not keys.outdated and not self._copy:
            _logger.warning("keys reloaded", extra=_difference(before[0], after))
        return before != (after, keys.outdated)


@contextlib.contextmanager
def watching(look: Callable[[bool], object], asked: Callable[[], bool]) -> Iterator[None]:
    """Call `look` every half second during the block, with whether SIGHUP has come since.

    In a thread: a file system that hangs must hold up no request, and no end.
    """
    over = threading.Event()

    def looks() -> None:
        failing = False
        while not over.wait(_LOOK):
            try:
                look(asked())
                failing = False
            except Exception:
                if not failing:
                    _logger.exception("keys not looked at; tried again every %g s", _LOOK)
                failing = True

    thread = threading.Thread(target=looks, name="keys", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(_LOOK)


def _mark(path: Path) -> _Mark:
    """What changes when the file or its rights do, those of its folder, or where a link on the way leads."""
    try:
        found = os.stat(path)
        folders = [os.stat(folder) for folder in (path.parent, Path(os.path.realpath(path)).parent)]
    except OSError as exc:
        return (exc.errno or 0,)
    if stat.S_ISFIFO(found.st_mode):
        return None
    rights = [right for folder in folders for right in (folder.st_mode, folder.st_uid)]
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns, *rights)


def _difference(before: Mapping[str, Key], after: Mapping[str, Key]) -> dict[str, object]:
    return {
        "keys": len(after),
        "added": sorted(after.keys() - before.keys()),
        "removed": sorted(before.keys() - after.keys()),
        "changed": sorted(name for name in after.keys() & before.keys() if after[name] != before[name]),
    }
