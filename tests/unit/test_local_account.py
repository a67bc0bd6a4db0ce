"""Who the servers run as, with the least right that opens their program and their folder."""

from __future__ import annotations

import os
import pwd
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.local import become
from deploy.local.account import Account, AccountError
from deploy.local.environment import environment
from tests.integration.machines import needs_root, program

NOBODY = pwd.getpwnam("nobody")


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """One that every account may enter, as pytest's are not."""
    with tempfile.TemporaryDirectory(prefix="pgscatter-test-") as name:
        if os.statvfs(name).f_flag & os.ST_NOEXEC:
            pytest.skip(f"{name} is on a file system from which no program may be run")
        Path(name).chmod(0o755)
        yield Path(name)


def run(account: Account, path: Path, folder: Path) -> tuple[int, int]:
    """The user id and the capabilities with which `path` runs."""
    done = subprocess.run(
        account.command([str(path)], folder), capture_output=True, text=True, cwd="/", timeout=60
    )
    assert done.returncode == 0, done.stderr
    uid, capabilities = done.stdout.splitlines()
    return int(uid.split()[1]), int(capabilities.split()[1], 16)


@needs_root
@pytest.mark.parametrize(
    ("closed", "mode", "capability"),
    [(False, 0o755, 0), (True, 0o755, 1 << 2), (False, 0o700, 1 << 1), (True, 0o700, 1 << 1)],
)
def test_the_least_right_that_is_enough_is_kept(
    open_folder: Path, closed: bool, mode: int, capability: int
) -> None:
    if closed:
        (open_folder / "closed").mkdir(mode=0o700)
    path = program(open_folder / ("closed/program" if closed else "program"), mode)
    assert run(Account(), path, open_folder / "data") == (NOBODY.pw_uid, capability)


@needs_root
def test_a_data_folder_that_is_out_of_reach_is_opened_as_well(open_folder: Path) -> None:
    (open_folder / "closed").mkdir(mode=0o700)
    folder = open_folder / "closed" / "nodes" / "one"
    assert run(Account(), program(open_folder / "program"), folder) == (NOBODY.pw_uid, 1 << 2)
    assert (folder.stat().st_uid, stat.S_IMODE(folder.stat().st_mode)) == (NOBODY.pw_uid, 0o700)
    assert list(folder.iterdir()) == []


@needs_root
def test_data_go_to_whoever_can_run_the_program(open_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A namespace shows root as the account: what it may touch has to be root's."""
    path, folder = program(open_folder / "program"), open_folder / "nodes" / "one"
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "file").write_text("")
    run(Account(), path, folder)
    assert {one.lstat().st_uid for one in (folder, *folder.rglob("*"))} == {NOBODY.pw_uid}
    monkeypatch.setattr(become, "WAYS", {"namespace": None})
    try:
        assert run(Account(), path, folder) == (NOBODY.pw_uid, 0)
    except AccountError as exc:
        pytest.skip(f"needs user namespaces: {exc}")
    assert {one.lstat().st_uid for one in (folder, *folder.rglob("*"))} == {0}


@needs_root
def test_data_of_an_ordinary_account_stay_its_own(open_folder: Path) -> None:
    folder = open_folder / "nodes" / "one"
    folder.mkdir(parents=True)
    folder.parent.chmod(0o755)  # whatever the umask
    os.chown(folder, 54321, 54321)
    assert run(Account(), program(open_folder / "program"), folder) == (54321, 0)
    assert folder.stat().st_uid == 54321


@needs_root
def test_where_no_way_works_each_is_named_with_what_it_takes(open_folder: Path) -> None:
    broken = open_folder / "program"
    broken.write_text("#!/bin/sh\necho 'no such library' >&2\nexit 127\n")
    broken.chmod(0o755)
    with pytest.raises(AccountError) as caught:
        Account().command([str(broken)], open_folder / "data")
    first, *rest = str(caught.value).splitlines()
    assert f"account nobody cannot run {broken} with data in {open_folder / 'data'}" in first
    assert [line.split()[0] for line in rest] == list(become.WAYS)
    assert all(line.endswith(": no such library") for line in rest)
    assert "CAP_DAC_OVERRIDE" in rest[2]


@pytest.mark.skipif(os.geteuid() == 0, reason="root hands its servers to another account")
def test_an_ordinary_account_runs_its_servers_itself(tmp_path: Path) -> None:
    assert Account().command(["postgres", "-V"], tmp_path / "data") == ["postgres", "-V"]
    assert stat.S_IMODE((tmp_path / "data").stat().st_mode) == 0o700


def test_programs_get_nothing_of_the_caller_that_would_change_them(tmp_path: Path) -> None:
    caller = {"PGDATA": "/x", "PGSSLMODE": "require", "LC_NUMERIC": "de_DE", "LANG": "x", "HOME": "/root"}
    kept = {"PATH": "/bin", "LD_PRELOAD": "/x.so", "TZ": "UTC"}
    assert environment(tmp_path, {**caller, **kept}) == {**kept, "HOME": str(tmp_path), "LC_ALL": "C"}
