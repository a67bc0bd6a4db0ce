"""Reads the README's examples and runs them in a shell, as a reader would."""

from __future__ import annotations

import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

__all__ = ["README", "Example", "Shell", "examples", "fences", "matches", "shell"]

README = Path(__file__).parents[2] / "README.md"

_FENCE = re.compile(r"(?:<!-- run: (\w+) -->\n)?^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_DONE = "--example-is-done--"
_COMMAND_SECONDS = 120.0


class Example(NamedTuple):
    """A command, and the lines of its output that the README shows."""

    command: str
    expected: list[str]


def fences() -> list[tuple[str, str, str]]:
    """Of every block: the group it is run with, or nothing; its language; its text."""
    return _FENCE.findall(README.read_text())


def examples(group: str) -> list[Example]:
    """The commands of all blocks of a group, in order."""
    found: list[Example] = []
    for marked, _, text in fences():
        if marked == group:
            found += _examples(text)
    return found


def _examples(text: str) -> Iterator[Example]:
    """A command goes on after a backslash, within quotes and up to the end of a here-document."""
    lines = iter(text.splitlines())
    line = next(lines, None)
    while line is not None:
        assert line.startswith("$ "), f"not a command: {line}"
        command = line[2:]
        while _is_open(command):
            command += "\n" + next(lines)
        expected = []
        line = next(lines, None)
        while line is not None and not line.startswith("$ "):
            expected.append(line)
            line = next(lines, None)
        yield Example(command, expected)


def _is_open(command: str) -> bool:
    here = re.search(r"<<'(\w+)'", command)
    if here:
        return not command.endswith("\n" + here[1])
    return command.endswith("\\") or command.count("'") % 2 == 1


def matches(expected: str, line: str) -> bool:
    """Whether a line of output is what the README shows: `…` is anything, and times vary."""
    pattern = re.escape(re.sub(r"\s+", " ", expected.strip()))
    pattern = pattern.replace("…", ".*").replace(r"\ ", r"\s+")
    pattern = re.sub(r"\d+\\\.\d+(\\s\+m?s)\b", r"[\\d.]+\1", pattern)
    return re.match(pattern, line.strip()) is not None


class Shell:
    """One bash for all commands, so that a job in the background stays within reach."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def run(self, command: str) -> tuple[int, str]:
        """Status and output, both streams together."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{command}\nprintf '\\n{_DONE} %d\\n' $?\n".encode())
        self._process.stdin.flush()
        said = self._read(time.monotonic() + _COMMAND_SECONDS)
        output, _, status = said.rpartition(f"\n{_DONE} ")
        return int(status), output

    def _read(self, deadline: float) -> str:
        assert self._process.stdout is not None
        stream, said = self._process.stdout.fileno(), b""
        while not re.search(rf"\n{_DONE} \d+\n$".encode(), said):
            left = deadline - time.monotonic()
            ready = left > 0 and select.select([stream], [], [], left)[0]
            part = os.read(stream, 1 << 16) if ready else b""
            assert part, f"the command did not end in time, and said:\n{said.decode()}"
            said += part
        return said.decode()


@contextmanager
def shell(folder: Path) -> Iterator[Shell]:
    """A shell in `folder`, with the project's commands on its path and no proxies."""
    bash = shutil.which("bash")
    assert bash is not None
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    env = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    process = subprocess.Popen(
        [bash, "--norc"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=folder,
        env={**env, "PATH": path},
        start_new_session=True,
    )
    try:
        yield Shell(process)
    finally:
        # With its jobs in the background, which an example that failed has left.
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
