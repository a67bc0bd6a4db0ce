"""What a scenario has at hand: data with exact answers, clusters, measurements and progress."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import msgspec

from bench import tuning
from bench.datasets import Dataset
from bench.generators import Closed, Event, Load, Open, Slice
from bench.interleave import interleave
from bench.resources import Usage, usage
from bench.sample import Sample
from bench.targets import HttpSpec, TargetSpec
from bench.truth import Truth
from bench.workers import Job, measure
from bench.world import Router, World, open_world, server_record
from router.terminal import Display

__all__ = ["Context", "Equal", "Options"]

T = TypeVar("T")

_SHARDS = 4


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What the command line says; None leaves it to the scenario.

    Attributes:
        seconds: of each measurement, after `warmup`.
        rounds: of each variant.
        queries: how many of the data set's are asked.
        recall: that tuned variants have to reach.
        open_loop: rates in searches/s at which searches arrive.
        duration: seconds of a scenario that watches one long run.
        embedder, reranker: what `pgscatter models serve` makes of texts, and ranks them again by.
        faults: whether servers break meanwhile.
    """

    dataset: str
    rows: int | None = None
    queries: int = 1000
    shards: int | None = None
    seconds: float = 5.0
    warmup: float = 1.0
    rounds: int = 3
    clients: list[int] | None = None
    ef_search: list[int] | None = None
    k: int = 10
    recall: float = 0.99
    open_loop: list[float] | None = None
    duration: float | None = None
    embedder: str = "wordllama"
    reranker: str | None = None
    faults: bool = False
    quick: bool = False


class Equal(msgspec.Struct, frozen=True):
    """Smallest ef_search by router and by direct gather; `same` is what the router's shards really use."""

    http: int
    gather: int
    same: int
    notes: list[str]


class Context:
    """Made by `bench.suite` for one run of one scenario.

    `servers` and `flags` are what its servers are and how its routers were called, see
    `bench.environment`; `world` adds to them.
    """

    def __init__(self, options: Options, dataset: Dataset, truth: Truth, display: Display) -> None:
        self.options = options
        self.dataset = dataset
        self.truth = truth
        self.display = display
        self.servers: dict[str, str] = {}
        self.flags: list[str] = []

    def __repr__(self) -> str:
        return f"<Context {self.dataset!r}, {self.options}>"

    def say(self, line: str) -> None:
        self.display.say(line)

    @property
    def shards(self) -> int:
        return self.options.shards or _SHARDS

    @contextmanager
    def world(self, **changes: Any) -> Iterator[World]:
        """A cluster with the data set; `changes` go to `open_world`."""
        changes = {"shards": self.shards, "k": self.options.k, "display": self.display, **changes}
        with open_world(self.dataset, **changes) as world:
            self.servers |= server_record(world.cluster)
            yield world
            self.flags += [flags for flags in world.flags if flags not in self.flags]

    def closed(self, clients: int, **more: Any) -> Closed:
        return Closed(clients, self.options.seconds, self.options.warmup, **more)

    def open(self, rate: float) -> Open:
        return Open(rate, self.options.seconds, self.options.warmup)

    def sample(
        self,
        world: World,
        spec: TargetSpec,
        load: Load,
        *,
        judged: bool = True,
        truth: Truth | None = None,
        tick: Callable[[Slice], object] = lambda _: None,
    ) -> Sample:
        """One measurement; the processor time of `world`'s servers is part of it, and that of who answers.

        With `judged` False its answers are none to the data set's queries, and have no recall. `truth` takes
        the place of the data set's own, where a filter changes it.
        """
        pids = (spec.pid,) if isinstance(spec, HttpSpec) and spec.pid is not None else ()
        readings: list[tuple[Usage, Usage]] = []

        def hear(event: Event) -> None:
            if isinstance(event, Slice):
                tick(event)
            else:
                readings.append((usage(pids), usage(world.server_pids)))

        measured = measure(Job(spec, load), hear)
        recall = (truth or self.truth).recall_of(measured, self.dataset) if judged else None
        return Sample.of(measured, recall, *readings)

    def compare(
        self,
        world: World,
        specs: Mapping[str, TargetSpec],
        load: Load,
        what: str,
        unjudged: Collection[str] = (),
        **options: Any,
    ) -> dict[str, list[Sample]]:
        """A sample of each of `specs` in every round, all judged but those; `options` are `sample`'s."""
        variants = {
            name: partial(self.sample, world, spec, load, judged=name not in unjudged, **options)
            for name, spec in specs.items()
        }
        return self.interleave(variants, what)

    def interleave(self, variants: Mapping[str, Callable[[], T]], what: str) -> dict[str, list[T]]:
        """Every variant in every round, see `bench.interleave`."""
        with self.display.meter(what, len(variants) * self.options.rounds, "measurements") as meter:
            return interleave(variants, self.options.rounds, lambda: meter.add(1))

    def index_notes(self, world: World, router: Router, ef_search: int, **more: Any) -> list[str]:
        """Which shards read all their rows, as PostgreSQL's planner does where there are few of them.

        `more` are fields of the search.
        """
        fields = {"ef_search": ef_search, "cache": False, "explain_plan": True, **more}
        _, answer = world.ask(router, 0, **fields)
        reports = answer["explain"]["shards"]
        without = [one["shard"] for one in reports if "Index Scan using" not in (one["plan"] or "")]
        if not without:
            return []
        return [f"NOT an index scan on {', '.join(without)}: too few rows for what this scenario is about"]

    def equal(self, world: World, router: Router) -> Equal:
        """What reaches the wanted recall, each by itself.

        The widths may differ: the router scans no narrower than what it has to bring.

        Raises:
            BenchError: something does not reach it.
        """
        http, recall = self.tuned(world.http(router))
        gather, gather_recall = self.tuned(world.gather())
        same = world.effective(http)
        raised = f", which the router raises to {same}" if same != http else ""
        notes = [
            f"pgscatter: ef_search {http}{raised}, recall {recall:.4f} when tuned",
            f"direct gather: ef_search {gather}, recall {gather_recall:.4f} when tuned",
            *self.index_notes(world, router, http),
        ]
        return Equal(http, gather, same, notes)

    def tuned(self, spec: TargetSpec, truth: Truth | None = None) -> tuple[int, float]:
        """The smallest ef_search with which `spec` reaches the wanted recall, and the recall it has.

        `truth` takes the place of the data set's own, where a filter changes it.

        Raises:
            BenchError: none does.
        """
        what = f"ef_search of recall {self.options.recall:g}"
        with self.display.meter(what, tuning.MOST_RUNS * len(self.dataset.queries), "searches") as meter:
            wanted = self.options.recall
            return tuning.smallest(spec, self.dataset, truth or self.truth, wanted, lambda: meter.add(1))
