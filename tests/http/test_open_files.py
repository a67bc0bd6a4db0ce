"""How many files a router may have open, and what it says when they are used up."""

from __future__ import annotations

import os
import resource
import socket
from itertools import pairwise
from pathlib import Path

import pytest

from tests.http.running import Router, serving, until

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
        until(lambda: said(router))
        line = said(router)[0]
        assert (line["level"], line["limit"]) == ("error", limit)
        assert line["reason"] == "Too many open files"
        for caller in callers:
            caller.close()
        until(lambda: said(router)[-1]["event"] == "files left again")
        # A probe of a node that ends gives a file back, too.
        events = [line["event"] for line in said(router)]
        assert events[0] == "no files left" and all(a != b for a, b in pairwise(events))
        assert said(router)[1]["level"] == "info"


def said(router: Router) -> list[dict[str, object]]:
    return [line for line in router.lines() if "files left" in line["event"]]
