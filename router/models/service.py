"""One HTTP service: a bounded number of requests to it, repeated where that may help, behind a circuit.

Invariants: a request ends by its deadline; at most `model_requests` are under way and `model_queue` wait;
what is repeated is only what a repetition can help, while there is time for it; every outcome is told to the
circuit once; no error and no log line holds the key.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import ssl
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from time import perf_counter, time
from typing import Literal, TypeAlias, TypeVar

import httpcore
import msgspec

from router.models.messages import AnswerError, DimensionsError, words_of_refusal
from router.models.status import Kind, RefusedError, ServiceListener, ServiceStatus
from router.network.dial import Network
from router.network.http_client import Connections, TooLargeError
from router.policy.circuit import Circuit, Leave
from router.query.errors import (
    DeadlineError,
    MisconfiguredError,
    OverloadedError,
    Problem,
    RouterError,
    UnavailableError,
)
from router.settings import Settings

__all__ = ["Service"]

_logger = logging.getLogger(__name__)

T = TypeVar("T")
# Why a request failed, for metrics.
Cause: TypeAlias = Literal[
    "connect", "closed", "timeout", "busy", "unavailable", "answer", "refused", "misconfigured", "deadline",
    "circuit", "queue",
]  # fmt: skip

# Seconds before the second attempt; each further one waits twice as long. The jitter takes up to half of it.
_FIRST_WAIT = 0.02
_LONGEST_WAIT = 1.0
# What a service may ask for by `Retry-After`; digits can say more than any clock does.
_LONGEST_ASKED = 86_400.0
# Between two lines of the log about a service that the map has wrong: one that is so only sometimes, since
# several stand behind its load balancer, must not fill the log.
_REMIND_SECONDS = 60.0
# An idle connection is used again for so long; most servers close one after 5 s or more.
_IDLE_SECONDS = 30.0
_AGAIN = (502, 503, 504)
_REFUSALS = (400, 413, 422)


class _Fault(Exception):
    """One attempt has failed.

    Attributes:
        again: another attempt may help.
        failing: the service itself is to blame, so that it counts for the circuit.
        wait: seconds that the service asks for before another attempt.
    """

    def __init__(
        self,
        cause: Cause,
        detail: str,
        *,
        again: bool = False,
        failing: bool = True,
        wait: float | None = None,
    ) -> None:
        super().__init__(detail)
        self.cause, self.detail = cause, detail
        self.again, self.failing, self.wait = again, failing, wait


class Service:
    """The service called `name`, of which `post` asks at `url`."""

    def __init__(
        self,
        name: str,
        kind: Kind,
        url: str,
        model: str,
        *,
        key: str | None,
        api_version: str | None,
        timeout: float,
        settings: Settings,
        network: Network,
        listener: ServiceListener | None = None,
        rng: Callable[[], float] = random.random,
    ) -> None:
        """`timeout` of one attempt, in seconds; `rng` gives numbers from 0 to 1."""
        self.name = name
        self.kind = kind
        self._url = url
        self._model = model
        self._key = key
        self._timeout = timeout
        self._settings = settings
        self._listener = listener
        self._rng = rng
        self._headers = _headers(key, azure=api_version is not None)
        target = url if api_version is None else f"{url}?api-version={api_version}"
        secure = ssl.create_default_context() if url.startswith("https:") else None
        self._connections = Connections(target, network, secure, _IDLE_SECONDS)
        self._circuit = Circuit(settings.model_failures, settings.model_pause, settings.model_pause_max)
        self._free = asyncio.Semaphore(settings.model_requests)
        self._in_flight = self._waiting = 0
        self._requests = self._failures = 0
        self._reason: str | None = None
        self._remind_at = -math.inf

    def __repr__(self) -> str:
        return (
            f"<Service {self.name}: {self._circuit!r}, {self._in_flight} in flight, {self._waiting} waiting>"
        )

    def status(self) -> ServiceStatus:
        return ServiceStatus(
            self.name,
            self.kind,
            self._model,
            self._circuit.state(),
            self._in_flight,
            self._waiting,
            self._requests,
            self._failures,
            self._url,
            msgspec.UNSET if self._reason is None else self._reason,
        )

    async def post(self, body: bytes, read: Callable[[bytes], T], deadline: float) -> T:
        """What `read` makes of the answer to `body`.

        Args:
            read: raises AnswerError or DimensionsError for what is no answer to this request.

        Raises:
            RefusedError, UnavailableError, DeadlineError, OverloadedError, MisconfiguredError
        """
        self._requests += 1
        started = perf_counter()
        try:
            await self._turn(deadline)
            self._in_flight += 1
            try:
                answer = await self._attempts(body, read, deadline)
            finally:
                self._in_flight -= 1
                self._free.release()
        except _Fault as fault:
            self._failures += 1
            if fault.cause not in ("circuit", "queue"):
                self._reason = fault.detail
            if self._listener is not None:
                self._listener.service_failed(self.kind, self.name, fault.cause)
            raise self._error(fault) from (fault.__cause__ or fault)
        self._reason = None
        if self._listener is not None:
            self._listener.service_answered(self.kind, self.name, perf_counter() - started)
        return answer

    async def close(self) -> None:
        await self._connections.close()

    async def _turn(self, deadline: float) -> None:
        """
        Raises:
            _Fault: too many wait, or there is no time left.
        """
        if self._free.locked() and self._waiting >= self._settings.model_queue:
            most = self._settings.model_queue
            raise _Fault("queue", f"has {most} requests waiting already, the most that may", failing=False)
        self._waiting += 1
        try:
            async with asyncio.timeout_at(deadline):
                await self._free.acquire()
        except TimeoutError:
            raise _Fault("deadline", "had other requests to answer until time ran out") from None
        finally:
            self._waiting -= 1

    async def _attempts(self, body: bytes, read: Callable[[bytes], T], deadline: float) -> T:
        loop = asyncio.get_running_loop()
        last: _Fault | None = None
        try:
            for attempt in range(self._settings.model_attempts):
                leave = self._circuit.admit(loop.time())
                if leave is None:
                    raise last or self._not_asked(loop.time())
                try:
                    answer = await self._attempt(body, read, deadline)
                except _Fault as fault:
                    self._note(leave, fault)
                    last = fault
                except BaseException:
                    self._circuit.released(leave)  # whoever asked has left
                    raise
                else:
                    self._note(leave, None)
                    return answer
                wait = self._wait(last, attempt)
                if not last.again or loop.time() + wait >= deadline:
                    break
                if attempt + 1 < self._settings.model_attempts:
                    await asyncio.sleep(wait)
            assert last is not None, "there is at least one attempt"
            raise last
        finally:
            last = None  # an error holds the frames that it passes, and this one would hold it in turn

    async def _attempt(self, body: bytes, read: Callable[[bytes], T], deadline: float) -> T:
        now = asyncio.get_running_loop().time()
        own = now + self._timeout
        try:
            async with asyncio.timeout_at(min(own, deadline)):
                status, retry_after, data = await self._exchange(body)
        except TimeoutError:
            if deadline <= own:
                # Shorter than the service is given, so it says nothing of the service.
                raise _Fault("deadline", "did not answer before time ran out", failing=False) from None
            raise _Fault("timeout", f"did not answer within {self._timeout:g}s") from None
        except httpcore.ConnectError as exc:
            raise _Fault("connect", f"cannot be reached: {exc}", again=True) from exc
        except (httpcore.NetworkError, httpcore.RemoteProtocolError) as exc:
            raise _Fault("closed", "closed the connection before it had answered", again=True) from exc
        except (httpcore.ProtocolError, httpcore.UnsupportedProtocol, ValueError, OSError) as exc:
            raise _Fault("answer", f"cannot be spoken to: {exc}") from exc
        if status != 200:
            raise self._refusal(status, retry_after, data)
        try:
            return read(data)
        except AnswerError as exc:
            raise _Fault("answer", f"cannot be understood: {exc}") from exc
        except DimensionsError as exc:
            raise _Fault("misconfigured", f"is another one than the map says: {exc}", failing=False) from exc

    async def _exchange(self, body: bytes) -> tuple[int, float | None, bytes]:
        """Status, the seconds of `Retry-After`, and body of the answer."""
        most = self._settings.model_answer_bytes
        try:
            response, data = await self._connections.request("POST", self._headers, body, most)
        except TooLargeError:
            raise _Fault("answer", f"answers with more than {most} bytes") from None
        wait = next((value for name, value in response.headers if name.lower() == b"retry-after"), None)
        return response.status, None if wait is None else _seconds(wait), data

    def _refusal(self, status: int, wait: float | None, data: bytes) -> _Fault:
        if status == 429:
            return _Fault("busy", "has too much to do (429)", again=True, failing=False, wait=wait)
        if status in (401, 403):
            # What it says may repeat the key.
            return _Fault("misconfigured", f"does not take the key ({status})", failing=False)
        words = words_of_refusal(data, self._key)
        said = f"answers {status}: {words}" if words else f"answers {status}"
        if status in _REFUSALS:
            return _Fault("refused", said, failing=False)
        if status >= 500:
            return _Fault("unavailable", said, again=status in _AGAIN, wait=wait)
        if status == 408:
            return _Fault("closed", said, again=True)
        return _Fault("misconfigured", said, failing=False)

    def _wait(self, fault: _Fault, attempt: int) -> float:
        grown = min(_FIRST_WAIT * 2.0**attempt, _LONGEST_WAIT)
        return max(fault.wait or 0.0, grown * (0.5 + 0.5 * self._rng()))

    def _note(self, leave: Leave, fault: _Fault | None) -> None:
        """Tell the circuit, and the log of what becomes of it."""
        about = {"service": self.name, "kind": self.kind}
        now = asyncio.get_running_loop().time()
        if fault is not None and fault.cause == "misconfigured" and now >= self._remind_at:
            # The circuit stays closed, and a search that wanted re-ranking is answered without it.
            self._remind_at = now + _REMIND_SECONDS
            _logger.warning(
                "service for texts is not as the map says", extra=about | {"reason": fault.detail}
            )
        if fault is not None and fault.cause == "deadline":
            self._circuit.released(leave)
        elif fault is None or not fault.failing:
            if self._circuit.succeeded(leave):
                _logger.info("service for texts answers again", extra=about)
        elif self._circuit.failed(leave, now):
            more = {"reason": fault.detail, "pause_s": round(self._circuit.wait(now), 3)}
            _logger.warning("service for texts fails and is not asked for a while", extra=about | more)

    def _not_asked(self, now: float) -> _Fault:
        wait = self._circuit.wait(now)
        why = self._reason or "it failed"
        return _Fault(
            "circuit", f"is not asked for another {wait:.1f}s, since it kept failing: {why}", wait=wait
        )

    def _error(self, fault: _Fault) -> RouterError:
        what = f"the {self.kind} service {self.name}"
        detail = f"{what} ({self._url}) {fault.detail}"
        match fault.cause:
            case "refused":
                hidden = f"{what} does not take it"
                refused = RefusedError(f"text: {detail}", [Problem("text", detail)])
                return refused.hidden(f"text: {hidden}", [Problem("text", hidden)])
            case "misconfigured":
                return MisconfiguredError(detail).hidden(f"{what} is not set up for this")
            case "busy" | "queue":
                return OverloadedError(detail, fault.wait or 1.0).hidden(f"{what} has too much to do")
            case "deadline":
                return DeadlineError(detail).hidden(f"{what} did not answer in time")
        return UnavailableError(detail, retry_after=fault.wait or 1.0).hidden(f"{what} cannot answer")


def _headers(key: str | None, *, azure: bool) -> list[tuple[bytes, bytes]]:
    headers = [(b"content-type", b"application/json"), (b"accept", b"application/json")]
    if key is not None and azure:
        headers.append((b"api-key", key.encode()))
    elif key is not None:
        headers.append((b"authorization", b"Bearer " + key.encode()))
    return headers


def _seconds(retry_after: bytes) -> float | None:
    """Of a header's value, which is a number of seconds or a date; None if it is neither."""
    text = retry_after.decode("latin-1").strip()
    try:
        seconds = float(text) if text[:1].isdigit() else parsedate_to_datetime(text).timestamp() - time()
    except (ValueError, OverflowError):
        return None
    # Whoever asks is told the same, which must be a number that they can read.
    return min(max(0.0, seconds), _LONGEST_ASKED)
