"""Addresses of hosts by their names, without one name's silence holding up another's.

`getaddrinfo` blocks a thread for as long as the name's servers say nothing, tens of seconds, and cannot be
cancelled; the event loop's own look-ups share four threads. Here each look-up has a thread of its own, which
the end of the process does not wait for. It stays `getaddrinfo`, because that is what reads /etc/hosts and
nsswitch.conf as every other program on the machine does.

Invariants: at most one look-up is under way per name, so that there are never more threads than names; at
most `at_once` of those run that have begun within the last quarter of a second, and a later one holds up no
other; whoever waits may leave at any time. Addresses once found are used until there are newer ones, whatever
later look-ups say.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import logging
import socket
import threading
from collections import deque
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from time import monotonic

import msgspec

__all__ = ["Address", "Names"]

_logger = logging.getLogger(__name__)

# A name server that works answers within milliseconds. After this time a look-up counts no more against those
# that may run at once, and who knows the name's addresses from before takes these.
_LATE_SECONDS = 0.25
# From then on, until the log has a line about it.
_SILENT_SECONDS = 2.0
# Addresses of this age are taken without a look-up: many connections are opened at once.
_FRESH_SECONDS = 1.0
_LITERALS = 4096  # hosts that are remembered as addresses, or as none


class Address(msgspec.Struct, frozen=True):
    """Of one host; `scope` is the interface of a link-local one of IPv6."""

    family: int
    ip: str
    scope: int = 0

    def __str__(self) -> str:
        return self.ip

    def at(self, port: int) -> tuple[str, int] | tuple[str, int, int, int]:
        """What a socket connects to."""
        if self.family == socket.AF_INET6:
            # uvloop takes no more of it than the first two.
            return f"{self.ip}%{self.scope}" if self.scope else self.ip, port, 0, self.scope
        return self.ip, port


def look_up(host: str) -> tuple[Address, ...]:
    """The system's own look-up, which may block for as long as it likes.

    Raises:
        OSError: there are none.
    """
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    addresses = (
        Address(family, str(where[0]), int(where[3]) if len(where) == 4 else 0)
        for family, _, _, _, where in found
        if family in (socket.AF_INET, socket.AF_INET6)
    )
    return tuple(dict.fromkeys(addresses))


class _Name:
    """What is known of one name; changed by `Names` alone."""

    def __init__(self, host: str) -> None:
        self.host = host
        self.addresses: tuple[Address, ...] = ()
        self.found: frozenset[Address] = frozenset()
        self.tried = float("-inf")  # when the last look-up ended
        self.error: OSError | None = None  # of the last one, if it failed
        self.under_way: asyncio.Future[None] | None = None
        self.late = False
        self.told = False  # that it does not resolve


class Names:
    """For one event loop; the names are those of a configuration, so that their number is bounded.

    `interval` is the time between two look-ups of a name that is in use, in seconds.
    """

    def __init__(
        self,
        interval: float,
        *,
        at_once: int = 16,
        look_up: Callable[[str], tuple[Address, ...]] = look_up,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._interval = interval
        self._at_once = at_once
        self._look_up = look_up
        self._clock = clock
        self._names: dict[str, _Name] = {}
        self._queue: deque[_Name] = deque()
        self._running = 0  # that are not late

    def __repr__(self) -> str:
        stuck = sum(name.late for name in self._names.values())
        return f"<Names {len(self._names)} known, {self._running} looked up, {stuck} without an answer>"

    async def addresses(self, host: str) -> Sequence[Address]:
        """Where `host` is: as it was looked up within a second, or now, or else as it was known last.

        Raises:
            OSError: it has no address, and never had one. Without an answer it waits; the caller has a limit.
        """
        literal = _literal(host)
        if literal is not None:
            return (literal,)
        name = self._name(host)
        if self._clock() - name.tried > _FRESH_SECONDS:
            under_way = self._begin(name)
            if not name.addresses:
                await asyncio.wait([under_way])
            elif not name.late:
                await asyncio.wait([under_way], timeout=_LATE_SECONDS)
        if name.addresses:
            return name.addresses
        assert name.error is not None, "a look-up that has ended found addresses or failed"
        # Not the same one again: each time that it is raised, it keeps more of who asked.
        raise type(name.error)(*name.error.args)

    def left(self, host: str, address: Address) -> bool:
        """Whether `host`, which was at `address`, has been found elsewhere since.

        Begins another look-up if the last one was an `interval` ago.
        """
        name = self._names.get(host)
        if name is None:
            return False
        if name.under_way is None and self._clock() - name.tried > self._interval:
            self._begin(name)
        return bool(name.found) and address not in name.found

    def worked(self, host: str, address: Address) -> None:
        """Try this one of the host's addresses first from now on."""
        name = self._names.get(host)
        if name is not None and name.addresses[:1] != (address,) and address in name.found:
            name.addresses = (address, *(one for one in name.addresses if one != address))

    def _name(self, host: str) -> _Name:
        name = self._names.get(host)
        if name is None:
            name = self._names[host] = _Name(host)
        return name

    def _begin(self, name: _Name) -> asyncio.Future[None]:
        if name.under_way is None:
            name.under_way = asyncio.get_running_loop().create_future()
            self._queue.append(name)
            self._pump()
        return name.under_way

    def _pump(self) -> None:
        loop = asyncio.get_running_loop()
        while self._queue and self._running < self._at_once:
            name = self._queue.popleft()
            self._running += 1
            timer = loop.call_later(_LATE_SECONDS, self._is_late, name)
            thread = threading.Thread(
                target=self._work, args=(loop, name, timer), name=f"name {name.host}", daemon=True
            )
            try:
                thread.start()
            except RuntimeError:
                loop.call_soon(self._done, name, timer, OSError(errno.EAGAIN, "no thread to be had"))

    def _work(self, loop: asyncio.AbstractEventLoop, name: _Name, timer: asyncio.TimerHandle) -> None:
        """In a thread of its own."""
        outcome: tuple[Address, ...] | OSError
        try:
            outcome = self._look_up(name.host)
        except OSError as exc:
            outcome = exc
        except UnicodeError:
            outcome = socket.gaierror(socket.EAI_NONAME, "it is no name")
        if not outcome:
            outcome = socket.gaierror(socket.EAI_NONAME, "it has no address")
        # The loop may have ended meanwhile.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(self._done, name, timer, outcome)

    def _is_late(self, name: _Name) -> None:
        name.late = True
        self._running -= 1
        asyncio.get_running_loop().call_later(_SILENT_SECONDS, self._is_silent, name, name.under_way)
        self._pump()

    def _is_silent(self, name: _Name, under_way: asyncio.Future[None] | None) -> None:
        if name.under_way is under_way:
            self._tell(name, "there is no answer")

    def _done(self, name: _Name, timer: asyncio.TimerHandle, outcome: tuple[Address, ...] | OSError) -> None:
        timer.cancel()
        if not name.late:
            self._running -= 1
        name.tried = self._clock()
        if isinstance(outcome, OSError):
            self._tell(name, outcome.strerror or "it failed")
            name.error = outcome
        else:
            self._found(name, outcome)
        name.late = False
        under_way, name.under_way = name.under_way, None
        if under_way is not None and not under_way.done():
            under_way.set_result(None)
        self._pump()

    def _found(self, name: _Name, addresses: tuple[Address, ...]) -> None:
        say = partial(
            _logger.warning, extra={"host": name.host, "addresses": [str(one) for one in addresses]}
        )
        if name.told:
            say("name resolves again")
        elif name.found and name.found != frozenset(addresses):
            say("name has moved")
        name.told, name.error = False, None
        name.found = frozenset(addresses)
        # The one that worked last stays the first.
        name.addresses = tuple(sorted(addresses, key=lambda one: one != next(iter(name.addresses), None)))

    def _tell(self, name: _Name, reason: str) -> None:
        """Once per change: the name answers no more."""
        if not name.told:
            name.told = True
            _logger.warning(
                "name does not resolve",
                extra={"host": name.host, "reason": reason, "used": [str(one) for one in name.addresses]},
            )


@lru_cache(maxsize=_LITERALS)
def _literal(host: str) -> Address | None:
    """An address that is written where a name could be."""
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return None
    if ip.version == 4:
        return Address(socket.AF_INET, str(ip))
    if ip.scope_id is not None:
        return None  # the system knows the number of the interface
    return Address(socket.AF_INET6, str(ip))
