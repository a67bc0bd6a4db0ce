"""The model service as tests and the demo start it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import httpx
import pytest

from deploy.local.models import model_service
from deploy.local.router import RouterError


def test_a_service_is_ready_when_the_block_begins_and_gone_when_it_ends() -> None:
    with model_service() as url:
        answer = httpx.post(f"{url}/embeddings", json={"model": "wordllama", "input": "a text"}).json()
        assert len(answer["data"][0]["embedding"]) == 256
        assert httpx.get(f"{url.root}/readyz").json() == {"ready": True, "models": {"wordllama": True}}
        pid, log = url.pid, url.log
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert not log.exists()


def test_a_service_that_does_not_start_says_why(tmp_path: Path) -> None:
    with (
        pytest.raises(RouterError, match=r"cannot be loaded|is missing"),
        model_service("--embedder", f"m=sentence-transformers:{tmp_path}", log=tmp_path / "log"),
    ):
        pass


def test_a_service_may_be_killed_within_the_block() -> None:
    with model_service() as url:
        os.kill(url.pid, signal.SIGKILL)
