"""Where a process of the router stands between its start and its end, and what moves it on.

A signal, the supervisor or its death moves it; the server, the protocol and the handlers look at it. Nobody
waits on it: all look several times a second, so signal handlers and threads may change it at any moment.
"""

from __future__ import annotations

import signal
from enum import IntEnum
from types import FrameType

__all__ = ["Life", "Phase", "after"]


class Phase(IntEnum):
    """In this order; a process never goes back.

    DRAINING: it still takes connections and requests, but is not ready, and each answer says
        `Connection: close`, so that load balancers and clients turn to another router.
    FINISHING: it takes no connection, and answers what is under way.
    LEAVING: it answers nothing more.
    """

    SERVING = 0
    DRAINING = 1
    FINISHING = 2
    LEAVING = 3


def after(phase: Phase, number: int) -> Phase:
    """The phase that the signal `number` leads to.

    SIGTERM comes from what also tells the load balancer, which needs time to notice; Ctrl-C comes from
    somebody who waits. A second signal of either kind ends the draining; only Ctrl-C cuts off requests.
    """
    if phase is Phase.SERVING:
        return Phase.DRAINING if number == signal.SIGTERM else Phase.FINISHING
    if phase is Phase.DRAINING:
        return Phase.FINISHING
    return Phase.LEAVING if number == signal.SIGINT else phase


class Life:
    """One process's phase, and what else it was told from outside.

    Attributes:
        ending: whether `phase` is beyond SERVING; each request looks at it.
        started: whether requests are being answered; set by the server.
        orphaned: whether the supervisor has died; set by the thread that listens to it.
    """

    def __init__(self) -> None:
        self.phase = Phase.SERVING
        self.ending = False
        self.started = False
        self.orphaned = False
        self._reload = False

    def __repr__(self) -> str:
        return f"<Life {self.phase.name.lower()}>"

    def advance(self, phase: Phase) -> None:
        if phase > self.phase:
            self.phase = phase
            self.ending = True

    def take_reload(self) -> bool:
        """Whether SIGHUP came since this was asked last."""
        asked, self._reload = self._reload, False
        return asked

    def obey_signals(self) -> None:
        """From now on SIGTERM, SIGINT and SIGHUP change this and nothing else. Call it in the main thread."""

        def told(number: int, frame: FrameType | None) -> None:
            self.advance(after(self.phase, number))

        def reload(number: int, frame: FrameType | None) -> None:
            self._reload = True

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, told)
        signal.signal(signal.SIGHUP, reload)
