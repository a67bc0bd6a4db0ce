from __future__ import annotations

import argparse
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from router import cli, commands
from router.commands import serve


def test_ctrl_c_is_status_130_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(args: argparse.Namespace) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(serve, "_run", interrupted)
    assert cli.main(["serve", "--map", "map.yaml"]) == 130
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("background", [False, True])
def test_sigterm_is_as_ctrl_c_but_for_its_status(monkeypatch: pytest.MonkeyPatch, background: bool) -> None:
    ended = []

    def waiting(args: argparse.Namespace) -> int:
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(signal.SIGTERM)  # a second one does not disturb the end
            ended.append(True)
        return 0

    monkeypatch.setattr(serve, "_run", waiting)
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    try:
        # As shells start what ends in &.
        signal.signal(signal.SIGINT, signal.SIG_IGN if background else signal.default_int_handler)
        assert cli.main(["serve", "--map", "map.yaml"]) == 143
    finally:
        signal.signal(signal.SIGINT, before[1])
    assert ended
    assert signal.getsignal(signal.SIGTERM) == before[0]


def test_a_reader_that_goes_away_is_no_traceback() -> None:
    command = [sys.executable, "-m", "router.cli", "map", "schema"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(60) == 1


def test_a_command_says_what_is_wrong_once_and_not_in_words_of_the_log(tmp_path: Path) -> None:
    path = tmp_path / "map.yaml"
    path.write_text("""
version: 1
shards: {s0: {nodes: [{name: a, dsn: "postgresql://u@host.invalid/d"}]}}
collections:
  docs:
    table: docs
    id: {type: bigint}
    vector: {dimensions: 2, metric: l2}
    sharding: {strategy: hash, key: id, buckets: 1, placement: {s0: [0]}}
""")
    command = [sys.executable, "-m", "router.cli", "schema", "check", "--map", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    said = "cannot be asked: a: the host's name cannot be resolved (on a)"
    assert done.stderr == f"s0: error: {said}\n"


def test_no_command_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main([])
    assert caught.value.code == 2
    assert "COMMAND" in capsys.readouterr().err


def test_only_the_command_that_runs_is_imported() -> None:
    code = "import sys; from router.cli import main; main(['map', 'schema']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    imported = set(done.stdout.splitlines()[-1].split())
    assert "router.commands.map" in imported
    assert not imported & {"router.commands.bench", "router.commands.load", "asyncpg", "numpy.random"}


def test_a_router_that_needs_no_redis_and_no_patroni_does_without_their_clients() -> None:
    """Which are a quarter of its start, in each worker."""
    code = "import sys, router.app, router.http.server; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    imported = set(done.stdout.split())
    assert "router.topology" in imported and not imported & {"redis", "httpcore"}


def test_the_help_and_an_unknown_command_name_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    names = {path.stem for path in Path(commands.__file__).parent.glob("*.py")}
    for argv in (["--help"], ["searhc"]):
        with pytest.raises(SystemExit):
            cli.main(argv)
        said = "".join(capsys.readouterr())
        found = {word.strip("',.()") for word in said.split()} & names
        assert found == {"cluster", "map", "schema", "load", "tune", "serve", "search", "models", "bench"}
