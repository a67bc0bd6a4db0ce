"""The demo runs what a user would run, and prints it the way a user would type it."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

__all__ = ["STEP_SECONDS", "DemoError", "command", "run", "typed"]

STEP_SECONDS = 300.0


class DemoError(Exception):
    """A step failed; the message says which."""


def command(arguments: Sequence[str]) -> list[str]:
    """What to execute, wherever this Python stands."""
    return [sys.executable, "-m", "router.cli", *arguments]


def typed(arguments: Sequence[str]) -> str:
    """The command as a user would type it in this folder."""
    script = Path(sys.executable).with_name("pgscatter")
    if not script.exists():
        return shlex.join(["pgscatter", *arguments])
    here = Path.cwd()
    return shlex.join([str(script.relative_to(here) if script.is_relative_to(here) else script), *arguments])


def run(*arguments: str) -> None:
    """One command whose output is the demo's.

    Raises:
        DemoError: it failed, or took too long.
    """
    print(f"$ {typed(arguments)}", flush=True)
    try:
        status = subprocess.run(command(arguments), timeout=STEP_SECONDS).returncode
    except subprocess.TimeoutExpired as exc:
        raise DemoError(f"{typed(arguments)} took more than {STEP_SECONDS:g} s") from exc
    if status:
        raise DemoError(f"{typed(arguments)} failed with status {status}")
