"""Keys that change while the router runs, and files of keys that others could change."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import signal
import stat
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from router.commands.serve import _copying
from router.http.errors import HttpError
from router.http.keys import Keys
from router.http.keys_file import KeysError, load, restore, save
from router.http.keys_watch import KeysWatch, watching
from router.http.life import Life
from tests.http.fake import FakeBackend, application
from tests.http.running import serving, until


def text(*names: str) -> str:
    return "keys:\n" + "".join(f"  - {{name: {name}, key: key-{name}, scopes: [admin]}}\n" for name in names)


class Watched:
    """A file of keys, read once, and its watch."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.watch = KeysWatch(path, partial(load, path, {}))
        self.keys = self.watch.load()

    def look(self, *, asked: bool = False) -> bool:
        return self.watch.look(self.keys, asked)

    @property
    def names(self) -> list[str]:
        return [key.name for key in self.keys]

    def opens(self, name: str) -> bool:
        with contextlib.suppress(HttpError):
            return bool(self.keys.authorise({b"x-api-key": f"key-{name}".encode()}, "read"))
        return False


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    (tmp_path / "keys.yaml").write_text(text("a", "b"))
    (tmp_path / "keys.yaml").chmod(0o600)
    # Many kernels' times of files stand still for milliseconds: what is written next is another time.
    os.utime(tmp_path / "keys.yaml", (0, 0))
    return Watched(tmp_path / "keys.yaml")


def test_a_changed_file_is_read_when_nobody_writes_it_any_more(watched: Watched) -> None:
    assert not watched.look() and not watched.look()
    watched.path.write_text(text("a"))
    assert not watched.look()
    watched.path.write_text(text("a", "c"))
    assert not watched.look()  # it has changed again since the last look
    assert watched.opens("b")
    assert watched.look()
    assert (watched.names, watched.opens("b"), watched.opens("c")) == (["a", "c"], False, True)
    assert not watched.look()


def test_who_asks_has_it_read_at_once(watched: Watched, caplog: pytest.LogCaptureFixture) -> None:
    watched.path.write_text(text("a", "c").replace("key-a", "another"))
    assert watched.look(asked=True)
    assert watched.names == ["a", "c"] and not watched.opens("a")
    (record,) = caplog.records
    assert record.getMessage() == "keys reloaded"
    said = [vars(record)[name] for name in ("keys", "added", "removed", "changed")]
    assert said == [2, ["c"], ["b"], ["a"]]
    assert not watched.look() and not watched.look(asked=True)


