"""A model's thread, and the requests that wait for it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from router.model_service.backend import Output
from router.model_service.errors import BusyError, InvalidBodyError, ModelFailedError, NotServingError
from router.model_service.limits import Limits
from router.model_service.worker import Job, Worker
from tests.unit.gated_models import SECONDS, GatedModel, Told


def job(*texts: str, finish: Callable[[Output], bytes] | None = None) -> Job[str]:
    return Job(texts, list(map(len, texts)), finish or seen)


def seen(output: Output) -> bytes:
    """Of each text the length, by its vector."""
    return json.dumps([round(float(x / y)) for x, y in output.values]).encode()


@asynccontextmanager
async def working(model: Any, **limits: Any) -> AsyncIterator[tuple[Worker[str], Told]]:
    told = Told()
    worker: Worker[str] = Worker("m", model, Limits(**limits), told)
    try:
        yield worker, told
    finally:
        model.gate.set()
        worker.stop()
        await ended(worker)


async def called(model: GatedModel) -> None:
    """Wait until one more call of the model has begun."""
    assert await asyncio.to_thread(model.called.acquire, timeout=SECONDS)


async def ended(worker: Worker[str]) -> None:
    await asyncio.wait_for(worker.ended.wait(), SECONDS)


async def waiting(worker: Worker[str], items: int) -> None:
    async with asyncio.timeout(SECONDS):
        while worker.waiting != items:
            await asyncio.sleep(0.001)


async def test_an_answer_has_each_text_at_its_place() -> None:
    async with working(GatedModel()) as (worker, told):
        assert await worker.answer(job("ccc", "a", "bb"), SECONDS) == b"[3, 1, 2]"
        assert told.batches == [3] and told.tokens == 3


async def test_requests_that_come_during_a_call_leave_together_shortest_first() -> None:
    model = GatedModel(closed=True)
    async with working(model) as (worker, told):
        first = asyncio.create_task(worker.answer(job("first"), SECONDS))
        await called(model)  # alone, since nothing else was there
        rest = [
            asyncio.create_task(worker.answer(one, SECONDS))
            for one in (job("dddd", "a"), job("ccc"), job("bb"))
        ]
        await waiting(worker, 4)
        model.gate.set()
        assert await first == b"[5]"
        assert await asyncio.gather(*rest) == [b"[4, 1]", b"[3]", b"[2]"]
        assert model.calls == [["first"], ["a", "bb", "ccc", "dddd"]]
        assert told.batches == [1, 4]


async def test_a_large_request_is_cut_and_a_small_one_is_not_behind_all_of_it() -> None:
    model = GatedModel(closed=True)
    async with working(model, batch_texts=4) as (worker, _):
        large = asyncio.create_task(worker.answer(job(*["x"] * 100), SECONDS))
        await called(model)
        small = asyncio.create_task(worker.answer(job("small"), SECONDS))
        await waiting(worker, 97)
        model.gate.set()
        assert await small == b"[5]"
        assert await large == json.dumps([1] * 100).encode()
        assert max(map(len, model.calls)) == 4
        assert next(n for n, call in enumerate(model.calls) if "small" in call) <= 2


async def test_long_texts_are_given_to_the_model_in_smaller_batches() -> None:
    model = GatedModel()
    async with working(model, batch_chars=10) as (worker, _):
        await worker.answer(job("a" * 4, "b" * 5, "c" * 20, "d" * 6), SECONDS)
    assert [list(map(len, call)) for call in model.calls] == [[4, 5], [6], [20]]


async def test_a_request_that_its_caller_left_is_not_computed() -> None:
    model = GatedModel(closed=True)
    async with working(model) as (worker, told):
        first = asyncio.create_task(worker.answer(job("first"), SECONDS))
        await called(model)
        left = asyncio.create_task(worker.answer(job("left", "left too"), SECONDS))
        await waiting(worker, 2)
        left.cancel()
        with pytest.raises(asyncio.CancelledError):
            await left
        assert worker.waiting == 0 and told.left == 1
        model.gate.set()
        assert await first == b"[5]"
        assert await worker.answer(job("next"), SECONDS) == b"[4]"
        assert model.calls == [["first"], ["next"]]


async def test_a_request_that_its_caller_left_half_way_gets_no_further_batch() -> None:
    model = GatedModel(closed=True)
    async with working(model, batch_texts=2) as (worker, told):
        left = asyncio.create_task(worker.answer(job(*["x"] * 50), SECONDS))
        await called(model)
        left.cancel()
        with pytest.raises(asyncio.CancelledError):
            await left
        assert worker.waiting == 0 and told.left == 1
        model.gate.set()
        assert await worker.answer(job("next"), SECONDS) == b"[4]"
        assert model.calls == [["x", "x"], ["next"]]


async def test_an_answer_that_takes_too_long_is_given_up() -> None:
    model = GatedModel(closed=True)
    async with working(model) as (worker, told):
        with pytest.raises(
            NotServingError, match=r"model 'm' did not answer 1 texts within 0\.01 s"
        ) as caught:
            await worker.answer(job("late"), 0.01)
        assert caught.value.retry_after and told.left == 1


async def test_more_texts_than_may_wait_are_refused_with_when_to_come_again() -> None:
    model = GatedModel(closed=True)
    async with working(model, queue_texts=5) as (worker, _):
        large = asyncio.create_task(worker.answer(job(*["x"] * 100), SECONDS))
        await called(model)  # none waited, so it may be larger than the limit
        with pytest.raises(
            BusyError, match="37 texts of 37 characters would wait for model 'm'; at most 5"
        ) as caught:
            await worker.answer(job("y"), SECONDS)
        assert caught.value.retry_after == 1
        model.gate.set()
        await large
        assert await worker.answer(job("y"), SECONDS) == b"[1]"


async def test_more_characters_than_may_wait_are_refused() -> None:
    model = GatedModel(closed=True)
    async with working(model, queue_chars=10) as (worker, _):
        tasks = [asyncio.create_task(worker.answer(job("first"), SECONDS))]
        await called(model)
        tasks.append(asyncio.create_task(worker.answer(job("second"), SECONDS)))
        await waiting(worker, 1)
        with pytest.raises(BusyError, match="of 11 characters"):
            await worker.answer(job("third"), SECONDS)
        model.gate.set()
        assert await asyncio.gather(*tasks) == [b"[5]", b"[6]"]


async def test_the_request_to_blame_for_a_failed_call_fails_alone(caplog: pytest.LogCaptureFixture) -> None:
    model = GatedModel(closed=True)
    async with working(model) as (worker, told):
        first = asyncio.create_task(worker.answer(job("first"), SECONDS))
        await called(model)
        rest = [
            asyncio.create_task(worker.answer(one, SECONDS))
            for one in (job("good"), job("poison", "fine"), job("better"))
        ]
        await waiting(worker, 4)
        model.gate.set()
        await first
        found = await asyncio.gather(*rest, return_exceptions=True)
        assert found[0] == b"[4]" and found[2] == b"[6]"
        assert isinstance(found[1], ModelFailedError) and "ValueError" in found[1].message
        assert "poison" not in found[1].message
        assert told.failures == 1
    assert caplog.messages == ["model failed"]


async def test_a_failed_request_gets_no_further_batch() -> None:
    model = GatedModel()
    async with working(model, batch_texts=2) as (worker, _):
        with pytest.raises(ModelFailedError):
            await worker.answer(job("poison", *["long enough"] * 20), SECONDS)
        await worker.answer(job("next"), SECONDS)
        assert worker.waiting == 0 and len(model.calls) == 2


async def test_what_is_wrong_with_an_output_is_the_requests_own_error() -> None:
    def refuse(output: Output) -> bytes:
        raise InvalidBodyError("no")

    async with working(GatedModel()) as (worker, _):
        with pytest.raises(InvalidBodyError):
            await worker.answer(job("a", finish=refuse), SECONDS)
        assert await worker.answer(job("b"), SECONDS) == b"[1]"


async def test_a_model_that_loses_a_text_has_failed() -> None:
    class Losing(GatedModel):
        def run(self, items: Any) -> Output:
            return super().run(items[1:])

    async with working(Losing()) as (worker, _):
        with pytest.raises(ModelFailedError):
            await worker.answer(job("a", "b"), SECONDS)


async def test_a_stopped_worker_fails_what_waits_and_takes_nothing_more() -> None:
    model = GatedModel(closed=True)
    async with working(model) as (worker, _):
        under_way = asyncio.create_task(worker.answer(job("first"), SECONDS))
        await called(model)
        late = asyncio.create_task(worker.answer(job("late"), SECONDS))
        await waiting(worker, 1)
        worker.stop()
        with pytest.raises(NotServingError, match="the service ends"):
            await late
        with pytest.raises(NotServingError):
            await worker.answer(job("later"), SECONDS)
        model.gate.set()
        assert await under_way == b"[5]"
        await ended(worker)
        assert worker.stuck(3600)  # nothing more can come of it


async def test_a_call_that_does_not_end_makes_the_model_stuck_until_it_does() -> None:
    model = GatedModel(closed=True)
    async with working(model) as (worker, _):
        assert not worker.stuck(0)
        task = asyncio.create_task(worker.answer(job("first"), SECONDS))
        await called(model)
        async with asyncio.timeout(SECONDS):
            while not worker.stuck(0):
                await asyncio.sleep(0.001)
        assert not worker.stuck(3600)
        model.gate.set()
        await task
        async with asyncio.timeout(SECONDS):
            while worker.stuck(0):
                await asyncio.sleep(0.001)


async def test_what_a_worker_says_of_itself_is_true() -> None:
    model = GatedModel(closed=True)
    async with working(model) as (worker, _):
        task = asyncio.create_task(worker.answer(job("first"), SECONDS))
        await called(model)
        more = asyncio.create_task(worker.answer(job("a", "b"), SECONDS))
        await waiting(worker, 2)
        assert repr(worker) == "<Worker 'm', 2 items of 1 requests wait>"
        for one in (task, more):
            one.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await one
