"""Logs: one JSON object per line on standard error.

Two ways in, one format out: `logging` for what happens now and then, `AccessLog` for the line that
every request leaves, which has no time for `logging`'s ceremony. Neither is ever given a vector, a body,
a key or a connection string.

Invariant: whatever is logged becomes one line, even text and numbers that strict JSON has no form for.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import sys
import time
from datetime import UTC, datetime
from typing import TextIO

import msgspec

__all__ = ["LEVELS", "AccessLog", "configure"]

LEVELS = ("debug", "info", "warning", "error")

# What JSON leaves as it is: control characters that terminals obey, and ends of lines to many who read lines.
_UNESCAPED = re.compile(rb"\xc2[\x80-\x9f]|\xe2\x80[\xa8\xa9]")
_PAGE = 4096  # PIPE_BUF on Linux

# What every LogRecord has; the rest of its attributes came in through `extra`.
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}


class _JsonFormatter(logging.Formatter):
    def __init__(self, *, pid: bool) -> None:
        super().__init__()
        self._pid = pid
        self._encoder = msgspec.json.Encoder(enc_hook=str)

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, object] = {
            "ts": _timestamp(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        if self._pid:
            fields["pid"] = record.process
        fields |= {name: value for name, value in vars(record).items() if name not in _STANDARD}
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return _encoded(self._encoder, fields).decode()


class AccessLog:
    """Writes a line per request, if its level is `level` or graver.

    What one turn of the event loop brings is written at once: system calls cost more than the lines.
    """

    def __init__(self, stream: TextIO | None = None, *, level: str = "info") -> None:
        self._stream = stream
        self._encoder = msgspec.json.Encoder()
        self._least = LEVELS.index(level)
        self._lines: list[bytes] = []
        self._second = (0, "")

    def write(self, level: str, fields: dict[str, object]) -> None:
        """Must be called while an event loop runs."""
        if LEVELS.index(level) < self._least:
            return
        line = {"ts": self._now(), "level": level, "event": "request", **fields}
        if not self._lines:
            asyncio.get_running_loop().call_soon(self._flush)
        self._lines.append(_encoded(self._encoder, line) + b"\n")

    def _flush(self) -> None:
        stream = self._stream or sys.stderr
        page = b""
        for line in self._lines:
            # Writes of one page at most do not mix with those of other workers, even in a pipe.
            if page and len(page) + len(line) > _PAGE:
                _write(stream, page)
                page = b""
            page += line
        self._lines.clear()
        _write(stream, page)

    def _now(self) -> str:
        now = time.time()
        second = int(now)
        if second != self._second[0]:
            self._second = (second, _timestamp(second)[:-9])
        return f"{self._second[1]}{int(now % 1 * 1000):03d}+00:00"


def configure(level: str, stream: TextIO | None = None, *, pid: bool = False) -> None:
    """Send everything that is logged in this process to standard error as JSON; `pid` says whose line it is.

    Several workers log what each of them sees, and one alone may be the one that has lost a node.
    """
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_JsonFormatter(pid=pid))
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    # Its messages about starting and stopping are for whoever runs uvicorn by hand.
    logging.getLogger("uvicorn").setLevel(logging.WARNING)


def _encoded(encoder: msgspec.json.Encoder, fields: dict[str, object]) -> bytes:
    try:
        line = encoder.encode(fields)
    except (ValueError, TypeError, OverflowError):  # such as a lone surrogate, or an integer beyond 64 bits
        text = json.dumps(fields, ensure_ascii=False, default=str, skipkeys=True)
        line = text.encode("utf-8", "replace")
    if line.isascii():
        return line
    return _UNESCAPED.sub(lambda found: b"\\u%04x" % ord(found[0].decode()), line)


def _write(stream: TextIO, data: bytes) -> None:
    stream.write(data.decode())
    stream.flush()


def _timestamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
