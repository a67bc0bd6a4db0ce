"""Whose turn it is does not depend on who left, or was taken out, meanwhile."""

from __future__ import annotations

import random

import msgspec

from router.policy.backlog import Backlog


class Item(msgspec.Struct, eq=False):
    name: int
    key: str
    caller: str | None = None
    left: bool = False


def taken(backlog: Backlog[Item]) -> list[int]:
    order = []
    while items := backlog.take(lambda _: 1):
        order += [item.name for item in items]
    return order


def test_what_stays_keeps_its_turn_when_others_are_taken_out() -> None:
    """Also where turns are not those of arrival: a batch lets others by, and what failed comes again."""
    for seed in range(30):
        rng = random.Random(seed)
        items = [Item(i, rng.choice("ab"), rng.choice([None, "batch", "other"])) for i in range(60)]
        turns = [rng.choice([0.0, i / 1000]) for i in range(60)]
        out = {item.name for item in items if rng.random() < 0.4}
        leaving = {item.name for item in items if rng.random() < 0.2}
        orders = []
        for remove in (False, True):
            backlog: Backlog[Item] = Backlog()
            for item, turn in zip(items, turns, strict=True):
                item.left = False
                backlog.add(item, turn, 0.001)
            for item in items:
                item.left = item.name in leaving
            if remove:
                unwanted = out.copy()
                removed = backlog.remove(lambda item, unwanted=unwanted: item.name in unwanted)
                assert sorted(item.name for item in removed) == sorted(out - leaving)
            orders.append(taken(backlog))
            assert backlog._callers == {}
        assert orders[1] == [name for name in orders[0] if name not in out]
