"""Whether others than root and our own account can change a file, and thereby give themselves keys."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Iterator
from pathlib import Path

__all__ = ["UntrustedError", "check_ownership"]

_logger = logging.getLogger(__name__)

_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_MOST_LINKS = 40  # as the kernel


class UntrustedError(Exception):
    """Others can change the file; the message says who, and what to do about it."""


def check_ownership(path: Path, opened: os.stat_result) -> None:
    """Check the open file that `path` led to, and the folders in which it could be exchanged.

    Those are the folders of the file and of each symbolic link that leads to it, such as `..data` of a
    Kubernetes secret; not those above them. In a folder with the sticky bit, such as /tmp, nobody can
    exchange what is not theirs. A file that others can read is only warned of.

    Raises:
        UntrustedError
        OSError
    """
    _check_owner("it", "the file", opened)
    if opened.st_mode & _OTHERS_WRITE:
        raise UntrustedError(
            f"its mode {_octal(opened)} lets others write it, who could give themselves keys; chmod go-w it"
        )
    for folder in _folders(path):
        found = os.stat(folder)
        _check_owner(f"its folder {folder}", "the folder", found)
        if found.st_mode & _OTHERS_WRITE and not found.st_mode & stat.S_ISVTX:
            raise UntrustedError(
                f"the mode {_octal(found)} of its folder {folder} lets others replace it; chmod go-w that"
            )
    if opened.st_mode & stat.S_IROTH:
        _logger.warning(
            "keys can be read by others", extra={"file": str(path), "mode": _octal(opened), "better": "0640"}
        )


def _check_owner(what: str, short: str, found: os.stat_result) -> None:
    own = os.geteuid()
    if found.st_uid not in (0, own):
        raise UntrustedError(
            f"{what} belongs to the account {found.st_uid}, who could give themselves keys; "
            f"chown {short} to root or to {own}, as which the router runs"
        )


def _folders(path: Path) -> Iterator[Path]:
    """
    Raises:
        UntrustedError, OSError: of the links on the way.
    """
    at = path.absolute()
    for _ in range(_MOST_LINKS):
        yield at.parent
        if not at.is_symlink():
            return
        # Whose link it is can exchange it, also where nobody else can.
        _check_owner(f"the link {at}", "-h the link", os.lstat(at))
        at = at.parent / at.readlink()


def _octal(found: os.stat_result) -> str:
    return f"{stat.S_IMODE(found.st_mode):04o}"
