"""How many files a router may have open, and what it says when they are used up."""

from __future__ import annotations

import os
import resource
import socket
import time
from pathlib import Path

import pytest

from tests.http.running import Router, serving

NOFILE = resource.RLIMIT_NOFILE


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_router_takes_as_many_files_as_it_may_have(tmp_path: Path, workers: str) -> None:
    soft, hard = resource.getrlimit(NOFILE)
    resource.setrlimit(NOFILE, (256, hard))
    try:
        with serving(tmp_path, "--workers", workers) as router:
            children = Path(f"/proc/{router.process.pid}/task/{router.process.pid}/children").read_text()
            for pid in (router.process.pid, *map(int, children.split())):
                assert resource.prlimit(pid, NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(NOFILE, (soft, hard))


def test_that_no_files_are_left_is_said_and_when_there_are_some_again(tmp_path: Path) -> None:
    with serving(tmp_path) as router:
        pid = router.process.pid
        limit = len(os.listdir(f"/proc/{pid}/fd")) + 10
        resource.prlimit(pid, NOFILE, (limit, limit))
        address = ("127.0.0.1", int(router.url.rsplit(":", 1)[1]))
        callers = [socket.create_connection(address) for _ in range(20)]
        line = said(router, "no files left")
        assert (line["level"], line["limit"]) == ("error", limit)
        assert line["reason"] == "Too many open files"
        for caller in callers:
            caller.close()
        assert said(router, "files left again")["level"] == "info"
        events = [line["event"] for line in router.lines()]
        assert events.count("no files left") == 1


def said(router: Router, event: str) -> dict[str, object]:
    end = time.monotonic() + 10
    while time.monotonic() < end:
        for line in router.lines():
            if line["event"] == event:
                return line
        time.sleep(0.05)
    raise AssertionError(f"never said: {event}: {router.log}")
