"""Starts the workers that share one port, replaces those that die, and ends them all.

Supervisor and worker are joined by a pipe. The supervisor asks over it whether the worker serves, and says
how far it shall go towards its end. Its other use is that the kernel closes it when the supervisor dies, in
whatever way: a worker that reads the end of it ends too, so that the port is free for the next router.

Invariants: every wait here ends with a signal, so a worker that hangs does not keep the supervisor from it;
and once all have served, one that cannot be started any more ends none of the others.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait

from prometheus_client.multiprocess import mark_process_dead
from uvicorn.importer import import_from_string

from router.http.life import Life, Phase
from router.http.server import CLOSING, Bounds, Factory, serve

__all__ = ["supervise"]

_logger = logging.getLogger(__name__)

_PING = b"?"
_STARTED, _STARTING = b"1", b"0"
_ROUND = 0.5
# Seconds without an answer after which a worker is killed. It imports numpy before it is asked, and a full
# collection or a large body may keep the thread that answers from running for a while.
_HUNG = 60.0
# Seconds after which an orphan leaves, whatever it waits for.
_ORPHAN_LEAVES = 4.0
# Seconds. One that has lived for longer is replaced at once, one that has not after a pause that doubles with
# each of its kind: a start takes a second of processor.
_YOUNG = 60.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_spawn = multiprocessing.get_context("spawn")


def supervise(
    app: str,
    listener: socket.socket,
    life: Life,
    bounds: Bounds,
    *,
    workers: int,
    ready: Callable[[], None] = lambda: None,
    ending: Callable[[], None] = lambda: None,
) -> int:
    """Serve what the function named `module:function` makes by several processes; returns the exit status.

    They are new processes that share no memory. `ready` is called once, when all of them answer requests.
    Signals must go to `life`.
    """
    return _Supervisor(app, listener, life, bounds, workers, ready, ending).run()


class _Worker:
    """A process, and after its death the time until it is replaced.

    Attributes:
        short_lives: how many in a row had died young where this one stands now.
        replaced_at: when another takes its place; None while it lives.
    """

    def __init__(self, app: str, listener: socket.socket, bounds: Bounds, short_lives: int = 0) -> None:
        self.pipe, inner = _spawn.Pipe()
        self.process = _spawn.Process(target=_work, args=(app, listener, bounds, inner))
        # A terminal, or systemd, sends signals to all processes at once, and one that still imports what it
        # needs would die of them. They wait until `Life` takes them.
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        inner.close()  # so that the worker's end alone keeps the pipe open
        self.started = False
        self.short_lives = short_lives
        self.replaced_at: float | None = None
        self.heard = self._born = time.monotonic()
        self._asked = False
        self._phase = Phase.SERVING

    def __repr__(self) -> str:
        return f"<Worker {self.process.pid}, {'started' if self.started else 'starting'}>"

    def ask(self) -> None:
        """Note what it has answered, and ask again."""
        try:
            while self.pipe.poll():
                self.started = self.pipe.recv_bytes() == _STARTED
                self.heard = time.monotonic()
                self._asked = False
            if not self._asked:  # what nobody reads would fill the pipe
                self._asked = True
                self.pipe.send_bytes(_PING)
        except (OSError, EOFError):  # it has died, which its process tells
            pass

    def tell(self, phase: Phase) -> None:
        if phase > self._phase:
            self._phase = phase
            try:
                self.pipe.send_bytes(bytes([phase]))
            except OSError:
                pass

    def bury(self) -> float:
        """Note that it has died; returns the seconds until it is to be replaced."""
        now = time.monotonic()
        if now - self._born >= _YOUNG:
            self.short_lives = 0
        seconds = pause(self.short_lives)
        self.short_lives += 1
        self.replaced_at = now + seconds
        return seconds

    def kill(self) -> None:
        self.process.kill()
        self.process.join()

    def close(self) -> None:
        self.pipe.close()
        self.process.close()


def pause(short_lives: int) -> float:
    """Seconds until a worker is replaced, after so many before it that died young."""
    if not short_lives:
        return 0.0
    return float(min(_FIRST_PAUSE * 2 ** min(short_lives - 1, 16), _LONGEST_PAUSE))


class _Supervisor:
    def __init__(
        self,
        app: str,
        listener: socket.socket,
        life: Life,
        bounds: Bounds,
        workers: int,
        ready: Callable[[], None],
        ending: Callable[[], None],
    ) -> None:
        self._app = app
        self._listener = listener
        self._life = life
        self._bounds = bounds
        self._count = workers
        self._ready: Callable[[], None] | None = ready
        self._ending = ending
        self._workers: list[_Worker] = []
        self._failed = False
        # A signal writes a byte into one end, so that whoever waits for the other end wakes up.
        self._wake, self._signalled = socket.socketpair()

    def run(self) -> int:
        for end in (self._wake, self._signalled):
            end.setblocking(False)
        before = signal.set_wakeup_fd(self._signalled.fileno(), warn_on_full_buffer=False)
        try:
            resource_tracker.ensure_running()  # else the first worker's start would, and unblock signals
            self._workers = [self._start() for _ in range(self._count)]
            while not (self._life.ending or self._failed):
                # Often until all have started, since somebody waits for that.
                self._wait(_ROUND if self._ready is None else 0.1)
                self._tend()
            self._ending()
            self._end()
        finally:
            signal.set_wakeup_fd(before)
            for worker in self._workers:
                worker.kill()
            self._wake.close()
            self._signalled.close()
        return 1 if self._failed else 0

    def _start(self, short_lives: int = 0) -> _Worker:
        return _Worker(self._app, self._listener, self._bounds, short_lives)

    def _wait(self, seconds: float) -> None:
        """Until a worker ends, a signal comes, or `seconds` have passed."""
        living = [worker.process for worker in self._workers if worker.process.is_alive()]
        wait([self._wake, *(process.sentinel for process in living)], seconds)
        try:
            while self._wake.recv(4096):
                pass
        except BlockingIOError:
            pass

    def _tend(self) -> None:
        for i, worker in enumerate(self._workers):
            worker.ask()
            if worker.process.is_alive() and time.monotonic() - worker.heard > _HUNG:
                _logger.error("worker %s does not answer and is killed", worker.process.pid)
                worker.kill()
            if not worker.process.is_alive():
                if worker.replaced_at is None:
                    self._note_death(worker)
                if worker.replaced_at is not None and time.monotonic() >= worker.replaced_at:
                    worker.close()
                    self._workers[i] = self._start(worker.short_lives)
        if self._ready is not None and all(worker.started for worker in self._workers):
            self._ready()
            self._ready = None

    def _note_death(self, worker: _Worker) -> None:
        """Decide when it is replaced, unless that is of no use or not wanted any more."""
        pid = worker.process.pid
        assert pid is not None
        if self._life.ending:
            return
        unstarted = not worker.started and worker.process.exitcode == 1
        others = any(one.started and one.process.is_alive() for one in self._workers)
        if self._ready is not None or (unstarted and not others):
            # One that ends before it has served would do so again when it is replaced.
            _logger.error("worker %s did not start", pid)
            self._failed = True
            return
        mark_process_dead(pid)  # type: ignore[no-untyped-call]
        seconds = worker.bury()
        fields = {"exit": worker.process.exitcode, "replaced_in_s": seconds}
        if unstarted:
            _logger.error("worker %s did not start, and is tried again", pid, extra=fields)
        else:
            _logger.warning("worker %s died and is replaced", pid, extra=fields)

    def _end(self) -> None:
        self._life.advance(Phase.FINISHING if self._failed else Phase.DRAINING)
        # The workers have it. Open here, it would take connections that nobody accepts any more.
        self._listener.close()
        end = time.monotonic() + self._bounds.drain_delay + self._bounds.drain_timeout + CLOSING
        while alive := [worker for worker in self._workers if worker.process.is_alive()]:
            if time.monotonic() >= end:
                break
            for worker in alive:
                worker.tell(self._life.phase)
            self._wait(_ROUND)
        for worker in alive:
            _logger.error("worker %s did not end in time and is killed", worker.process.pid)


def _work(app: str, listener: socket.socket, bounds: Bounds, pipe: Connection) -> None:
    """What a worker does, from its start to its end."""
    life = Life()
    life.obey_signals()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    threading.Thread(target=_obey, args=(pipe, life), name="supervisor", daemon=True).start()
    factory: Factory = import_from_string(app)
    sys.exit(serve(factory, listener, life, bounds))


def _obey(pipe: Connection, life: Life) -> None:
    """Answer and obey the supervisor until it dies; then end, too."""
    try:
        while True:
            message = pipe.recv_bytes()
            if message == _PING:
                pipe.send_bytes(_STARTED if life.started else _STARTING)
            else:
                life.advance(Phase(message[0]))
    except (OSError, EOFError):
        pass
    _logger.error("the supervisor is gone; this worker ends", extra={"pid": os.getpid()})
    life.orphaned = True
    life.advance(Phase.FINISHING)
    time.sleep(_ORPHAN_LEAVES)
    os._exit(1)
