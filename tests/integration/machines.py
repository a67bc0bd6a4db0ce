"""Machines as they are elsewhere: other accounts, fewer rights, other surroundings."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from deploy.local import become

__all__ = ["HOSTILE", "as_account", "needs_root", "program", "with_fewer_rights"]

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="becoming another account needs root")

# Each of them stops a server, a replica or a connection that listens to it, or leads it elsewhere.
HOSTILE = {
    "PGDATA": "/none",
    "PGHOST": "192.0.2.1",
    "PGHOSTADDR": "192.0.2.1",
    "PGPORT": "1",
    "PGUSER": "mallory",
    "PGDATABASE": "other",
    "PGPASSWORD": "secret",
    "PGPASSFILE": "/none",
    "PGSERVICE": "none",
    "PGSERVICEFILE": "/none",
    "PGOPTIONS": "-c search_path=nowhere -c default_transaction_read_only=on",
    "PGSSLMODE": "verify-full",
    "PGSSLCERT": "/none",
    "PGSSLROOTCERT": "/none",
    "PGSSLMINPROTOCOLVERSION": "none",
    "PGREQUIRESSL": "1",
    "PGREQUIREAUTH": "scram-sha-256",
    "PGCHANNELBINDING": "require",
    "PGGSSENCMODE": "require",
    "PGKRBSRVNAME": "other",
    "PGTARGETSESSIONATTRS": "standby",
    "PGLOADBALANCEHOSTS": "none",
    "PGCLIENTENCODING": "none",
    "PGDATESTYLE": "none",
    "PGTZ": "none",
    "PGCONNECT_TIMEOUT": "none",
    "PGAPPNAME": "other",
}

# Gives capabilities up for good, and runs a command; the bounding set counts for what is executed next.
_WITHOUT = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
for number in sys.argv[1].split(","):
    if libc.prctl(24, int(number), 0, 0, 0):
        raise OSError(ctypes.get_errno(), "PR_CAPBSET_DROP")
os.execv(sys.argv[2], sys.argv[2:])
"""


def as_account(uid: int, command: Sequence[str]) -> list[str]:
    """`command` as an ordinary account that can still reach this Python, wherever it is."""
    way = [sys.executable, "-I", "-S", become.__file__, "dac_read_search", str(uid), str(uid)]
    return [*way, *command]


def with_fewer_rights(capabilities: Sequence[int], command: Sequence[str]) -> list[str]:
    """`command` as root without these capabilities, as in a container."""
    return [sys.executable, "-c", _WITHOUT, ",".join(map(str, capabilities)), *command]


def program(path: Path, mode: int = 0o755) -> Path:
    """A program in a file of that mode, which says who runs it and with which capabilities."""
    path.write_text('#!/bin/sh\n[ "$1" = --version ] || grep -E "^(Uid|CapEff):" /proc/self/status\n')
    path.chmod(mode)
    return path
