"""What a simulation is told, and what it tells; all of it frozen, and JSON as it stands."""

from __future__ import annotations

import msgspec

from router.settings import Settings

__all__ = ["Costs", "Result", "Stragglers", "System"]


class Costs(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds of processor time, as they are while nothing else runs on the host.

    Attributes:
        statement: what a statement costs its server beside the searches in it.
        searches: what single searches cost it there: an empirical distribution, drawn from uniformly.
        wire: seconds from the router to a server and back that no processor is busy for.
        router_search, router_shard, router_statement: what the router spends on each search, on each
            shard of each search, and on each statement.
        client_search: what the load generator spends on each search.
    """

    statement: float
    searches: tuple[float, ...]
    wire: float = 0.0
    router_search: float = 0.0
    router_shard: float = 0.0
    router_statement: float = 0.0
    client_search: float = 0.0


class Stragglers(msgspec.Struct, frozen=True, kw_only=True):
    """The first `share` of the nodes, in an order of chance, whose statements take `factor` times as long."""

    share: float
    factor: float


class System(msgspec.Struct, frozen=True, kw_only=True):
    """Shards, their replicas, and what they run on.

    Attributes:
        nodes_per_host: nodes that share a host's cores, and therefore a limit; 0 is all of them.
        cores: of each host; a fraction where others use the rest.
        others, step: cores of the first host that others take in each `step` seconds, over and over, for a
            replay of what happened during a measurement.
        crowded: speed of a core while all of its host are busy, relative to one alone.
        together_on_host: router and load generator share the first host, rather than having a processor
            each to themselves.
        router_cpu: False leaves the router's own processor time out, which shows what the nodes allow.
        fixed_limit: statements in flight per node instead of an adaptive limit.
    """

    shards: int
    replicas: int = 1
    nodes_per_host: int = 1
    cores: float = 2
    others: tuple[float, ...] = ()
    step: float = 0.2
    crowded: float = 1.0
    together_on_host: bool = False
    router_cpu: bool = True
    stragglers: Stragglers | None = None
    fixed_limit: int | None = None
    settings: Settings = Settings()

    @property
    def nodes(self) -> int:
        return self.shards * self.replicas


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured; times in seconds.

    Attributes:
        answered: searches with an answer, be it a partial one; `refused` and `failed` got an error.
        rate: answered per second.
        coverage: mean share of the shards that answers rest on; `full` is the share of full answers.
        together: searches per statement, on average.
        limit: of statements on a host, on average over hosts and the time measured.
        router_use: share of the router's processor's time in use.
    """

    answered: int
    refused: int
    failed: int
    rate: float
    mean: float
    p50: float
    p99: float
    coverage: float
    full: float
    together: float
    limit: float
    router_use: float
