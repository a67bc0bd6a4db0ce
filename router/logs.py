"""Logs: one JSON object per line on standard error.

Two ways in, one format out: `logging` for what happens now and then, `AccessLog` for the line that
every request leaves, which has no time for `logging`'s ceremony. Neither is ever given a vector, a body,
a key or a connection string.
"""

from __future__ import annotations

import logging
import sys
import time
from datetime import UTC, datetime
from typing import TextIO

import msgspec

__all__ = ["LEVELS", "AccessLog", "configure"]

LEVELS = ("debug", "info", "warning", "error")

# What every LogRecord has; the rest of its attributes came in through `extra`.
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}


class _JsonFormatter(logging.Formatter):
    def __init__(self) -> None:
        super().__init__()
        self._encoder = msgspec.json.Encoder(enc_hook=str)

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, object] = {
            "ts": _timestamp(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        fields |= {name: value for name, value in vars(record).items() if name not in _STANDARD}
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return self._encoder.encode(fields).decode()


class AccessLog:
    """Writes a line per request, if its level is `level` or graver."""

    def __init__(self, stream: TextIO | None = None, *, level: str = "info") -> None:
        self._stream = stream
        self._encoder = msgspec.json.Encoder()
        self._least = LEVELS.index(level)

    def write(self, level: str, fields: dict[str, object]) -> None:
        if LEVELS.index(level) < self._least:
            return
        line = {"ts": _timestamp(time.time()), "level": level, "event": "request", **fields}
        # One write per line, so that lines of several workers do not mix.
        (self._stream or sys.stderr).write(self._encoder.encode(line).decode() + "\n")


def configure(level: str, stream: TextIO | None = None) -> None:
    """Send everything that is logged in this process to standard error as JSON."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_JsonFormatter())
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    # Its messages about starting and stopping are for whoever runs uvicorn by hand.
    logging.getLogger("uvicorn").setLevel(logging.WARNING)


def _timestamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
