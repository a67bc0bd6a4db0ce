"""Runs a command that must not outlive whoever started it, not even one that was killed.

    python -m deploy.leash COMMAND ARGUMENT...

The owner holds the other end of our standard input. When that end closes, for whatever reason, the
command is asked to end and, if it does not, made to.
"""

from __future__ import annotations

import contextlib
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

__all__ = ["leashed", "main"]

_POLL = 0.1
_GRACE = 15.0


@contextlib.contextmanager
def leashed(
    command: Sequence[str], log: Path, env: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """`command` while the block runs, in a session of its own, so that Ctrl-C is for its owner alone.

    It gets our environment, or `env`. The process that comes out is the leash; it ends when the command
    does, with the same status.
    """
    with log.open("ab") as output:
        leash = subprocess.Popen(
            [sys.executable, "-m", __name__, *command],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            start_new_session=True,
            env=env,
        )
    assert leash.stdin is not None
    try:
        yield leash
    finally:
        leash.stdin.close()
        try:
            leash.wait(_GRACE + 5)
        except subprocess.TimeoutExpired:
            leash.kill()
            leash.wait(5)


def main() -> int:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # Only the end of the pipe counts. A handler, since an ignored signal stays ignored in the command.
        signal.signal(number, lambda *_: None)
    process = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
    while process.poll() is None:
        if select.select([sys.stdin], [], [], _POLL)[0]:
            return _end(process)
    return process.returncode


def _end(process: subprocess.Popen[bytes]) -> int:
    process.terminate()
    try:
        return process.wait(_GRACE)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait(5)


if __name__ == "__main__":
    sys.exit(main())