@pytest.mark.parametrize("fault", ["keys: [", text("a", "a"), "", None, "writable"])
def test_a_file_that_cannot_be_used_leaves_the_keys_before(
    watched: Watched, fault: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    if fault is None:
        watched.path.unlink()
    elif fault == "writable":
        watched.path.chmod(0o666)
    else:
        watched.path.write_text(fault)
    assert not watched.look() and watched.look()
    assert watched.names == ["a", "b"] and watched.keys.outdated
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert not watched.look() and not watched.look()  # said once
    assert len(caplog.records) == 1
    watched.path.write_text(text("a"))
    watched.path.chmod(0o600)
    assert not watched.look() and watched.look()
    assert watched.names == ["a"] and not watched.keys.outdated


@pytest.mark.parametrize("linked", [False, True])
def test_a_folder_that_is_mended_lets_the_keys_in_and_one_that_opens_is_told_of(
    tmp_path: Path, linked: bool
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    path = folder / "keys.yaml"
    path.write_text(text("a"))
    path.chmod(0o600)
    if linked:
        (tmp_path / "link").symlink_to(path)
    watched = Watched(tmp_path / "link" if linked else path)
    folder.chmod(0o777)
    path.write_text(text("b"))
    assert not watched.look() and watched.look()
    assert watched.names == ["a"] and watched.keys.outdated
    folder.chmod(0o755)
    assert not watched.look() and watched.look()
    assert watched.names == ["b"] and not watched.keys.outdated
    folder.chmod(0o777)
    assert not watched.look() and watched.look()
    assert watched.keys.outdated


def test_keys_of_a_kubernetes_secret_are_taken_and_followed(tmp_path: Path) -> None:
    """The volume is open to all but sticky; its files are links over a link to a folder of each version."""
    volume = tmp_path / "volume"
    for version, names in (("..1", "ab"), ("..2", "a")):
        (volume / version).mkdir(parents=True)
        (volume / version / "keys.yaml").write_text(text(*names))
        (volume / version / "keys.yaml").chmod(0o644)
    volume.chmod(0o1777)
    (volume / "..data").symlink_to("..1")
    (volume / "keys.yaml").symlink_to("..data/keys.yaml")
    watched = Watched(volume / "keys.yaml")
    assert watched.names == ["a", "b"]
    (volume / "..new").symlink_to("..2")
    (volume / "..new").rename(volume / "..data")
    assert not watched.look() and watched.look()
    assert watched.names == ["a"]


def test_a_pipe_is_read_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    os.mkfifo(tmp_path / "pipe")
    watch = KeysWatch(tmp_path / "pipe", lambda: pytest.fail("it would wait for a writer"))
    keys = Keys([])
    assert not watch.look(keys) and not watch.look(keys, True)
    assert "is a pipe, read once" in str(vars(caplog.records[0])["reason"])


def test_workers_follow_the_copy_at_their_next_look(watched: Watched, tmp_path: Path) -> None:
    copy = tmp_path / "copy.json"
    save(watched.keys, copy)
    watch = KeysWatch(copy, partial(restore, copy), copy=True)
    keys = watch.load()
    watched.keys.outdated = True
    watched.keys.replace(Keys(list(watched.keys)[:1], outdated=True))
    save(watched.keys, copy)
    assert watch.look(keys)
    assert [key.name for key in keys] == ["a"] and keys.outdated
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600 and b"key-a" not in copy.read_bytes()
    copy.unlink()  # as at the end of the supervisor
    assert not watch.look(keys) and len(keys) == 1


@pytest.mark.parametrize("copy", [False, True])
def test_a_file_that_could_not_be_read_for_a_moment_is_read_again_without_a_change(
    tmp_path: Path, copy: bool, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "keys.yaml"
    path.write_text(text("a", "b"))
    path.chmod(0o600)
    without = [False]

    def read() -> Keys:
        if without[0]:
            raise KeysError([f"{path}: Too many open files"]) from OSError(24, "Too many open files")
        return load(path, {})

    watch = KeysWatch(path, read, copy=copy)
    keys = watch.load()
    path.write_text(text("a"))
    without[0] = True
    for _ in range(5):
        watch.look(keys)
    assert len(keys) == 2 and keys.outdated is not copy
    assert len(caplog.records) == (0 if copy else 1)
    without[0] = False
    assert watch.look(keys)
    assert [key.name for key in keys] == ["a"] and not keys.outdated


def test_workers_get_keys_that_could_not_be_copied_at_first(tmp_path: Path, watched: Watched) -> None:
    folder = tmp_path / "shared"
    folder.mkdir()
    life = Life()
    with _copying(watched.keys, watched.watch, folder / "keys.json", life):
        assert len(restore(folder / "keys.json")) == 2
        folder.rename(tmp_path / "away")  # as if the disk were full
        watched.path.write_text(text("a"))
        until(lambda: len(watched.keys) == 1)
        time.sleep(0.1)
        (tmp_path / "away").rename(folder)
        until(lambda: len(restore(folder / "keys.json")) == 1)


def test_a_look_that_fails_is_not_the_last(caplog: pytest.LogCaptureFixture) -> None:
    looks = []

    def look(asked: bool) -> None:
        looks.append(asked)
        raise OSError("the file system has gone")

    answers = iter([True, False])
    with watching(look, lambda: next(answers, False)):
        until(lambda: len(looks) >= 2)
    assert looks[:2] == [True, False]
    assert caplog.text.count("keys not looked at") == 1


@pytest.mark.parametrize(
    ("mode", "folder_mode", "reason"),
    [
        (0o600, 0o700, None),
        (0o440, 0o555, None),
        (0o640, 0o1777, None),
        (0o620, 0o700, "its mode 0620 lets others write it, who could give themselves keys; chmod go-w it"),
        (0o602, 0o700, "its mode 0602 lets others write it"),
        (0o600, 0o770, "the mode 0770 of its folder {folder} lets others replace it; chmod go-w that"),
        (0o600, 0o702, "the mode 0702 of its folder {folder} lets others replace it"),
    ],
)
@pytest.mark.parametrize("linked", [False, True])
def test_a_file_that_others_can_change_is_refused(
    tmp_path: Path, mode: int, folder_mode: int, reason: str | None, linked: bool
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    path = folder / "keys.yaml"
    path.write_text(text("a"))
    path.chmod(mode)
    folder.chmod(folder_mode)
    if linked:
        # The link stands where nobody else can write, and leads to where they can.
        (tmp_path / "link").symlink_to("folder/keys.yaml")
        path = tmp_path / "link"
    if reason is None:
        assert len(load(path, {})) == 1
        return
    with pytest.raises(KeysError) as caught:
        load(path, {})
    assert str(caught.value).startswith(f"{path}: {reason.format(folder=folder)}")


def test_a_link_that_others_can_exchange_is_refused(watched: Watched, tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    (tmp_path / "open" / "link").symlink_to(watched.path)
    with pytest.raises(KeysError, match="open lets others replace it"):
        load(tmp_path / "open" / "link", {})


@pytest.mark.parametrize("part", ["file", "folder", "link"])
def test_what_belongs_to_another_account_is_refused(
    tmp_path: Path, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    path = folder / "keys.yaml"
    path.write_text(text("a"))
    if part == "link":  # where nobody else can exchange it
        (tmp_path / "link").symlink_to(path)
        path = tmp_path / "link"
    if os.geteuid() == 0:
        os.chown(folder if part == "folder" else path, 12345, -1, follow_symlinks=False)
    else:
        own = os.geteuid()
        monkeypatch.setattr(os, "geteuid", lambda: own + 1)
    with pytest.raises(KeysError, match=r"belongs to the account \d+, who could give themselves keys"):
        load(path, {})


def test_a_file_that_others_can_read_is_warned_of(watched: Watched, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    load(watched.path, {})
    assert not caplog.records
    watched.path.chmod(0o644)
    load(watched.path, {})
    assert [record.getMessage() for record in caplog.records] == ["keys can be read by others"]


async def test_health_and_metrics_say_that_the_file_cannot_be_used(
    connect: Callable[[Any], httpx.AsyncClient], watched: Watched
) -> None:
    client = connect(application(FakeBackend(), keys=watched.keys))
    headers = {"x-api-key": "key-a"}
    assert (await client.get("/health", headers=headers)).json()["keys"] == "current"
    assert "pgscatter_keys_outdated 0.0" in (await client.get("/metrics", headers=headers)).text
    watched.path.write_text("keys: [")
    watched.look(asked=True)
    assert (await client.get("/health", headers=headers)).json()["keys"] == "outdated"
    assert "pgscatter_keys_outdated 1.0" in (await client.get("/metrics", headers=headers)).text
    assert "keys" not in (await connect(application(FakeBackend())).get("/health")).json()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_revoked_key_is_refused_by_all_workers_also_on_open_connections(
    tmp_path: Path, workers: str
) -> None:
    path = tmp_path / "keys.yaml"
    path.write_text(text("a", "b"))
    path.chmod(0o600)
    with contextlib.ExitStack() as stack:
        router = stack.enter_context(serving(tmp_path, "--workers", workers, "--api-keys", str(path)))
        clients = [stack.enter_context(httpx.Client(base_url=router.url, timeout=30)) for _ in range(8)]

        def statuses(name: str) -> set[int]:
            headers = {"x-api-key": f"key-{name}"}
            return {client.get("/v1/nodes", headers=headers).status_code for client in clients}

        assert (statuses("a"), statuses("b"), statuses("c")) == ({200}, {200}, {401})
        path.write_text(text("a", "c"))
        if workers == "2":
            router.process.send_signal(signal.SIGHUP)
        until(lambda: statuses("b") == {401})
        assert (statuses("a"), statuses("c")) == ({200}, {200})
        path.write_text("keys: [")
        until(lambda: router.get("/health", **{"x-api-key": "key-a"}).json()["keys"] == "outdated")
        assert (statuses("a"), statuses("c")) == ({200}, {200})
        assert router.stop() == 0
        assert hashlib.sha256(b"key-a").hexdigest() not in router.log and "key-a" not in router.log
