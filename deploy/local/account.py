"""The account that servers run as. PostgreSQL refuses to run as root, so for root they run as `nobody`.

That account may be unable to reach the programs or the data, as in a folder that only root may enter.
So the ways of `deploy.local.become` to change the account are tried in order, with the program and the folder
that are needed, and the first that works is used. An ordinary account runs its servers itself.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

from deploy.local import become, processes
from deploy.local.environment import environment

__all__ = ["Account", "AccountError"]

_USER = "nobody"
_TRIAL_SECONDS = 20.0
_NEEDS = {
    "plain": "CAP_SETUID, CAP_SETGID, CAP_CHOWN and CAP_KILL",
    "dac_read_search": "these, CAP_SETPCAP and CAP_DAC_READ_SEARCH",
    "dac_override": "these, CAP_SETPCAP and CAP_DAC_OVERRIDE",
    "namespace": "user namespaces, and of root CAP_SETFCAP",
}
# Enters the folder, runs the program and writes a file, which this process must then be able to read and
# replace.
_TRIAL = 'cd "$1" && "$2" --version && umask 077 && mkdir trial && echo written > trial/file'


class AccountError(Exception):
    """No way to run a server here; the message says what was tried and what came of it."""


class Account:
    """The account of the server processes, and the way to it."""

    def __init__(self) -> None:
        self._root = os.geteuid() == 0
        self._lock = threading.Lock()  # servers are started by several threads
        self._chosen: dict[tuple[Path, Path], str] = {}

    def command(self, argv: Sequence[str], folder: Path) -> list[str]:
        """`argv` as the servers' account, to whom `folder` and all in it is given; it is made if need be.

        Raises:
            AccountError: that account cannot run the program, or cannot write there.
            OSError: the folder cannot be made or given.
        """
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        ways = self._ways()
        if not ways:
            return list(argv)
        uid, gid = _ids(folder)
        # Programs of one folder are alike, and so are the folders of one cluster's servers.
        key = (Path(argv[0]).parent, folder.parent)
        with self._lock:
            if key not in self._chosen:
                self._chosen[key] = self._first_that_works(ways, argv[0], folder, uid, gid)
            _give(folder, *_owner(self._chosen[key], uid, gid))
        return _prefixed(self._chosen[key], uid, gid, argv)

    def _ways(self) -> list[str]:
        """Which to try; none if the servers run as we do."""
        if self._root:
            return list(become.WAYS)
        try:
            pwd.getpwuid(os.geteuid())
        except KeyError:
            # initdb refuses a user id without a name; in a user namespace, ours can appear as one that has a
            # name.
            return ["namespace"]
        return []

    def _first_that_works(self, ways: Sequence[str], program: str, folder: Path, uid: int, gid: int) -> str:
        refusals = []
        for way in ways:
            try:
                _give(folder, *_owner(way, uid, gid))
                _try(_prefixed(way, uid, gid, ["/bin/sh", "-c", _TRIAL, "sh", str(folder), program]), folder)
            except (OSError, AccountError) as exc:
                refusals.append(f"  {way} (takes {_NEEDS[way]}): {exc}")
            else:
                return way
        if self._root:
            raise AccountError(
                f"root cannot run PostgreSQL, and account {_USER} cannot run {program} with data in {folder};"
                " put both where every account may go, give this container more capabilities, or run as"
                " an ordinary account. What was tried:\n" + "\n".join(refusals)
            )
        raise AccountError(
            f"user id {os.geteuid()} has no name on this machine, and initdb insists on one; add it to"
            " /etc/passwd, or allow user namespaces. What was tried:\n" + "\n".join(refusals)
        )


def _ids(folder: Path) -> tuple[int, int]:
    """Of the account that servers in the folder run as: whose it is already, if it is an ordinary one's."""
    info = folder.stat()
    if info.st_uid not in (0, os.geteuid()):
        return info.st_uid, info.st_gid
    try:
        entry = pwd.getpwnam(_USER)
    except KeyError:
        raise AccountError(f"servers would run as account {_USER}, which this machine lacks") from None
    return entry.pw_uid, entry.pw_gid


def _owner(way: str, uid: int, gid: int) -> tuple[int, int]:
    """Whose the files have to be, seen from outside."""
    return (os.geteuid(), os.getegid()) if way == "namespace" else (uid, gid)


def _prefixed(way: str, uid: int, gid: int, argv: Sequence[str]) -> list[str]:
    # -I and -S: nothing of the caller's Python is read, and it starts in half the time.
    return [sys.executable, "-I", "-S", become.__file__, way, str(uid), str(gid), *argv]


def _try(argv: Sequence[str], folder: Path) -> None:
    """
    Raises:
        AccountError, OSError: why the program or the folder is out of reach.
    """
    trial = folder / "trial"
    shutil.rmtree(trial, ignore_errors=True)
    with (
        tempfile.TemporaryFile("w+", errors="replace") as output,
        subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd="/",
            env=environment(folder),
        ) as process,
    ):
        try:
            if not processes.until(lambda: _has_ended(process.pid), _TRIAL_SECONDS):
                raise AccountError(f"no end within {_TRIAL_SECONDS:.0f} s")
            # What we may not signal we could not stop.
            os.kill(process.pid, 0)
            if process.wait():
                output.seek(0)
                raise AccountError(output.read().strip().split("\n")[-1] or f"status {process.returncode}")
            (trial / "file").read_text()
            (trial / "ours").write_text("written")
        finally:
            process.kill()
            shutil.rmtree(trial, ignore_errors=True)


def _has_ended(pid: int) -> bool:
    """Without waiting for it: so it keeps its number, and its owner."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _give(folder: Path, uid: int, gid: int) -> None:
    """The folder and all in it, unless it has that owner already."""
    if folder.stat().st_uid == uid:
        return
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            os.chown(os.path.join(parent, name), uid, gid, follow_symlinks=False)
    os.chown(folder, uid, gid)
