"""What the recall scenario says of how wide the router scans."""

from __future__ import annotations

from bench.scenarios.recall import raised_note
from router.query.plan import plan_search
from shard_config.model import Index, Quantization
from tests.unit.queries import collection, query, shard_map


def planned(quantization: Quantization, *widths: int) -> dict[int, int]:
    """What the router makes of each width for ten rows, with an overfetch of 2."""
    of = collection(index=Index(16, 64, quantization))
    return {width: plan_search(query(of, k=10, ef_search=width), shard_map()).ef_search for width in widths}


def test_the_note_says_what_the_plan_does_with_each_width() -> None:
    # Ten rows are asked of each shard, and no width below that would bring them; twice as many only where a
    # quantized index has to be compared with the full vectors.
    assert raised_note(planned(Quantization.NONE, 10, 40)).endswith("no ef_search was raised.")
    assert raised_note(planned(Quantization.NONE, 5, 40)).endswith("raised ef_search 5 to 10.")
    assert raised_note(planned(Quantization.BINARY, 10, 15, 40)).endswith("ef_search 10 to 20, 15 to 20.")
