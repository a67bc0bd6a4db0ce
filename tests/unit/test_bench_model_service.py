"""The measurement of the model service's texts per second."""

from __future__ import annotations

import re

import pytest

from bench.model_service import main


def test_it_measures_direct_calls_and_both_forms_of_answers(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seconds", "0.1", "--rounds", "1", "--connections", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["direct", "base64", "float"]
    assert all(re.search(r" [\d,]+ texts/s, \d+\.\d\d of direct calls$", line) for line in lines)
