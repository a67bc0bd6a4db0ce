"""From one shard to eight: latency, throughput, recall, and what a search costs whom.

All variants search the same rows, on the first so many nodes of one cluster and through one router, in
turns. The shards share this machine, so its cores do not grow with them. What does carry over is
processor time: with a machine for each shard, n machines do n times the work of one at the cost of one
search on n shards, and the efficiency is the cost on one shard divided by that on n.
"""

from __future__ import annotations

from bench.context import Context
from bench.interleave import Spread
from bench.results import Cell, Figure, Metric, Outcome, Table
from bench.sample import Sample
from bench.summary import against, curve_figure, every_metric, samples_table
from bench.targets import TargetSpec
from bench.world import COLLECTION

__all__ = ["run"]

_MOST = 8
_QUICK_MOST = 4
_CLIENTS = [1, 16]
_EF_SEARCH = 100

_COMPARED = ("rate", "p50", "server_cpu_per_search", "router_cpu_per_search")

# Shards, mode and clients; a mode is one of the two ways of choosing ef_search.
_Key = tuple[int, str, int]
_WIDTH, _RECALL = "fixed ef_search", "fixed recall"


def run(context: Context) -> Outcome:
    options = context.options
    counts = _counts(options.shards or (_QUICK_MOST if options.quick else _MOST))
    clients = options.clients or _CLIENTS
    width = (options.ef_search or [_EF_SEARCH])[0]
    collections = {count: f"on_{count}" for count in counts[:-1]} | {counts[-1]: COLLECTION}
    spread = {name: count for count, name in collections.items() if name != COLLECTION}
    found: dict[_Key, list[Sample]] = {}
    with context.world(shards=counts[-1], spread=spread) as world, world.serve() as router:
        widths = {
            (count, mode): width if mode == _WIDTH else context.tuned(world.http(router, name))[0]
            for count, name in collections.items()
            for mode in (_WIDTH, _RECALL)
        }
        for users in clients:
            keys = {_named(count, mode, users): (count, mode, users) for count, mode in widths}
            specs: dict[str, TargetSpec] = {
                name: world.http(router, collections[count], ef_search=widths[count, mode])
                for name, (count, mode, _) in keys.items()
            }
            taken = context.compare(world, specs, context.closed(users), f"{users} clients")
            found |= {key: taken[name] for name, key in keys.items()}
        notes = [
            f"{_shards(count)}: ef_search {widths[count, _RECALL]} for recall {options.recall:g}; the router"
            f" scans {world.effective(widths[count, _RECALL], name)} wide for it, and"
            f" {world.effective(width, name)} for ef_search {width}"
            for count, name in collections.items()
        ]
        for name in collections.values():
            notes += context.index_notes(world, router, width, collection=name)
    samples = {_named(*key): measured for key, measured in found.items()}
    return Outcome(
        metrics=[*_metrics(found, counts[1:], max(clients)), *every_metric(samples)],
        tables=[_table(found, widths), samples_table("Measured", samples)],
        figures=_figures(found, counts, max(clients)),
        notes=[*notes, *_NOTES],
        samples=samples,
    )


_NOTES = [
    "Processor time is per search, of all shards together. Efficiency is PostgreSQL's on one shard divided"
    " by that on n: what share of n times one machine's throughput n machines would have, as far as"
    " PostgreSQL limits it.",
    "All of the shards share this machine: throughput and latency include that.",
]


def _counts(most: int) -> list[int]:
    """Powers of two up to `most`, and `most` itself."""
    return sorted({*(2**i for i in range(most.bit_length())), most})


def _named(count: int, mode: str, clients: int) -> str:
    return f"{_shards(count)}, {mode}, {clients} clients"


def _shards(count: int) -> str:
    return f"{count} shard" if count == 1 else f"{count} shards"


def _against_one(found: dict[_Key, list[Sample]], key: _Key, of: str) -> Spread | None:
    """A figure on so many shards to that on one."""
    return against(found[key], found[1, key[1], key[2]], of)


def _efficiency(found: dict[_Key, list[Sample]], key: _Key) -> Spread | None:
    """In percent: PostgreSQL's cost of a search on one shard to that on so many."""
    return against(found[1, key[1], key[2]], found[key], "server_cpu_per_search", 100)


def _metrics(found: dict[_Key, list[Sample]], counts: list[int], most: int) -> list[Metric]:
    made = []
    for key in ((count, mode, most) for count in counts for mode in (_WIDTH, _RECALL)):
        rate = _against_one(found, key, "rate")
        made += [
            Metric.of(f"efficiency, {_named(*key)}", _efficiency(found, key), "%"),
            Metric.of(f"searches/s against 1 shard, {_named(*key)}", rate, "x"),
        ]
    return made


def _table(found: dict[_Key, list[Sample]], widths: dict[tuple[int, str], int]) -> Table:
    rows: list[list[Cell]] = []
    for key in found:
        count, mode, clients = key
        efficiency = _efficiency(found, key)
        compared = (_against_one(found, key, of) for of in _COMPARED)
        rows.append(
            [
                *(mode, str(clients), str(count), str(widths[count, mode])),
                *(None if one is None else one.median for one in compared),
                None if efficiency is None else f"{efficiency.median:.0f}%",
            ]
        )
    columns = ["", "clients", "shards", "ef_search", "searches/s", "p50", "PostgreSQL CPU", "router CPU"]
    return Table("Against one shard", [*columns, "efficiency"], rows)


def _figures(found: dict[_Key, list[Sample]], counts: list[int], most: int) -> list[Figure]:
    curves = {mode: {count: found[count, mode, most] for count in counts} for mode in (_WIDTH, _RECALL)}

    def drawn(name: str, title: str, y: str, of: str, unit: float = 1.0) -> Figure:
        return curve_figure(name, f"{title}, {most} clients", "shards", y, curves, of, unit)

    cpu, together = "processor time for a search", "µs, all shards together"
    return [
        drawn("throughput", "Throughput", "searches/s", "rate"),
        drawn("p50", "Median latency", "p50 in ms", "p50", 1e3),
        drawn("postgresql-cpu", f"PostgreSQL's {cpu}", together, "server_cpu_per_search", 1e6),
        drawn("router-cpu", f"The router's {cpu}", "µs", "router_cpu_per_search", 1e6),
        drawn("recall", "Recall", "recall", "recall"),
    ]
