"""Replaces the content of a file that belongs to somebody else, such as an operator's shard map.

Invariant: whoever opens the path finds the whole old content or the whole new one, also after a crash.
Mode, owner, extended attributes (access lists among them) and symbolic links stay as they are, and what
somebody wrote since the caller read the file is never overwritten.
"""

from __future__ import annotations

import codecs
import fcntl
import os
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["NotReplacedError", "TextFile", "check_replaceable", "replace_file"]

_LOCK_SECONDS = 5.0
_LOCK_PAUSE = 0.02


class NotReplacedError(OSError):
    """The file is as it was; the message says which and why."""


class TextFile:
    """A UTF-8 file as it was read; `text` has its line ends, and no byte order mark."""

    def __init__(self, path: Path) -> None:
        """
        Raises:
            OSError, UnicodeDecodeError
        """
        self.path = path
        self._data = path.read_bytes()
        self.text = self._data.decode("utf-8-sig")

    def __repr__(self) -> str:
        return f"<TextFile {self.path}, {len(self._data)} bytes>"

    def replace(self, text: str) -> None:
        """Put `text` in the place of what was read, after a byte order mark where there was one.

        Raises:
            NotReplacedError
        """
        mark = codecs.BOM_UTF8 if self._data.startswith(codecs.BOM_UTF8) else b""
        replace_file(self.path, mark + text.encode(), expected=self._data)


def replace_file(path: Path, data: bytes | memoryview, expected: bytes | None = None) -> None:
    """Make `data` the content of the file at `path`, or that `path` links to; create it if there is none.

    Args:
        expected: what must be there until then, b"" for no file; None: whatever is there.

    Raises:
        NotReplacedError
    """
    target = Path(os.path.realpath(path))
    try:
        with _locked(target.parent) as folder:
            status = check_replaceable(path)
            fresh = target.with_name(f".pgscatter-{secrets.token_hex(8)}.new")
            try:
                _write(fresh, data, target, status)
                if expected is not None and (target.read_bytes() if status else b"") != expected:
                    raise NotReplacedError(f"{path} is left as it is: it was changed since it was read")
                fresh.replace(target)
            finally:
                fresh.unlink(missing_ok=True)
            os.fsync(folder)
    except NotReplacedError:
        raise
    except OSError as exc:
        raise NotReplacedError(f"{path} cannot be replaced: {exc.strerror or exc}") from exc


def check_replaceable(path: Path) -> os.stat_result | None:
    """The status of the file at `path`, None if there is none yet.

    Raises:
        NotReplacedError: it is plain already that `replace_file` would fail.
    """
    target = Path(os.path.realpath(path))
    if not os.access(target.parent, os.W_OK | os.X_OK, effective_ids=True):
        # A file is replaced as a whole, by one that is written beside it first.
        raise NotReplacedError(f"{path} cannot be replaced: the folder {target.parent} cannot be written to")
    try:
        status = target.stat()
    except FileNotFoundError:
        return None
    why = None
    if not stat.S_ISREG(status.st_mode):
        why = "it is not a regular file"
    elif status.st_nlink > 1:
        why = f"it has {status.st_nlink} names (hard links), and the others would keep the old content"
    elif not os.access(target, os.W_OK, effective_ids=True):
        why = "it is read-only"
    if why is not None:
        raise NotReplacedError(f"{path} cannot be replaced: {why}")
    return status


@contextmanager
def _locked(folder: Path) -> Iterator[int]:
    """A descriptor of `folder`, in which no other process replaces a file by this module meanwhile."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        end = time.monotonic() + _LOCK_SECONDS
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    message = (
                        f"another process has held a lock on the folder {folder} for {_LOCK_SECONDS:g} s"
                    )
                    raise NotReplacedError(message) from None
            time.sleep(_LOCK_PAUSE)
        yield descriptor
    finally:
        os.close(descriptor)


def _write(fresh: Path, data: bytes | memoryview, target: Path, status: os.stat_result | None) -> None:
    """Write `fresh`, to the disk, with all that `target` has but its content."""
    # Nobody may read more of it meanwhile than of the target.
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if status else 0o666)
    with open(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        if status is not None:
            _keep_owner(descriptor, target, status)
            shutil.copystat(target, fresh)
            os.utime(descriptor)
        os.fsync(descriptor)


def _keep_owner(descriptor: int, target: Path, status: os.stat_result) -> None:
    ours = os.fstat(descriptor)
    if (ours.st_uid, ours.st_gid) == (status.st_uid, status.st_gid):
        return
    with suppress(PermissionError):
        os.fchown(descriptor, status.st_uid, status.st_gid)
        return
    raise NotReplacedError(
        f"{target} cannot be replaced: its owner would not stay user {status.st_uid}, group {status.st_gid};"
        " run this as that user"
    )
