from __future__ import annotations

import pytest

from router.cli import main


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--target-recall", "x"], "--target-recall: expected a number from 0.5 to 0.9999, got 'x'"),
        (["--target-recall", "nan"], "--target-recall: expected a number from 0.5 to 0.9999, got 'nan'"),
        (["--k", "10001"], "--k: expected an integer from 1 to 10000, got '10001'"),
        (["--k", "x"], "--k: expected an integer from 1 to 10000, got 'x'"),
        (["--queries", "1"], "--queries: expected an integer from 2 to 100000, got '1'"),
        (["--filter", "[1]"], "--filter: not a JSON object: "),
        (["--filter", '{"a": "\udc80"}'], "--filter: not a JSON object: not UTF-8"),
    ],
)
def test_wrong_usage_is_status_2(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["tune", "--map", "map.yaml", *arguments])
    assert caught.value.code == 2
    assert said in capsys.readouterr().err


def test_the_help_is_as_it_is_meant(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["tune", "--help"])
    assert "95 % confidence" in " ".join(capsys.readouterr().out.split())
