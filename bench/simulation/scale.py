"""What happens beyond one machine: many shards, stragglers, replicas.

Every node has a host of two cores to itself, and the router one processor. The rates of arrival are shares
of what the router and the nodes can do, so that latency is that of a system in use, not of one overrun.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from bench.generators import Open
from bench.simulation.model import Costs, Result, Stragglers, System
from bench.simulation.simulate import simulate
from router.settings import Settings

__all__ = ["LARGER", "Point", "scale"]

LARGER = (1, 4, 16, 64, 256, 1024)
_CORES = 2
_USE = 0.5  # of what there is
_SEARCHES = 300  # measured for each point, fewer of many shards
_PARTS = 150_000  # parts of searches simulated for each point, at most
_STRAGGLERS = Stragglers(share=0.01, factor=10)
_TIMEOUT = 5.0


class Point(msgspec.Struct, frozen=True):
    """One simulated system; `rate` is of arrivals per second."""

    name: str
    shards: int
    rate: float
    result: Result


def scale(
    costs: Costs,
    *,
    shards: Sequence[int] = LARGER,
    say: Callable[[str], object] = lambda _: None,
) -> list[Point]:
    """Open loops over systems of so many shards.

    `even`: all nodes are alike. `stragglers`: one node in a hundred, at least one, takes ten times as long.
    `stragglers, 2 replicas`: each shard has two nodes; `no hedges`: none is asked because another is late.
    `stragglers, deadline`: answers go without what has not come after ten times the even median. `nodes
    alone`: the router's processor time is left out.
    """
    points: list[Point] = []
    for count in shards:
        say(f"simulating {count} shards")
        slow = msgspec.structs.replace(_STRAGGLERS, share=max(_STRAGGLERS.share, 1 / count))
        rate = _USE * min(_router_most(costs, count), _node_most(costs))

        def add(name: str, system: System, rate: float, timeout: float = _TIMEOUT) -> Result:
            length = min(_SEARCHES, _PARTS // system.shards) / rate
            result = simulate(system, costs, Open(rate, length, length / 4), timeout=timeout)
            points.append(Point(name, system.shards, rate, result))
            return result

        base = System(shards=count, cores=_CORES)
        even = add("even", base, rate)
        late = msgspec.structs.replace(base, stragglers=slow)
        add("stragglers", late, rate)
        add("stragglers, deadline", late, rate, 10 * even.p50)
        # As many slow nodes among twice as many.
        fewer = msgspec.structs.replace(slow, share=slow.share / 2)
        halved = msgspec.structs.replace(late, replicas=2, stragglers=fewer)
        add("stragglers, 2 replicas", halved, rate)
        unhedged = msgspec.structs.replace(halved, settings=Settings(hedge_quantile=0.0))
        add("stragglers, 2 replicas, no hedges", unhedged, rate)
        alone = msgspec.structs.replace(base, router_cpu=False)
        add("nodes alone", alone, min(_USE * _node_most(costs), 4 * rate))
    return points


def _router_most(costs: Costs, shards: int) -> float:
    """Searches per second of one router without any that go together."""
    return 1 / (costs.router_search + shards * (costs.router_shard + costs.router_statement))


def _node_most(costs: Costs) -> float:
    mean = sum(costs.searches) / len(costs.searches)
    return _CORES / (costs.statement + mean)
