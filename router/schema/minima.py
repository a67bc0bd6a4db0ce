"""The oldest servers that pgscatter works with, in one place for checks, messages and the documentation."""

from __future__ import annotations

import re

__all__ = ["LEAST_PGVECTOR", "LEAST_POSTGRESQL", "WANTED_POSTGRESQL", "numbers", "shown"]

# The oldest that pgvector 0.8 can be built for.
LEAST_POSTGRESQL = 13
# An older one has no client_connection_check_interval: it goes on with statements of a router that is gone.
WANTED_POSTGRESQL = 14
# Iterative scans, which filtered searches need, came with this version.
LEAST_PGVECTOR = (0, 8)


def numbers(version: str) -> tuple[int, ...]:
    """The parts of a version, to be compared."""
    return tuple(int(part) for part in re.findall(r"\d+", version))


def shown(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
