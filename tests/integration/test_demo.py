"""`make demo` as somebody new runs it, and every way in which it can end."""

from __future__ import annotations

import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from deploy.corpus import documents as corpus
from deploy.demo.searches import SEARCHES
from tests.integration.machines import HOSTILE

# The demo with fewer documents than Python has, where the test is about something else: to read and to
# embed them all takes longer than everything that the demo starts.
SMALL = """
import pickle, sys
from deploy.corpus import documents as corpus
with open({entries!r}, "rb") as file:
    some = pickle.load(file)
corpus.entries = lambda: some
from deploy.demo.__main__ import main
sys.exit(main())
"""
# What the demo searches for is in these.
MODULES = ("asyncio", "functools", "math", "random")

# What a stranger is promised on two cores, everything but the installation.
SMOKE_SECONDS = 180
GONE_SECONDS = 30

pytestmark = pytest.mark.timeout(SMOKE_SECONDS + 30)


@pytest.fixture
def temporary(tmp_path: Path) -> Path:
    """Where the demo puts its data; every process of it has this path among its arguments."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    return folder


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """How to call the demo on some of its documents."""
    folder = tmp_path_factory.mktemp("small")
    some = [entry for entry in corpus.entries() if entry.module.split(".")[0] in MODULES]
    (folder / "entries").write_bytes(pickle.dumps(some))
    (folder / "small.py").write_text(SMALL.format(entries=str(folder / "entries")))
    return [str(folder / "small.py")]


WHOLE = ("-m", "deploy.demo")
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(temporary: Path, tmp_path: Path) -> Iterator[Start]:
    started: list[subprocess.Popen[str]] = []

    def run(
        *arguments: str,
        demo: Sequence[str] = WHOLE,
        through: Sequence[str] = (),
        env: Mapping[str, str] = os.environ,
    ) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [*through, sys.executable, *demo, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=tmp_path,
            env={**env, "TMPDIR": str(temporary)},
            start_new_session=True,  # so that a Ctrl-C can be sent to all of it, as a terminal does
        )
        started.append(process)
        return process

    yield run
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=30)


def running(folder: Path) -> list[str]:
    """Command lines of processes that have to do with `folder`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                line = (entry / "cmdline").read_bytes()
            except OSError:
                continue  # it has just ended
            if str(folder).encode() in line:
                found.append(line.replace(b"\0", b" ").decode(errors="replace"))
    return found


def read_until(process: subprocess.Popen[str], marker: str) -> str:
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if marker in line:
            return said
    raise AssertionError(f"the demo ended without saying {marker!r}:\n{said}")


# That the whole demo runs is shown by test_readme as well.
@pytest.mark.full
@pytest.mark.parametrize("whole", [False, True])
def test_the_demo_shows_its_searches_and_leaves_nothing(
    start: Start, small: list[str], temporary: Path, whole: bool
) -> None:
    """On a poor machine: few files, no home, closed folders, a PostgreSQL of the caller's own."""
    started = time.monotonic()
    poor = ["/bin/sh", "-c", 'ulimit -n 256; umask 077; exec "$@"', "sh"]
    env = {name: value for name, value in os.environ.items() if name != "HOME"}
    env = {**env, **HOSTILE, "HTTP_PROXY": "http://192.0.2.1:1"}
    shape = [] if whole else ["--replicas", "0"]
    process = start("--smoke", *shape, demo=WHOLE if whole else small, through=poor, env=env)
    said, _ = process.communicate(timeout=SMOKE_SECONDS)
    assert process.returncode == 0, said
    assert time.monotonic() - started < SMOKE_SECONDS
    answers = said.split("pgscatter search")[1:]
    assert len(answers) == len(SEARCHES)
    first, cached, *compared, filtered, explained = (answer.splitlines() for answer in answers)
    assert any("functools.lru_cache" in line for line in first[2:5])
    assert any("4 of 4 shards" in line for line in first)
    assert any("cache l1" in line for line in cached)
    told = [" ".join(answer) for answer in compared]
    assert ["math.gcd" in one for one in told] == [True, False, False, False, False]
    assert ["Random variable" in one for one in told] == [False, False, False, True, True]
    assert "in vector" in told[-1] and "in fulltext" in told[-1]
    assert sum(" asyncio" in line for line in filtered) == 5
    assert [line.split()[0] for line in explained if line.startswith("s") and " ok " in line] == [
        *("s0", "s1", "s2", "s3")
    ]
    assert running(temporary) == []
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize(
    ("when", "number", "status"),
    [
        ("s0-a accepts connections", signal.SIGINT, 130),
        pytest.param("It stays up", signal.SIGINT, 0, marks=pytest.mark.full),
        pytest.param("It stays up", signal.SIGTERM, 143, marks=pytest.mark.full),
    ],
)
def test_whoever_stops_the_demo_gets_everything_back(
    start: Start, small: list[str], temporary: Path, when: str, number: signal.Signals, status: int
) -> None:
    process = start("--shards", "1", "--replicas", "0", "--port", "0", demo=small)
    read_until(process, when)
    os.killpg(process.pid, number)
    said, _ = process.communicate(timeout=GONE_SECONDS)
    assert process.returncode == status, said
    assert running(temporary) == []
    assert list(temporary.iterdir()) == []


@pytest.mark.full
def test_a_demo_that_is_killed_takes_its_servers_along(
    start: Start, small: list[str], temporary: Path
) -> None:
    process = start("--shards", "1", "--replicas", "1", "--port", "0", demo=small)
    read_until(process, "It stays up")
    assert len(running(temporary)) > 3
    process.kill()
    deadline = time.monotonic() + GONE_SECONDS
    while running(temporary) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert running(temporary) == []


@pytest.mark.full
def test_data_that_are_kept_can_be_shown_again(start: Start, small: list[str], tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    shape = ["--shards", "1", "--replicas", "0", "--port", "0"]
    for _ in range(2):
        process = start("--smoke", "--dir", str(kept), *shape, demo=small)
        said, _ = process.communicate(timeout=SMOKE_SECONDS)
        assert process.returncode == 0, said
        assert running(kept) == []
    assert (kept / "cluster" / "shard_map.yaml").is_file()


def test_a_port_that_is_taken_is_said_before_anything_is_started(start: Start, temporary: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        process = start("--smoke", "--port", port)
        said, _ = process.communicate(timeout=SMOKE_SECONDS)
    assert process.returncode == 1
    assert said.startswith(f"demo: cannot listen on port {port}: ")
    assert list(temporary.iterdir()) == []
