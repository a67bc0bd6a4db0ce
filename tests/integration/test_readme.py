"""Every block of the README is true, because it is run here."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from deploy.local.servers import free_ports
from tests.integration.readme import README, Example, examples, fences, matches, shell

ROOT = README.parent

pytestmark = pytest.mark.timeout(300)

needs_curl = pytest.mark.skipif(
    not (shutil.which("curl") and shutil.which("bash")), reason="the README's examples need curl and bash"
)


def play(folder: Path, group: list[Example], port: int) -> None:
    """Run the examples one after the other, with other ports than the README's."""
    models = free_ports(1)[0]
    with shell(folder) as bash:
        for example in group:
            command = example.command.replace("8080", str(port)).replace("8200", str(models))
            status, output = bash.run(command)
            assert status == 0, f"$ {command}\n{output}"
            lines = iter(output.splitlines())
            for expected in example.expected:
                shown = any(matches(expected.replace("8080", str(port)), line) for line in lines)
                assert shown, f"$ {command}\n{output}\nlacks: {expected}"


def test_every_block_is_run_or_known_to_be_true() -> None:
    for group, language, text in fences():
        if language == "console":
            assert group in ("demo", "own", "texts"), text
        elif language == "sh":
            target = re.fullmatch(r"make ([\w-]+)(?: ARGS=.+)?\n", text)
            if target:
                assert re.search(rf"^{target[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
            else:
                assert text == 'export PATH="$PWD/.venv/bin:$PATH"\n'
        else:
            assert language == "json", text


def test_every_link_leads_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README.read_text()):
        assert (ROOT / target).is_file(), target


@needs_curl
@pytest.mark.parametrize(("group", "cluster"), [("own", "data"), ("texts", "texts")])
def test_your_own_data_go_in_and_are_found(tmp_path: Path, group: str, cluster: str) -> None:
    try:
        play(tmp_path, examples(group), free_ports(1)[0])
    finally:
        down = [sys.executable, "-m", "router.cli", "cluster", "down", "--dir", str(tmp_path / cluster)]
        subprocess.run(down, capture_output=True, timeout=60)


@needs_curl
def test_the_demo_answers_as_shown(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "deploy.demo", "--port", "0"]
    demo = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert demo.stdout is not None
        said, url = "", None
        for line in demo.stdout:
            said += line
            url = re.search(r"in a browser: http://127\.0\.0\.1:(\d+)/docs", line)
            if url:
                break
        assert url, said
        play(tmp_path, examples("demo"), int(url[1]))
    finally:
        demo.send_signal(signal.SIGINT)
        demo.communicate(timeout=60)
    assert demo.returncode == 0


def test_the_architectures_picture_is_well_formed_and_has_a_dark_side() -> None:
    picture = (ROOT / "docs" / "architecture.svg").read_text()
    ElementTree.fromstring(picture)
    assert "prefers-color-scheme: dark" in picture


@pytest.mark.parametrize(
    ("expected", "line", "same"),
    [
        ("3 hits in 3.1 ms, cache …, done", "3 hits in 24.0 ms, cache l1, done", True),
        ("1  2    …  coral", "1  2     16.1555  s0     coral", True),
        ('{"ready":true,…', '{"ready":true,"x":1}', True),
        ("1 of 2 shards", "2 of 2 shards", False),
        ("coral", "a coral", False),
    ],
)
def test_an_ellipsis_is_anything_and_times_vary(expected: str, line: str, same: bool) -> None:
    assert matches(expected, line) is same
