"""The environment of bundled programs: nothing of the caller's that would change what they do.

PostgreSQL's programs read more than thirty variables, PGDATA to PGTZ, and files in the home directory;
replication inside a server reads them as well.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

__all__ = ["environment"]


def environment(home: Path, caller: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The caller's without PG* and its language, and with `home` for the caller's home directory."""
    kept = {
        name: value
        for name, value in caller.items()
        if not name.startswith(("PG", "LC_")) and name not in ("LANG", "LANGUAGE", "HOME")
    }
    return {**kept, "HOME": str(home), "LC_ALL": "C"}
