"""How many files and sockets the process may have open, and a line in the log when there are none left.

Without any, connections to nodes fail, and the event loop's library closes those of callers unanswered and
says nothing.
"""

from __future__ import annotations

import errno
import logging
import os
import resource
from contextlib import suppress

__all__ = ["OpenFiles", "raise_limit"]

_logger = logging.getLogger(__name__)


def raise_limit() -> None:
    """Take as many as the system lets this process have.

    What most are started with, 1024, is for the sake of programs that cannot handle more, and too little for
    hundreds of nodes or callers.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # as where more is allowed than the kernel knows
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


class OpenFiles:
    """Says in the log when none are left, and when there are some again."""

    def __init__(self) -> None:
        self._exhausted = False

    def look(self) -> None:
        """To be called now and then."""
        exhausted, reason = False, ""
        try:
            os.close(os.dup(2))
        except OSError as exc:
            exhausted, reason = exc.errno in (errno.EMFILE, errno.ENFILE), exc.strerror or str(exc)
        if exhausted == self._exhausted:
            return
        self._exhausted = exhausted
        if exhausted:
            limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
            _logger.error("no files left", extra={"reason": reason, "limit": limit})
        else:
            _logger.info("files left again")
