from __future__ import annotations

import asyncio
import io
import json
import logging
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest

from router.logs import AccessLog, configure


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """Where everything is logged to, until the test ends."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    uvicorn = logging.getLogger("uvicorn").level
    captured = io.StringIO()
    configure("info", captured)
    yield captured
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.getLogger("uvicorn").setLevel(uvicorn)


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_whatever_is_logged_is_one_object_on_one_line(stream: io.StringIO) -> None:
    logging.getLogger("router.x").warning("node %s\nis down", "s0-a", extra={"shard": "s0", "odd": object()})
    logging.getLogger("router.x").debug("unheard")
    (line,) = lines(stream)
    assert (line["level"], line["logger"], line["event"], line["shard"]) == (
        "warning",
        "router.x",
        "node s0-a\nis down",
        "s0",
    )
    assert "object" in line["odd"]


async def test_no_character_ends_a_line_or_reaches_a_terminal_as_a_command(stream: io.StringIO) -> None:
    odd = "a\x85b\u2028c\u2029d\x9b31me\x1b[31m\x7fü\u20ac"
    logging.getLogger("router.x").warning(odd)
    AccessLog(stream).write("info", {"path": odd})
    AccessLog(stream).write("info", {"path": f"{odd}\ud800"})
    await asyncio.sleep(0.01)
    first, second, third = lines(stream)
    assert first["event"] == second["path"] == third["path"][:-1] == odd
    assert not set(stream.getvalue()) & {"\x85", "\x9b", "\x1b"}
    assert "ü\u20ac" in stream.getvalue()


def test_an_exception_keeps_its_traceback(stream: io.StringIO) -> None:
    try:
        raise RuntimeError("broken")
    except RuntimeError:
        logging.getLogger("router.x").exception("failed")
    (line,) = lines(stream)
    assert line["traceback"].endswith("RuntimeError: broken")


async def test_what_json_cannot_say_is_still_one_line(stream: io.StringIO) -> None:
    for odd in ("\ud800", 1 << 70, {1.5: "x"}, float("nan")):
        try:
            raise RuntimeError(f"broken\ud800: {odd}")
        except RuntimeError:
            logging.getLogger("router.x").exception("failed", extra={"odd": odd})
        AccessLog(stream).write("info", {"odd": odd})
        await asyncio.sleep(0)
    found = lines(stream)
    assert [line["event"] for line in found] == ["failed", "request"] * 4
    assert all("broken?: " in line["traceback"] for line in found[::2])


@pytest.mark.parametrize(("level", "written"), [("debug", 3), ("info", 3), ("warning", 2), ("error", 1)])
async def test_the_access_log_keeps_to_its_level(level: str, written: int) -> None:
    stream = io.StringIO()
    log = AccessLog(stream, level=level)
    for each in ("info", "warning", "error"):
        log.write(each, {"status": 200})
    await asyncio.sleep(0)
    assert len(lines(stream)) == written
    assert all(line["event"] == "request" for line in lines(stream))


class Pages(io.StringIO):
    """Counts what a system call each would be."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[str] = []

    def write(self, text: str) -> int:
        self.written.append(text)
        return super().write(text)


async def test_lines_of_one_moment_are_written_together_a_page_at_a_time() -> None:
    stream = Pages()
    log = AccessLog(stream)
    for i in range(100):
        log.write("info", {"number": i, "path": "/\u00e4" * 20})
    log.write("info", {"number": 100, "path": "x" * 9000})
    await asyncio.sleep(0)
    assert [line["number"] for line in lines(stream)] == list(range(101))
    assert len(stream.written) < 10
    assert all(page.endswith("\n") for page in stream.written)
    assert all(len(page.encode()) <= 4096 for page in stream.written[:-1])


async def test_the_access_log_tells_the_time_to_the_millisecond() -> None:
    stream = io.StringIO()
    log = AccessLog(stream)
    before = time.time()
    log.write("info", {})
    await asyncio.sleep(0)
    (line,) = lines(stream)
    told = datetime.fromisoformat(line["ts"])
    assert told.utcoffset() == timedelta(0)
    assert before - 0.001 <= told.timestamp() <= time.time()
