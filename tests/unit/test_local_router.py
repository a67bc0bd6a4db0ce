"""A router that does not come up says why, and is not left behind."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from deploy.local import processes, router
from deploy.local.router import RouterError, listening, serve_arguments, serving

SILENT = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
LISTENING = "import sys, time; print('here on http://127.0.0.1:9', flush=True); time.sleep(60)"


def test_settings_are_flags(tmp_path: Path) -> None:
    assert serve_arguments(tmp_path / "m.yaml", port=8080, l1_bytes=0, redis="redis://x") == [
        *("serve", "--map", str(tmp_path / "m.yaml"), "--port", "8080"),
        *("--l1-bytes=0", "--redis=redis://x"),
    ]


def test_a_router_that_ends_is_quoted(tmp_path: Path) -> None:
    with (
        pytest.raises(RouterError, match=r"ended with status 1; it said last:\n.*none\.yaml"),
        serving(serve_arguments(tmp_path / "none.yaml"), tmp_path / "log"),
    ):
        pass


@pytest.mark.parametrize(("script", "ready"), [(SILENT, False), (LISTENING, True)])
def test_a_server_that_is_not_ready_in_time_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, ready: bool
) -> None:
    monkeypatch.setattr(router, "_READY_SECONDS", 2.0)
    command = [sys.executable, "-c", script]
    with (
        pytest.raises(RouterError, match="is not ready; it said last"),
        listening(command, tmp_path / "log", ready=ready),
    ):
        pass
    said = (tmp_path / "log").read_text().split()
    # On a busy machine its time may be over before it has said anything.
    assert ready or not said or not processes.alive(int(said[0]))


def test_what_listens_is_known_by_its_url_and_its_pid(tmp_path: Path) -> None:
    with listening([sys.executable, "-c", LISTENING], tmp_path / "log") as found:
        assert (found.url, found.last_words()) == ("http://127.0.0.1:9", "here on http://127.0.0.1:9")
        assert processes.is_server(found.pid, LISTENING)
    assert not processes.alive(found.pid)
