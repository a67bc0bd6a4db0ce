from __future__ import annotations

from pathlib import Path

import pytest

from bench import scenarios
from router.cli import main


def test_the_list_has_every_scenario_and_what_it_is_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == scenarios.names()
    assert {"concurrency", "recall"} <= set(scenarios.names())
    assert all(len(line.split()) > 4 for line in lines)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nonsense"], "no scenario 'nonsense'; there are"),
        (["compare", "one.json"], "compare takes two results, got 1"),
        (["recall", "one.json"], "only compare takes files"),
        (["recall", "--seconds", "0"], "from 0.1 to 3600"),
        (["recall", "--recall", "1.5"], "between 0 and 1"),
        (["recall", "--clients", "1,x"], "expected an integer"),
        (["soak", "--open-loop", "10,0"], "searches/s from 0.1 to 1000000"),
        (["soak", "--duration", "0.5"], "seconds from 1 to 604800"),
    ],
)
def test_wrong_usage_is_status_2(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["bench", *arguments])
    assert caught.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["recall", "--dataset", "nothing"], "unknown data set 'nothing'"),
        (["recall", "--dataset", "clustered:n=5,q=2", "--k", "10"], "k=10, but"),
        (["compare", "none.json", "none.json"], "none.json"),
    ],
)
def test_what_cannot_be_run_is_status_1(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["bench", *arguments]) == 1
    assert said in capsys.readouterr().err
