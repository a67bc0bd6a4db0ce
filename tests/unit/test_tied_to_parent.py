"""A command that is tied to its parent ends with it, and with nothing else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deploy.tied_to_parent import tied_to_parent

SLEEP = [sys.executable, "-c", "import os, time; print(os.getpid(), flush=True); time.sleep(60)"]


def pid_in(log: Path) -> int:
    """What the command wrote first."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if log.exists() and log.read_text().endswith("\n"):
            return int(log.read_text())
        time.sleep(0.01)
    raise AssertionError("the command did not start")


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


def goes(pid: int, seconds: float) -> bool:
    """Whether it is gone within that time."""
    deadline = time.monotonic() + seconds
    while not is_gone(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    return is_gone(pid)


def test_the_end_of_the_block_ends_the_command(tmp_path: Path) -> None:
    with tied_to_parent(SLEEP, tmp_path / "log") as watcher:
        pid = pid_in(tmp_path / "log")
        assert watcher.poll() is None
    assert is_gone(pid)


def test_an_error_in_the_block_ends_the_command(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), tied_to_parent(SLEEP, tmp_path / "log"):
        pid = pid_in(tmp_path / "log")
        raise KeyboardInterrupt
    assert is_gone(pid)


def test_a_command_that_ends_by_itself_gives_its_status(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "print('said'); raise SystemExit(3)"]
    with tied_to_parent(command, tmp_path / "log") as watcher:
        assert watcher.wait(60) == 3
    assert (tmp_path / "log").read_text() == "said\n"


def test_an_owner_that_is_killed_takes_the_command_along(tmp_path: Path) -> None:
    log = tmp_path / "log"
    code = (
        "import sys, time, pathlib, deploy.tied_to_parent as t\n"
        f"with t.tied_to_parent({SLEEP!r}, pathlib.Path({str(log)!r})): time.sleep(60)"
    )
    owner = subprocess.Popen([sys.executable, "-c", code])
    pid = pid_in(log)
    owner.kill()
    owner.wait(30)
    assert goes(pid, 30)


def test_a_ctrl_c_is_for_the_owner_alone(tmp_path: Path) -> None:
    with tied_to_parent(SLEEP, tmp_path / "log") as watcher:
        pid = pid_in(tmp_path / "log")
        assert os.getpgid(watcher.pid) != os.getpgid(0)
        watcher.send_signal(signal.SIGINT)
        watcher.send_signal(signal.SIGTERM)
        assert not goes(pid, 0.5)
        assert watcher.poll() is None
    assert is_gone(pid)


def test_the_command_hears_signals_as_usual(tmp_path: Path) -> None:
    with tied_to_parent(SLEEP, tmp_path / "log") as watcher:
        os.kill(pid_in(tmp_path / "log"), signal.SIGTERM)
        assert watcher.wait(60) != 0
