from __future__ import annotations

import asyncio

import pytest

from router.query.errors import AnswerTooLargeError, OverloadedError
from router.stages.answer_memory import AnswerMemory, BatchRoom, Reservation


def soon(seconds: float = 5.0) -> float:
    return asyncio.get_running_loop().time() + seconds


async def test_memory_is_given_first_come_first_served_and_back_with_the_last_reference() -> None:
    memory = AnswerMemory(100, 100)
    first: Reservation | None = await memory.take(70, soon())
    waiting = [asyncio.create_task(memory.take(size, soon())) for size in (60, 10)]
    await asyncio.sleep(0.01)
    # The second would fit, but is not served before the first.
    assert not any(task.done() for task in waiting) and memory.used == 70
    del first
    await asyncio.wait(waiting)
    assert memory.used == 70
    waiting.clear()
    await asyncio.sleep(0)
    assert memory.used == 0


async def test_more_than_there_is_takes_all_and_what_it_turns_out_to_be_counts() -> None:
    memory = AnswerMemory(100, 100)
    reservation = await memory.take(1000, soon())
    assert memory.used == 100
    reservation.resize(30)
    assert memory.used == 30 and "30/100 bytes" in repr(memory)
    reservation.release()
    reservation.release()
    assert memory.used == 0


async def test_nobody_waits_beyond_its_deadline_and_leaving_takes_nothing_along() -> None:
    memory = AnswerMemory(100, 100)
    reservation = await memory.take(100, soon())
    with pytest.raises(OverloadedError, match="100 of 100 bytes"):
        await memory.take(50, soon(0.02))
    leaving = asyncio.create_task(memory.take(80, soon()))
    staying = asyncio.create_task(memory.take(50, soon()))
    await asyncio.sleep(0.01)
    leaving.cancel()
    reservation.release()  # lets the first in, in the turn in which it leaves
    got = await asyncio.wait_for(staying, 20)
    assert memory.used == got.size_bytes == 50
    with pytest.raises(asyncio.CancelledError):
        await leaving


async def test_only_so_many_wait() -> None:
    memory = AnswerMemory(1, 1)
    reservation = await memory.take(1, soon())
    waiting = [asyncio.create_task(memory.take(1, soon())) for _ in range(64)]
    await asyncio.sleep(0.01)
    with pytest.raises(OverloadedError, match="64 wait"):
        await memory.take(1, soon())
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    reservation.release()
    assert memory.used == 0 and (await memory.take(1, soon())).size_bytes == 1


async def test_those_who_have_left_keep_nobody_from_waiting() -> None:
    memory = AnswerMemory(1, 1)
    reservation = await memory.take(1, soon())
    first, *others = [asyncio.create_task(memory.take(1, soon())) for _ in range(64)]
    await asyncio.sleep(0.01)
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    assert "1 waiting" in repr(memory)
    last = asyncio.create_task(memory.take(1, soon()))
    await asyncio.sleep(0.01)
    reservation.release()
    (await first).release()
    assert (await last).size_bytes == 1


async def test_a_batch_takes_no_more_than_an_answer_may_and_does_not_wait_for_it() -> None:
    memory = AnswerMemory(100, 150)
    one, other = BatchRoom(memory), BatchRoom(memory)
    one.add(60, counted=False)
    one.add(20, counted=True)
    assert (one.left, memory.used) == (20, 60)
    with pytest.raises(AnswerTooLargeError, match="20 bytes"):
        one.add(21, counted=False)
    other.add(90, counted=False)
    with pytest.raises(OverloadedError):
        other.add(1, counted=False)
    del one, other
    assert memory.used == 0
