"""Lets SIGTERM end a command as Ctrl-C does: it cleans up, and says how to continue."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

__all__ = ["Ending", "asked_to_end"]

_INTERRUPTED = 130


class Ending:
    """Whether SIGTERM has come; changed by its handler only."""

    def __init__(self) -> None:
        self.terminated = False

    def __repr__(self) -> str:
        return f"<Ending {'by SIGTERM' if self.terminated else 'not asked for'}>"

    def take(self, number: int, frame: FrameType | None) -> None:
        """The handler: raise KeyboardInterrupt, but only once, so that cleaning up is not interrupted."""
        if self.terminated:
            return
        self.terminated = True
        # asyncio has a handler of its own for SIGINT. Shells start what is in the background with it
        # ignored, which is not meant for SIGTERM.
        interrupt = signal.getsignal(signal.SIGINT)
        if not callable(interrupt):
            raise KeyboardInterrupt
        interrupt(signal.SIGINT, frame)

    def status(self, status: int) -> int:
        """The exit status, as shells know it, of a command that would leave with `status`."""
        return 128 + signal.SIGTERM if self.terminated and status == _INTERRUPTED else status


@contextlib.contextmanager
def asked_to_end() -> Iterator[Ending]:
    """While the block runs, SIGTERM is a KeyboardInterrupt."""
    ending = Ending()
    if threading.current_thread() is not threading.main_thread():
        yield ending
        return
    before = signal.signal(signal.SIGTERM, ending.take)
    try:
        yield ending
    finally:
        signal.signal(signal.SIGTERM, before)
