"""Every limit that an operator can set, with its default.

Each field is a flag of `pgscatter serve` (`--max-body-bytes`) and an environment variable
(`PGSCATTER_MAX_BODY_BYTES`); `docs/settings.md` explains them and a test keeps it complete.
Times are in seconds, rates per second.
"""

from __future__ import annotations

import re
from typing import Literal

import msgspec

__all__ = ["Settings", "origins_of"]

_ORIGIN = re.compile(
    r"https?://(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?|[a-z][a-z0-9+.-]*-extension://[\w-]+"
)


class Settings(msgspec.Struct, frozen=True):
    # edges
    max_body_bytes: int = 8 << 20
    max_stream_bytes: int = 1 << 30
    max_line_bytes: int = 1 << 20
    max_batch: int = 1000
    max_documents: int = 10_000
    max_filter_depth: int = 8
    max_filter_conditions: int = 256
    max_filter_values: int = 10_000
    max_offset: int = 10_000
    max_timeout: float = 60.0
    max_concurrent: int = 512
    max_answer_bytes: int = 64 << 20
    answer_memory_bytes: int = 128 << 20
    cors_origins: str = ""
    write_timeout: float = 30.0
    drain_timeout: float = 30.0
    # nodes
    node_connections: int = 16
    node_statements: int = 1
    node_together: int = 16
    node_queue: int = 512
    node_queue_wait: float = 1.0
    write_connections: int = 4
    connect_timeout: float = 2.0
    cancel_timeout: float = 1.0
    probe_interval: float = 0.5
    probe_timeout: float = 1.0
    failover_wait: float = 5.0
    max_lag: float = 10.0
    lag_policy: Literal["primary", "stale", "error"] = "stale"
    primary_reads: Literal["equal", "last_resort", "never"] = "equal"
    zone: str = ""
    statistics_interval: float = 60.0
    max_ejected: float = 0.5
    hedge_quantile: float = 0.95
    hedge_budget: float = 0.05
    retry_budget: float = 0.2
    # caches
    l1_bytes: int = 64 << 20
    body_cache_bytes: int = 32 << 20
    l2_timeout: float = 0.02
    l2_pause: float = 2.0
    l2_max_entry_bytes: int = 1 << 20
    # recall
    recall_sample_rate: float = 0.001
    recall_budget: float = 0.1


def origins_of(text: str) -> tuple[str, ...]:
    """The origins that `cors_origins` lists: as browsers send them, or `*` for all.

    Raises:
        ValueError
    """
    origins = tuple(part.strip() for part in text.split(",") if part.strip())
    for origin in origins:
        if origin != "*" and not _ORIGIN.fullmatch(origin):
            raise ValueError(f"expected origins such as https://app.example.com, or *, got {origin[:80]!r}")
    return origins
