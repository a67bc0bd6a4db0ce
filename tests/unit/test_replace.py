"""Files that belong to somebody else are replaced with all that they had but their content."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from shard_config.file.replace import NotReplacedError, TextFile, check_replaceable, replace_file

ROOT = os.geteuid() == 0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "map.yaml"
    made.write_bytes(b"old")
    return made


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664, 0o755])
def test_the_mode_stays(path: Path, mode: int) -> None:
    path.chmod(mode)
    replace_file(path, b"new", expected=b"old")
    assert (path.read_bytes(), path.stat().st_mode & 0o7777) == (b"new", mode)


def test_nobody_may_read_more_of_it_meanwhile(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.chmod(0o600)
    seen: list[int] = []
    copystat = shutil.copystat

    def look(source: Path, fresh: Path) -> None:
        seen.append(fresh.stat().st_mode & 0o777)
        copystat(source, fresh)

    monkeypatch.setattr("shard_config.file.replace.shutil.copystat", look)
    replace_file(path, b"new")
    assert seen == [0o600]


@pytest.mark.parametrize("steps", [1, 2])
def test_a_symbolic_link_stays_one_and_the_file_behind_it_is_replaced(path: Path, steps: int) -> None:
    folder = path.parent / "elsewhere"
    folder.mkdir()
    link = path
    for step in range(steps):
        before, link = link, folder / f"link{step}"
        link.symlink_to(os.path.relpath(before, folder))
    replace_file(link, b"new")
    assert link.is_symlink()
    assert (path.is_symlink(), path.read_bytes()) == (False, b"new")
    assert sorted(one.name for one in folder.iterdir()) == [f"link{step}" for step in range(steps)]


def test_a_link_that_leads_to_no_file_yet_gets_one_there(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("target")
    replace_file(tmp_path / "link", b"new", expected=b"")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_bytes() == b"new"


def test_a_new_file_has_the_mode_that_the_umask_leaves(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        replace_file(tmp_path / "new", b"new")
    finally:
        os.umask(before)
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o640


@pytest.mark.skipif(not ROOT, reason="only root can give files away")
def test_the_owner_stays(path: Path) -> None:
    os.chown(path, 12345, 23456)
    replace_file(path, b"new")
    assert (path.stat().st_uid, path.stat().st_gid) == (12345, 23456)


def test_an_owner_that_cannot_stay_leaves_the_file_as_it_is(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    fstat = os.fstat

    def of_somebody_else(descriptor: int) -> os.stat_result:
        return os.stat_result((*fstat(descriptor)[:4], 4711, *fstat(descriptor)[5:10]))

    monkeypatch.setattr("shard_config.file.replace.os.fchown", refuse)
    monkeypatch.setattr("shard_config.file.replace.os.fstat", of_somebody_else)
    with pytest.raises(NotReplacedError, match=r"its owner would not stay user \d+, group \d+"):
        replace_file(path, b"new")
    assert (path.read_bytes(), len(list(path.parent.iterdir()))) == (b"old", 1)


def test_extended_attributes_stay(path: Path) -> None:
    try:
        os.setxattr(path, "user.note", b"ours")
    except OSError:
        pytest.skip("this file system has none")
    replace_file(path, b"new")
    assert os.getxattr(path, "user.note") == b"ours"


def test_the_time_of_change_is_now_and_not_that_of_the_old_content(path: Path) -> None:
    os.utime(path, (0, 0))
    replace_file(path, b"new")
    assert path.stat().st_mtime > 1e9


@pytest.mark.parametrize("there", [b"other", b"", None])
def test_what_somebody_wrote_since_it_was_read_is_not_overwritten(path: Path, there: bytes | None) -> None:
    file = TextFile(path)
    if there is None:
        path.unlink()
    else:
        path.write_bytes(there)
    with pytest.raises(
        NotReplacedError, match=r"map\.yaml is left as it is: it was changed since it was read"
    ):
        file.replace("new")
    assert (path.read_bytes() if path.exists() else None) == there
    assert [one.name for one in path.parent.iterdir()] == ([] if there is None else ["map.yaml"])


def test_a_file_that_has_come_since_is_not_overwritten(path: Path) -> None:
    with pytest.raises(NotReplacedError, match="it was changed since it was read"):
        replace_file(path, b"new", expected=b"")
    assert path.read_bytes() == b"old"


def test_of_many_who_replace_the_same_content_one_succeeds(path: Path) -> None:
    done: list[bool] = []
    start = threading.Barrier(8)

    def replace(number: int) -> None:
        start.wait()
        try:
            replace_file(path, b"new %d" % number, expected=b"old")
        except NotReplacedError:
            done.append(False)
        else:
            done.append(True)

    threads = [threading.Thread(target=replace, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(done) == [False] * 7 + [True]


def test_a_lock_that_is_held_for_long_is_not_waited_for_without_end(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shard_config.file.replace._LOCK_SECONDS", 0.1)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        with pytest.raises(NotReplacedError, match=r"has held a lock on the folder .* for 0\.1 s"):
            replace_file(path, b"new")
    finally:
        os.close(folder)
    assert path.read_bytes() == b"old"


def test_other_names_of_the_same_file_are_not_left_behind(path: Path) -> None:
    os.link(path, path.parent / "other")
    with pytest.raises(NotReplacedError, match=r"2 names \(hard links\)"):
        replace_file(path, b"new")
    assert path.read_bytes() == b"old"


def test_what_is_no_regular_file_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "."):
        with pytest.raises(NotReplacedError, match="it is not a regular file"):
            replace_file(tmp_path / name, b"new")
    with pytest.raises(NotReplacedError, match="/none cannot be written to"):
        check_replaceable(tmp_path / "none" / "map.yaml")


@contextmanager
def of_nobody() -> Iterator[Path]:
    """A folder of an account that may not do everything, which this process is within the block."""
    with tempfile.TemporaryDirectory() as name:
        if not ROOT:
            yield Path(name)
            return
        os.chown(name, 65534, 65534)
        os.seteuid(65534)
        try:
            yield Path(name)
        finally:
            os.seteuid(0)


def test_a_folder_or_a_file_that_may_not_be_written_is_named() -> None:
    with of_nobody() as folder:
        path = folder / "map.yaml"
        path.write_bytes(b"old")
        path.chmod(0o444)
        with pytest.raises(NotReplacedError, match="it is read-only"):
            replace_file(path, b"new")
        path.chmod(0o644)
        folder.chmod(0o555)
        try:
            with pytest.raises(NotReplacedError, match=f"the folder {folder} cannot be written to"):
                replace_file(path, b"new")
        finally:
            folder.chmod(0o755)
        assert path.read_bytes() == b"old"
        replace_file(path, b"new")
        assert path.read_bytes() == b"new"


def test_a_full_disk_leaves_the_old_content_and_nothing_else(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("shard_config.file.replace.os.fsync", full)
    with pytest.raises(NotReplacedError, match="cannot be replaced: No space left on device"):
        replace_file(path, b"new")
    assert (path.read_bytes(), len(list(path.parent.iterdir()))) == (b"old", 1)


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_line_ends_and_a_byte_order_mark_stay(path: Path, mark: bytes) -> None:
    path.write_bytes(mark + b"a: 1\r\nb: 2\nc: \xc3\xa4")
    file = TextFile(path)
    assert file.text == "a: 1\r\nb: 2\nc: ä"
    file.replace(file.text.replace("1", "3"))
    assert path.read_bytes() == mark + b"a: 3\r\nb: 2\nc: \xc3\xa4"
