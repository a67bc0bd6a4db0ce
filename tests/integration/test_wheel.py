"""What `pip install pgscatter` puts on the path of whoever installs it."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# An environment in which the wheel is installed, and the checkout is not.
INSTALLED = """
import sys
sys.path.append(sys.argv.pop(1))
sys.path.append(sys.argv.pop(1))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The wheel of this checkout, unpacked."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    yield folder / "site"


def run(installed: Path, code: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """`code` with the wheel on the path; -S leaves the checkout's own installation out."""
    packages = sysconfig.get_path("purelib")
    command = [sys.executable, "-S", "-c", INSTALLED + code, str(installed), packages, *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60)


def test_no_package_of_a_name_that_applications_use_is_installed(installed: Path) -> None:
    names = {path.name for path in installed.iterdir() if not path.name.endswith(".dist-info")}
    assert names == {"router", "shard_config"}


@pytest.mark.parametrize("command", [["cluster", "status", "--dir", "none"], ["bench", "collect", "none"]])
def test_the_commands_that_need_them_find_them(installed: Path, tmp_path: Path, command: list[str]) -> None:
    code = "from router.cli import main; sys.exit(main(sys.argv[1:]))"
    done = run(installed, code, *command, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("pgscatter "), done.stderr


def test_an_installed_cluster_runs_and_ends_with_its_owner(installed: Path, tmp_path: Path) -> None:
    """The watchdog is a process of its own, which has to find its module."""
    code = """
import router.commands
from deploy.local import Cluster
with Cluster.temporary(1, 0) as cluster:
    print(cluster.nodes[0].role)
"""
    done = run(installed, code, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "primary\n"), done.stderr
