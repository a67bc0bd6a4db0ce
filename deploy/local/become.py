"""Runs a command as another account: `python become.py WAY UID GID COMMAND ARGUMENT...`.

A file that runs on its own, started by path: root's own Python runs it, whatever the other account can
reach, and no tool of the system is needed. `deploy.local.account` chooses the way; each ends in `exec`,
so that the command has the process id that was started.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable

__all__ = ["WAYS"]

# <linux/prctl.h>, <linux/securebits.h>, <linux/capability.h>, <linux/sched.h>
_PR_SET_SECUREBITS = 28
_SECBIT_NO_SETUID_FIXUP = 1 << 2
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_RAISE = 2
_CAPABILITY_VERSION_3 = 0x20080522
_CAP_DAC_OVERRIDE = 1
_CAP_DAC_READ_SEARCH = 2
_CLONE_NEWUSER = 0x10000000


def _plain(uid: int, gid: int) -> None:
    """The account with its own rights only."""
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)


def _with(capability: int) -> Callable[[int, int], None]:
    """The account, with one right of root's that stays with it and its children.

    PostgreSQL looks at its own program by access(2), for which the kernel sets the capabilities of any
    account but root aside, unless told by SECBIT_NO_SETUID_FIXUP that accounts mean nothing.
    """

    def become(uid: int, gid: int) -> None:
        libc = _libc()
        _call(libc.prctl, _PR_SET_SECUREBITS, _SECBIT_NO_SETUID_FIXUP, 0, 0, 0)
        _plain(uid, gid)
        header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
        mask = 1 << capability
        sets = (ctypes.c_uint32 * 6)(mask, mask, mask)  # effective, permitted, inheritable
        _call(libc.capset, header, sets)
        _call(libc.prctl, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, capability, 0, 0)

    return become


def _namespace(uid: int, gid: int) -> None:
    """The caller, who is shown to the command under the account's number; files are the caller's."""
    caller, group = os.geteuid(), os.getegid()
    _call(_libc().unshare, _CLONE_NEWUSER)
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{uid} {caller} 1"),
        ("gid_map", f"{gid} {group} 1"),
    ):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


# In the order in which they are to be tried: each gives the command more than the one before.
WAYS: dict[str, Callable[[int, int], None]] = {
    "plain": _plain,
    "dac_read_search": _with(_CAP_DAC_READ_SEARCH),
    "dac_override": _with(_CAP_DAC_OVERRIDE),
    "namespace": _namespace,
}


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _call(function: Callable[..., int], *arguments: object) -> None:
    if function(*arguments):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def main() -> None:
    way, uid, gid, *command = sys.argv[1:]
    try:
        WAYS[way](int(uid), int(gid))
        os.execv(command[0], command)
    except OSError as exc:
        sys.exit(f"{exc.strerror}: {exc.filename or way}")


if __name__ == "__main__":
    main()
