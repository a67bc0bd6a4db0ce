from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from bench import environment, scenarios
from bench.context import Options
from bench.errors import BenchError
from bench.results import Metric, Outcome, Run
from router.cli import main
from router.terminal import Display


def test_the_list_has_every_scenario_and_what_it_is_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == scenarios.names()
    assert {"concurrency", "recall"} <= set(scenarios.names())
    assert all(len(line.split()) > 4 for line in lines)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nonsense"], "invalid choice: 'nonsense'"),
        (["compare", "one.json"], "the following arguments are required: AFTER"),
        (["collect"], "the following arguments are required: DIR"),
        (["recall", "one.json"], "unrecognized arguments: one.json"),
        (["recall", "--seconds", "0"], "from 0.1 to 3600"),
        (["recall", "--recall", "1.5"], "between 0 and 1"),
        (["recall", "--ef-search", "40,5000"], "--ef-search: expected an integer from 1 to 1000, got '5000'"),
        (["recall", "--out", __file__], f"--out: {__file__} is no folder"),
        (["all", "--out", f"{__file__}/results"], f"--out: {__file__} is no folder"),
        (["recall", "--clients", "1,x"], "expected an integer"),
        (["soak", "--open-loop", "10,0"], "searches/s from 0.1 to 1000000"),
        (["soak", "--duration", "3"], "seconds from 4 to 604800"),
    ],
)
def test_wrong_usage_is_status_2(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["bench", *arguments])
    assert caught.value.code == 2
    assert said in capsys.readouterr().err


def test_only_the_scenario_is_required(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["bench"])
    assert caught.value.code == 2
    assert capsys.readouterr().err.endswith("the following arguments are required: SCENARIO\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["recall", "--dataset", "nothing"], "unknown data set 'nothing'"),
        (["recall", "--dataset", "clustered:n=5,q=2", "--k", "10"], "k=10, but"),
        (["compare", "none.json", "none.json"], "none.json"),
        (["collect", "none"], "none has no results"),
    ],
)
def test_what_cannot_be_run_is_status_1(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["bench", *arguments]) == 1
    assert said in capsys.readouterr().err


def fake(name: str, options: Options, display: Display, command: str) -> Run:
    if name == "filters":
        raise BenchError("no server")
    metric = Metric(name="speed", value=2.0, unit="x", target=2.5)
    return Run(
        scenario=name,
        began="2026-01-02T03:04:05+00:00",
        seconds=1.0,
        dataset=options.dataset,
        rows=10,
        dimensions=3,
        settings={},
        environment=environment.describe(),
        outcome=Outcome(metrics=[metric]),
        command=command,
    )


def test_what_is_wrong_in_a_run_is_reported_and_is_status_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(name: str, options: Options, *rest: Any) -> Run:
        run = fake(name, options, *rest)
        assert options.faults
        outcome = Outcome(metrics=run.outcome.metrics, failures=["document 7 is stored as none"])
        return msgspec.structs.replace(run, outcome=outcome, command=rest[-1])

    monkeypatch.setattr("bench.suite.run_scenario", wrong)
    assert main(["bench", "soak", "--faults", "--quick", "--out", str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert "pgscatter bench: soak: document 7 is stored as none\n" in said.err
    assert "## Failures\n\n- document 7 is stored as none\n" in said.out
    assert "pgscatter bench soak --faults --quick\n" in said.out


def test_all_goes_on_after_a_failure_and_collects_what_there_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.suite.run_scenario", fake)
    flags = ["--quick", "--clients", "1,64", "--recall", "0.95", "--out", str(tmp_path)]
    assert main(["bench", "all", *flags]) == 1
    assert "could not be run, or failed: filters" in capsys.readouterr().err
    text = (tmp_path / "results.md").read_text()
    sections = [line[3:] for line in text.splitlines() if line.startswith("## ")]
    assert sections[:3] == ["Targets", "overhead", "peers"]
    assert sorted([*sections[1:], "filters"]) == scenarios.names()
    assert "\npgscatter bench soak --clients 1,64 --recall 0.95 --quick\n" in text
    assert "| overhead | speed | 2x |  | >= 2.5x | **not met** |" in text
    (tmp_path / "soak.remarks.md").write_text("It rained.\n")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert main(["bench", "collect", str(tmp_path), "--out", str(elsewhere / "R.md")]) == 0
    assert "### Remarks\n\nIt rained.\n" in (elsewhere / "R.md").read_text()
    assert main(["bench", "collect", str(tmp_path)]) == 0
    assert capsys.readouterr().out == (elsewhere / "R.md").read_text()
