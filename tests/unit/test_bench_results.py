from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from bench import environment, plots, report
from bench.compare import compare
from bench.errors import BenchError
from bench.interleave import Spread, interleave, ratios, spread
from bench.results import Figure, Metric, Outcome, Run, Series, Table, load_run, save_run
from bench.suite import write
from router.settings import Settings


def run(*metrics: Metric, **changes: object) -> Run:
    made = Run(
        scenario="overhead",
        began="2026-01-02T03:04:05+00:00",
        seconds=12.3,
        dataset="clustered:n=10",
        rows=10,
        dimensions=3,
        settings={"shards": "4"},
        environment=environment.describe(),
        outcome=Outcome(metrics=list(metrics)),
    )
    return msgspec.structs.replace(made, **changes)


def test_variants_take_turns_at_being_first() -> None:
    order: list[str] = []

    def variant(name: str, value: int) -> int:
        order.append(name)
        return value

    done: list[str] = []
    found = interleave(
        {name: lambda name=name, i=i: variant(name, i) for i, name in enumerate("abc")},  # type: ignore[misc]
        4,
        lambda: done.append("".join(order)),
    )
    assert "".join(order) == "abcbcacababc"
    assert found == {"a": [0] * 4, "b": [1] * 4, "c": [2] * 4}
    assert done[:4] == ["a", "ab", "abc", "abcb"] and len(done) == 12


def test_a_ratio_is_the_median_of_the_rounds_own_ratios() -> None:
    # The machine got twice as slow in the last round; the ratio did not change.
    assert ratios([200, 220, 100], [100, 100, 50]) == Spread(2.0, 2.0, 2.2, 3)
    assert ratios([], []) is None
    assert ratios([1, 2], [1, 0]) is None
    assert spread([3, 1, 2, 10]) == Spread(2.5, 1, 10, 4)
    assert spread([1, 2, 4], 1e3) == Spread(2e3, 1e3, 4e3, 3)


@pytest.mark.parametrize(
    ("value", "better", "target", "met"),
    [
        (2.5, "higher", 2.5, True),
        (2.49, "higher", 2.5, False),
        (0.25, "lower", 0.25, True),
        (0.26, "lower", 0.25, False),
        (None, "lower", 1.0, None),
        (1.0, "lower", None, None),
    ],
)
def test_a_target_is_met_from_its_better_side(
    value: float | None, better: str, target: float | None, met: bool | None
) -> None:
    metric = Metric(name="x", value=value, better=better, target=target)  # type: ignore[arg-type]
    assert metric.met is met


def test_a_report_says_which_targets_are_missed() -> None:
    text = report.markdown(
        run(
            Metric.of("speed", Spread(2.2, 2.0, 2.4, 3), "x", target=2.5),
            Metric.of("CPU", Spread(199, 190, 210, 3), "µs", "lower", target=250.0),
            Metric.of("L2", None, "%", target=40.0, note="no Redis"),
            Metric(name="untargeted", value=1.0),
        )
    )
    assert "| speed | 2.2x | 2 to 2.4 | >= 2.5x | **not met** |" in text
    assert "| CPU | 199 µs | 190 to 210 | <= 250 µs | met |" in text
    assert "| L2 (no Redis) | not measured |  | >= 40% | not measured |" in text
    assert "untargeted" not in text
    assert "| shards | 4 |" in text
    assert environment.describe().processor in text


def test_servers_and_routers_are_in_the_report_and_in_a_comparison() -> None:
    def on(version: str) -> Run:
        machine = environment.describe()
        servers = {"PostgreSQL": version, "jit": "off"}
        return run(environment=msgspec.structs.replace(machine, servers=servers, flags=["", "--l1-bytes=0"]))

    text = report.markdown(on("18.4"))
    assert "Servers: PostgreSQL 18.4, jit off" in text
    assert f"node_connections {Settings().node_connections}," in text
    assert "Routers ran with: no flags; `--l1-bytes=0`" in text
    assert "Not measured alike: server's PostgreSQL 18.4 and 17.1." in compare(on("18.4"), on("17.1"))


def test_tables_and_notes_are_in_the_report() -> None:
    outcome = Outcome(tables=[Table("T", ["a|b", "c"], [["x", 12345.6], ["y", None]])], notes=["so it is"])
    text = report.markdown(run(outcome=outcome))
    assert "## T\n\n| a/b | c |\n| --- | --- |\n| x | 12,346 |\n| y | not measured |" in text
    assert "- so it is" in text


def test_a_run_survives_its_file(tmp_path: Path) -> None:
    figure = Figure("f", "F", "x", "y", [Series("s", [(1, 2, 1, 3), (2, 3, 2, 4)])], log_x=True)
    made = run(outcome=Outcome(metrics=[Metric(name="m", value=None)], figures=[figure]))
    save_run(made, tmp_path / "run.json")
    assert load_run(tmp_path / "run.json") == made
    (tmp_path / "bad.json").write_text('{"scenario": 3}')
    with pytest.raises(BenchError, match=r"bad\.json is no result"):
        load_run(tmp_path / "bad.json")
    with pytest.raises(BenchError, match="No such file"):
        load_run(tmp_path / "none.json")
    save_run(msgspec.structs.replace(made, format=99), tmp_path / "new.json")
    with pytest.raises(BenchError, match="format 99"):
        load_run(tmp_path / "new.json")


def test_the_files_of_a_run_lie_beside_each_other(tmp_path: Path) -> None:
    figures = [
        Figure(
            name,
            "F",
            "x",
            "y",
            [Series("s", [(1, 2, 1, 3), (2, 3, 2, 4)])],
            log_x=name == "a",
            log_y=name == "a",
        )
        for name in ("a", "b")
    ]
    paths = write(run(outcome=Outcome(figures=figures)), tmp_path / "out")
    assert [path.name for path in paths] == [
        *("overhead.json", "overhead-a.png", "overhead-b.png", "overhead.md"),
    ]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths if path.suffix == ".png")
    assert "![F](overhead-a.png)" in paths[-1].read_text()
    assert plots.draw(run(), tmp_path) == []


def test_a_difference_counts_where_the_rounds_do_not_overlap() -> None:
    before = run(
        Metric.of("rate", Spread(100, 90, 110, 3), "/s"),
        Metric.of("p99", Spread(10, 9, 11, 3), "ms", "lower"),
        Metric.of("noise", Spread(100, 80, 120, 3)),
        Metric(name="gone", value=1.0),
    )
    after = run(
        Metric.of("rate", Spread(150, 140, 160, 3), "/s"),
        Metric.of("p99", Spread(20, 19, 21, 3), "ms", "lower"),
        Metric.of("noise", Spread(110, 95, 130, 3)),
        Metric(name="new", value=2.0),
        settings={"shards": "8"},
    )
    text = compare(before, after)
    assert "| rate | 100 /s | 150 /s | +50.0% | better |" in text
    assert "| p99 | 10 ms | 20 ms | +100.0% | worse |" in text
    assert "| noise | 100 | 110 | +10.0% | within the spread |" in text
    assert "| gone | 1 | not there |  |  |" in text
    assert "| new | not there | 2 |  |  |" in text
    assert "Not measured alike: setting shards 4 and 8." in text
    assert "| rate | 150 /s | 100 /s | -33.3% | worse |" in compare(after, before)
    assert "| p99 | 20 ms | 10 ms | -50.0% | better |" in compare(after, before)


def test_different_scenarios_do_not_compare() -> None:
    with pytest.raises(BenchError, match="overhead and recall"):
        compare(run(), run(scenario="recall"))
