"""Whose turn it is to open a connection, and how long a node that is down is left alone."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from math import inf

import pytest

from bench.simulation.virtual_time import run
from router.nodes.node import Node
from router.nodes.opening import Turns
from router.policy.backoff import pause
from router.policy.limit import Limit
from router.policy.openings import Opening, Openings, Urgency
from router.postgres.connection import Connection, ErrorKind, NodeError
from router.settings import Settings
from shard_config import model

ORDER = [Urgency.REQUEST, Urgency.SHARD, Urgency.NODE, Urgency.SPARE]


def always(urgency: Urgency) -> Callable[[], Urgency]:
    return lambda: urgency


def test_the_most_needed_are_opened_first_and_those_alike_in_the_order_of_asking() -> None:
    openings = Openings(1)
    asked = [Opening(always(urgency), number / 100) for number, urgency in enumerate([*ORDER[::-1]] * 2)]
    for opening in asked:
        openings.ask(opening)
    order = []
    while (opening := openings.begin(1.0)) is not None:
        order.append(opening)
        assert openings.begin(1.0) is None
        openings.end(opening)
    assert order == sorted(asked, key=lambda opening: (opening.urgency(), opening.asked))


def test_nobody_is_overtaken_for_ever() -> None:
    openings = Openings(1)
    spare = Opening(always(Urgency.SPARE), 0.0)
    openings.ask(spare)
    now = 0.0
    while True:
        openings.ask(Opening(always(Urgency.REQUEST), now))
        opening = openings.begin(now)
        assert opening is not None
        openings.end(opening)
        if opening is spare:
            break
        now += 0.5
    assert now == 5.0


def test_one_that_is_needed_less_by_now_gives_way() -> None:
    openings, needed = Openings(1), [Urgency.SHARD]
    first = Opening(lambda: needed[0], 0.0)
    second = Opening(always(Urgency.SHARD), 0.1)
    openings.ask(first)
    openings.ask(second)
    needed[0] = Urgency.NODE
    assert openings.begin(0.2) is second
    openings.end(second)
    assert openings.begin(0.2) is first
    alone = Opening(lambda: needed[0], 0.2)
    openings.end(first)
    needed[0] = Urgency.SHARD
    openings.ask(alone)
    needed[0] = Urgency.SPARE
    assert openings.begin(0.2) is alone


def test_those_whose_server_says_nothing_let_others_begin_up_to_a_limit() -> None:
    openings = Openings(2)
    asked = [Opening(always(Urgency.NODE), 0.0) for _ in range(20)]
    for opening in asked:
        openings.ask(opening)
    begun = []
    for now in (0.0, 0.9, 1.0, 1.5, 2.0, 3.0, 9.0):
        while (opening := openings.begin(now)) is not None:
            begun.append((now, opening))
    assert [now for now, _ in begun] == [0.0, 0.0, 1.0, 1.0, 2.0, 2.0, 3.0, 3.0]
    assert openings.room_at() == inf
    openings.end(begun[0][1])
    assert openings.room_at() < 9.0
    assert openings.begin(9.0) is not None


def test_who_has_left_is_passed_over() -> None:
    openings = Openings(1)
    asked = [Opening(always(Urgency.NODE), 0.0) for _ in range(3)]
    for opening in asked:
        openings.ask(opening)
    openings.end(asked[0])
    openings.end(asked[0])
    assert openings.waiting == 2
    assert openings.begin(0.0) is asked[1]
    openings.end(asked[1])
    assert openings.begin(0.0) is asked[2]
    assert (openings.waiting, repr(openings)) == (0, "<Openings 1 under way, 0 waiting>")


@pytest.mark.parametrize("seed", range(20))
def test_turns_keep_their_limit_whoever_leaves_and_none_is_lost(seed: int) -> None:
    rng = random.Random(seed)

    async def world() -> tuple[int, int]:
        turns, under_way, most, done = Turns(3), 0, 0, 0

        async def opened() -> None:
            nonlocal under_way, most, done
            under_way += 1
            most = max(most, under_way)
            try:
                await asyncio.sleep(rng.choice([0.01, 0.1, 0.3]))
                done += 1
            finally:
                under_way -= 1

        callers = [
            asyncio.create_task(turns.run(always(rng.choice(ORDER)), opened))
            for _ in range(50)
            if not await asyncio.sleep(rng.random() / 50)
        ]
        leaving = set(rng.sample(range(50), 20))
        for number in leaving:
            await asyncio.sleep(rng.random() / 50)
            callers[number].cancel()
        await asyncio.gather(*callers, return_exceptions=True)
        stayed = [number for number in range(50) if number not in leaving]
        assert all(not callers[number].cancelled() for number in stayed)
        nothing = "<Openings 0 under way, 0 waiting>"
        assert repr(turns) == f"<Turns {nothing}, doubtful {nothing}>"
        return most, done

    most, done = run(world())
    assert most <= 3
    assert done >= 30


def test_a_node_is_left_alone_for_longer_each_time_and_never_for_too_long() -> None:
    pauses = [pause(n, first=0.5, longest=5.0, needed=False, down=1) for n in range(1, 40)]
    assert pauses == sorted(pauses)
    assert (pauses[0], pauses[-1]) == (0.5, 5.0)
    # It is found when it has been back for a third of the time that it was away, or sooner.
    away = 0.0
    for one in pauses[:5]:
        assert one <= 0.5 + away / 2
        away += one
    needed = [pause(n, first=0.5, longest=5.0, needed=True, down=1) for n in range(1, 40)]
    assert max(needed) == 1.0
    assert pause(30, first=0.5, longest=5.0, needed=True, down=300) == 3.0
    assert pause(30, first=0.5, longest=5.0, needed=True, down=5000) == 5.0
    assert pause(30, first=8.0, longest=5.0, needed=False, down=1) == 8.0


def test_requests_for_a_node_that_hangs_keep_no_other_node_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    async def open_connection(dsn: str, *, connect_timeout: float, **_: object) -> Connection:
        await asyncio.sleep(connect_timeout if "hangs" in dsn else 0.01)
        raise NodeError(ErrorKind.UNREACHABLE, "timed out" if "hangs" in dsn else "connection refused")

    monkeypatch.setattr("router.nodes.node.open_connection", open_connection)

    async def use(node: Node) -> None:
        with pytest.raises(NodeError):
            async with node.reads.session():
                pass

    async def world() -> None:
        settings, loop = Settings(node_opens=4), asyncio.get_running_loop()
        turns = Turns(settings.node_opens)
        hangs, well = (
            Node(model.Node(name, f"postgresql://{name}/x"), "s0", settings, Limit(1, 1), turns=turns)
            for name in ("hangs", "well")
        )
        waiting = [asyncio.create_task(use(hangs)) for _ in range(12)]
        await asyncio.sleep(0)
        for expected in (False, True):
            began = loop.time()
            await use(well)
            assert loop.time() - began == pytest.approx(0.01)
            assert (hangs.doubtful, well.doubtful) == (expected, False)
            await asyncio.sleep(settings.connect_timeout + 1)
        await asyncio.gather(*waiting)
        await asyncio.gather(hangs.close(), well.close())

    run(world())
