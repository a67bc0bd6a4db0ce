"""What to change where no width of the scan reaches a recall, by what limits it. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping

from router.query.plan import EF_SEARCH_MAX
from shard_config import limits
from shard_config.model import Collection, Quantization

__all__ = ["advice", "candidate_steps"]


def candidate_steps(k: int) -> list[int]:
    """How many candidates of each shard a quantized index may be asked for: at the greatest `ef_search`, and
    with more `overfetch` than that, up to the map's limit."""
    most = int(limits.OVERFETCH[1]) * k
    return [
        EF_SEARCH_MAX,
        *(step for step in (2000, 4000, 8000) if step < most),
        *([most] if most > EF_SEARCH_MAX else []),
    ]


def advice(collection: Collection, k: int, measured: float, ideal: Mapping[int, float], target: float) -> str:
    """What to change where `measured`, the mean recall at the greatest `ef_search`, does not show `target`.

    Args:
        ideal: by number of candidates, the mean recall of an index that misses none of them: what is lacking
            there lies with the order of a quantized index, and what is lacking beyond it with the graph.
    """
    if measured >= target:
        return "its mean reaches it: with more queries (--queries) that may be shown"
    graph = "build the index with larger m and ef_construction"
    if not ideal:
        return graph
    kind = collection.index.quantization
    at_widest = ideal[EF_SEARCH_MAX]
    if at_widest >= target:
        return (
            f"the first {EF_SEARCH_MAX} in the order of the {kind} index would give {at_widest:.4f}, so its"
            f" graph misses them: {graph}"
        )
    finer = "halfvec or none" if kind is Quantization.BINARY else "none"
    said = (
        f"the first {EF_SEARCH_MAX} in the order of the {kind} index give no more than {at_widest:.4f},"
        f" whatever its graph: set index.quantization to {finer}"
    )
    enough = [candidates for candidates, value in ideal.items() if value >= target]
    if enough:
        overfetch = math.ceil(enough[0] / k)
        return f"{said}, or search.overfetch to {overfetch} ({enough[0]} candidates: {ideal[enough[0]]:.4f})"
    return said
