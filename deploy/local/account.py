"""Who the servers run as: PostgreSQL refuses root, so root hands its processes to `nobody`."""

from __future__ import annotations

import os
import pwd
import shutil
import stat
from collections.abc import Sequence
from pathlib import Path

__all__ = ["Account", "AccountError"]

_USER = "nobody"


class AccountError(Exception):
    pass


class Account:
    """Rights of the server processes; an ordinary user's are its own."""

    def __init__(self) -> None:
        self._entry = pwd.getpwnam(_USER) if os.geteuid() == 0 else None

    def own(self, path: Path) -> None:
        """Give a directory, not what is in it, to the servers."""
        path.mkdir(parents=True, exist_ok=True)
        path.chmod(0o700)
        if self._entry is not None:
            os.chown(path, self._entry.pw_uid, self._entry.pw_gid)

    def command(self, argv: Sequence[str], *paths: Path) -> list[str]:
        """`argv` as the servers' user, able to reach `paths`.

        A directory above one of them may be closed to everyone but root, as /root is and as test
        directories are. Then, and only then, the process keeps the one right of root's that opens
        directories and files for reading.

        Raises:
            AccountError: the right is needed and cannot be passed on here.
        """
        if self._entry is None:
            return list(argv)
        setpriv = shutil.which("setpriv")
        if setpriv is None:
            raise AccountError("running as root needs setpriv (package util-linux), or run as another user")
        drop = [setpriv, f"--reuid={self._entry.pw_uid}", f"--regid={self._entry.pw_gid}", "--clear-groups"]
        closed = [found for path in [Path(argv[0]), *paths] if (found := self._closed(path)) is not None]
        if closed:
            right = _right_to_pass()
            if right is None:
                raise AccountError(
                    f"user {_USER} cannot enter {closed[0]}, and this root may not pass on the right to;"
                    " choose a directory that everyone can enter, or run as another user"
                )
            drop += [f"--inh-caps=+{right}", f"--ambient-caps=+{right}"]
        return [*drop, "--", *argv]

    def _closed(self, path: Path) -> Path | None:
        """The first directory above `path` that the servers' user cannot enter."""
        assert self._entry is not None
        for parent in reversed(path.resolve().parents):
            info = parent.stat()
            open_to_all = info.st_mode & stat.S_IXOTH
            if not open_to_all and info.st_uid != self._entry.pw_uid:
                return parent
        return None


def _right_to_pass() -> str | None:
    """The smallest of our permitted capabilities that opens closed directories; containers keep one."""
    permitted = 0
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapPrm:"):
            permitted = int(line.split()[1], 16)
    for name, number in (("dac_read_search", 2), ("dac_override", 1)):
        if permitted & (1 << number):
            return name
    return None
