from __future__ import annotations

import contextlib
import select
import socket
import sys

import pytest

from router.http.server import listen
from router.http.take_over import take_over

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the socket filter is Linux's")


def listening(port: int = 0, *, reuse_port: bool = True) -> socket.socket:
    made = listen("127.0.0.1", port, reuse_port=reuse_port)
    made.listen(100)
    made.setblocking(False)
    take_over(made)
    return made


def connected(port: int, *listeners: socket.socket) -> list[int]:
    """How many of 20 connections each listener gets."""
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20))
        counts = dict.fromkeys(listeners, 0)
        while sum(counts.values()) < 20:
            ready, _, _ = select.select(listeners, [], [], 20)
            assert ready, f"the listeners got no more than {list(counts.values())} of 20"
            for listener in ready:
                listener.accept()[0].close()
                counts[listener] += 1
        return list(counts.values())


def test_the_newest_takes_all_connections_and_gives_them_back() -> None:
    with listening() as old:
        port = old.getsockname()[1]
        assert connected(port, old) == [20]
        with listening(port) as new:
            assert connected(port, old, new) == [0, 20]
        assert connected(port, old) == [20]  # it has gone
        with listening(port) as new:
            old.close()
            assert connected(port, new) == [20]
            with listening(port) as newer:
                assert connected(port, new, newer) == [0, 20]


def test_a_port_that_is_not_shared_is_left_alone() -> None:
    with listening(reuse_port=False) as alone:
        assert connected(alone.getsockname()[1], alone) == [20]
        with pytest.raises(OSError, match="in use"):
            listen("127.0.0.1", alone.getsockname()[1], reuse_port=True)
