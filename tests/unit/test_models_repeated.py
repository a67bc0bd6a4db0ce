"""When texts of documents are sent again, and when their service is given up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import pytest

from bench.simulation.virtual_time import run
from router.models.repeated import embed_repeatedly
from router.query.errors import (
    DeadlineError,
    InvalidError,
    MisconfiguredError,
    OverloadedError,
    RouterError,
    UnavailableError,
)
from shard_config.model import EmbeddingService

SERVICE = EmbeddingService("m", "http://127.0.0.1:1/v1", "m", 2)
DOWN = UnavailableError("down", retry_after=0.0)
LONG = InvalidError.at("text", "too long")
TEXTS = [str(i) for i in range(8)]


class Service:
    """Makes of each text its bytes, but for those that `fault` has an error for; a call takes a second."""

    def __init__(self, fault: Callable[[int, str], RouterError | None]) -> None:
        """`fault` of the number of a call, from 0, and a text."""
        self.fault = fault
        self.calls: list[tuple[float, list[str]]] = []

    async def __call__(
        self, service: EmbeddingService, texts: Sequence[str], deadline: float
    ) -> list[bytes | RouterError]:
        number = len(self.calls)
        self.calls.append((asyncio.get_running_loop().time(), list(texts)))
        await asyncio.sleep(1)
        return [self.fault(number, text) or text.encode() for text in texts]


def outcomes(
    service: Service, deadline: float = 1000.0, patience: float = 10.0
) -> tuple[list[bytes | RouterError], list[str], float]:
    """What became of `TEXTS`, what was told meanwhile, and how long it took."""
    told: list[str] = []

    async def main() -> tuple[list[bytes | RouterError], float]:
        found = await embed_repeatedly(
            service, SERVICE, TEXTS, deadline, patience, lambda fault: told.append(fault.detail)
        )
        return found, asyncio.get_running_loop().time()

    found, took = run(main())
    return found, told, took


def test_texts_that_all_get_vectors_are_sent_once() -> None:
    service = Service(lambda _, text: None)
    assert outcomes(service) == ([text.encode() for text in TEXTS], [], 1.0)
    assert len(service.calls) == 1


def test_only_what_may_still_get_a_vector_is_sent_again() -> None:
    def fault(call: int, text: str) -> RouterError | None:
        if text == "3":
            return LONG
        return DOWN if int(text) > 2 + 3 * call else None

    service = Service(fault)
    found, told, _ = outcomes(service)
    assert found == [LONG if text == "3" else text.encode() for text in TEXTS]
    assert [texts for _, texts in service.calls] == [TEXTS, TEXTS[4:], TEXTS[6:]]
    assert told == ["down", "down"]


@pytest.mark.parametrize("error", [DOWN, DeadlineError("late"), OverloadedError("busy", 0.5)])
def test_a_service_that_makes_no_vector_is_given_up_in_time(error: RouterError) -> None:
    service = Service(lambda _, text: error)
    found, _, took = outcomes(service, patience=10)
    assert found == [error] * 8
    assert len(service.calls) > 3
    assert 5 < took <= 11


def test_without_patience_it_is_asked_once() -> None:
    service = Service(lambda _, text: DOWN)
    assert outcomes(service, patience=0) == ([DOWN] * 8, [], 1.0)


def test_every_vector_begins_its_time_anew() -> None:
    # One of the texts left gets a vector in each third call.
    service = Service(lambda call, text: None if call % 3 == 2 and int(text) == call // 3 else DOWN)
    found, _, took = outcomes(service, patience=5)
    assert found == [text.encode() for text in TEXTS]
    assert took > 20


def test_no_wait_goes_beyond_the_deadline() -> None:
    service = Service(lambda _, text: DOWN if text == "7" else None)
    found, _, took = outcomes(service, deadline=6.0, patience=100)
    assert found == [*(text.encode() for text in TEXTS[:7]), DOWN]
    assert took <= 6.0


def test_a_service_is_not_asked_before_the_time_that_it_says() -> None:
    service = Service(lambda call, text: OverloadedError("busy", 7.0) if call < 2 else None)
    outcomes(service, patience=20)
    assert [at for at, _ in service.calls] == [0.0, 8.0, 16.0]
    late = Service(lambda _, text: OverloadedError("busy", 3600.0))
    assert outcomes(late)[2] == 1.0


def test_what_waiting_cannot_mend_is_not_waited_for() -> None:
    wrong = MisconfiguredError("makes 3 dimensions")
    service = Service(lambda _, text: wrong if text == "0" else DOWN)
    assert outcomes(service) == ([wrong, *[DOWN] * 7], [], 1.0)


def test_one_who_leaves_cancels_what_is_under_way() -> None:
    service = Service(lambda _, text: DOWN)

    async def main() -> None:
        work = asyncio.create_task(embed_repeatedly(service, SERVICE, TEXTS, 1000.0, 1000.0))
        await asyncio.sleep(30)
        calls = len(service.calls)
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
        await asyncio.sleep(100)
        assert work.cancelled() and len(service.calls) == calls

    run(main())
