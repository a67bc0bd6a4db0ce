"""From one shard to eight: latency, throughput, recall, and what a search costs whom.

All variants search the same rows, on the first so many nodes of one cluster and through one router, in
turns. The shards share this machine, so its cores do not grow with them. What does carry over is
processor time: with a machine for each shard, n machines do n times the work of one at the cost of one
search on n shards, and the efficiency is the cost on one shard divided by that on n.
"""

from __future__ import annotations

from functools import partial

from bench.context import Context
from bench.interleave import Spread, ratios
from bench.results import Figure, Metric, Outcome, Series, Table
from bench.sample import Sample
from bench.summary import curve_figure, metrics_of, samples_table, values
from bench.world import COLLECTION, Router, World

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
            (count, mode): width if mode == _WIDTH else _tuned(context, world, router, name)
            for count, name in collections.items()
            for mode in (_WIDTH, _RECALL)
        }
        for users in clients:
            variants = {
                (count, mode): partial(
                    context.sample,
                    world,
                    world.http(router, collections[count], ef_search=ef_search),
                    context.closed(users),
                    router,
                )
                for (count, mode), ef_search in widths.items()
            }
            named = {_named(*key, users): variant for key, variant in variants.items()}
            taken = context.interleave(named, f"{users} clients")
            found |= {(*key, users): taken[_named(*key, users)] for key in variants}
        notes = [
            f"{_shards(count)}: ef_search {widths[count, _RECALL]} for recall {options.recall:g}; the router"
            f" scans {world.effective(widths[count, _RECALL], options.k, name)} wide for it, and"
            f" {world.effective(width, options.k, name)} for ef_search {width}"
            for count, name in collections.items()
        ]
        for name in collections.values():
            notes += context.index_notes(world, router, width, collection=name)
    samples = {_named(*key): measured for key, measured in found.items()}
    return Outcome(
        metrics=[
            *_metrics(found, counts),
            *(metric for name, measured in samples.items() for metric in metrics_of(name, measured)),
        ],
        tables=[_table(found, widths), samples_table("Measured", samples)],
        figures=_figures(found, counts, clients),
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


def _tuned(context: Context, world: World, router: Router, collection: str) -> int:
    return context.tuned(world.http(router, collection))[0]


def _against_one(found: dict[_Key, list[Sample]], key: _Key, of: str) -> Spread | None:
    """A figure on so many shards to that on one."""
    several, one = ([getattr(sample, of) for sample in found[which]] for which in (key, (1, *key[1:])))
    return ratios(several, one)


def _efficiency(found: dict[_Key, list[Sample]], key: _Key) -> Spread | None:
    """In percent: PostgreSQL's cost of a search on one shard to that on so many."""
    several, one = (values(found[which], lambda s: s.server_cpu_per_search) for which in (key, (1, *key[1:])))
    share = ratios(one, several)
    return None if share is None else share.scaled(100)


def _metrics(found: dict[_Key, list[Sample]], counts: list[int]) -> list[Metric]:
    most = max(clients for _, _, clients in found)
    made = []
    for count in counts[1:]:
        for mode in (_WIDTH, _RECALL):
            key = (count, mode, most)
            rate = _against_one(found, key, "rate")
            made += [
                Metric.of(f"efficiency, {_named(*key)}", _efficiency(found, key), "%"),
                Metric.of(f"searches/s against 1 shard, {_named(*key)}", rate, "x"),
            ]
    return made


def _table(found: dict[_Key, list[Sample]], widths: dict[tuple[int, str], int]) -> Table:
    rows: list[list[str | float | None]] = []
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


def _figures(found: dict[_Key, list[Sample]], counts: list[int], clients: list[int]) -> list[Figure]:
    most = max(clients)
    curves = {
        mode: {float(count): found[count, mode, most] for count in counts} for mode in (_WIDTH, _RECALL)
    }
    at = f"{most} clients"
    return [
        curve_figure("throughput", f"Throughput, {at}", "shards", "searches/s", curves, lambda s: s.rate),
        curve_figure("p50", f"Median latency, {at}", "shards", "p50 in ms", curves, lambda s: s.p50 * 1e3),
        curve_figure(
            "postgresql-cpu",
            f"PostgreSQL's processor time for a search, {at}",
            "shards",
            "µs, all shards together",
            curves,
            lambda s: s.server_cpu_per_search * 1e6,
        ),
        curve_figure(
            "router-cpu",
            f"The router's processor time for a search, {at}",
            "shards",
            "µs",
            curves,
            lambda s: s.router_cpu_per_search * 1e6,
        ),
        Figure(
            "recall",
            f"Recall, {at}",
            "shards",
            "recall",
            [
                Series(mode, [_recall(count, found[count, mode, most]) for count in counts])
                for mode in (_WIDTH, _RECALL)
            ],
            log_x=True,
        ),
    ]


def _recall(count: int, samples: list[Sample]) -> tuple[float, float, float, float]:
    found = values(samples, lambda s: s.recall or 0.0)
    return float(count), sorted(found)[len(found) // 2], min(found), max(found)
