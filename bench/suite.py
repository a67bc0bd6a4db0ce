"""Runs a scenario from data set to files: NAME.json, NAME.md and a PNG per figure."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter

import msgspec
import numpy as np

from bench import environment, plots, report
from bench.context import Context, Options
from bench.datasets import Dataset, open_dataset
from bench.errors import BenchError
from bench.results import Run, save_run
from bench.scenarios import own_data, scenario
from bench.truth import Truth, truth_of
from deploy.local import ClusterError
from deploy.local.router import RouterError
from router.terminal import Display
from shard_config.model import Metric

__all__ = ["run_scenario", "write"]


def run_scenario(name: str, options: Options, display: Display, command: str = "") -> Run:
    """`command` is what stands in the report as having made it.

    Raises:
        BenchError: the scenario does not exist, or could not be run to its end.
    """
    run = scenario(name)
    began, started = datetime.now(UTC), perf_counter()
    machine = environment.describe()
    dataset, truth = _data(name, options, display)
    context = Context(options, dataset, truth, display)
    try:
        outcome = run(context)
    except (ClusterError, RouterError) as exc:
        raise BenchError(str(exc)) from exc
    machine = msgspec.structs.replace(machine, servers=context.servers, flags=context.flags)
    return Run(
        scenario=name,
        began=began.isoformat(timespec="seconds"),
        seconds=perf_counter() - started,
        dataset=dataset.name,
        rows=len(dataset.base),
        dimensions=dataset.dimensions,
        settings={field: str(value) for field, value in msgspec.structs.asdict(options).items()},
        environment=machine,
        outcome=outcome,
        command=command,
    )


def _data(name: str, options: Options, display: Display) -> tuple[Dataset, Truth]:
    """The data set with its exact answers; nothing but a name for a scenario that brings its own."""
    if (own := own_data(name)) is not None:
        none = np.empty((0, 0), np.float32)
        empty = np.empty((0, options.k))
        return Dataset(own, Metric.COSINE, none, none), Truth(empty.astype(np.int64), empty)
    display.say(f"{name}: reading {options.dataset}")
    dataset = open_dataset(options.dataset).head(options.rows, options.queries)
    with display.meter("exact answers", len(dataset.queries), "queries") as meter:
        return dataset, truth_of(dataset, options.k, meter.reach)


def write(run: Run, folder: Path) -> list[Path]:
    """The files of `run` in `folder`, the report last."""
    folder.mkdir(parents=True, exist_ok=True)
    data, text = folder / f"{run.scenario}.json", folder / f"{run.scenario}.md"
    save_run(run, data)
    drawn = plots.draw(run, folder)
    text.write_text(report.markdown(run))
    return [data, *drawn, text]
