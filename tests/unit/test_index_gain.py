from __future__ import annotations

import pytest

from router.query.index_advice import Advice
from router.recall.index_gain import Gain, pays
from shard_config.model import MetadataType

PRICE, LANG = Advice("price"), Advice("metadata.lang", MetadataType.TEXT)


@pytest.mark.parametrize(
    ("without_ms", "with_ms", "is_worth_it"),
    [(24.0, 1.5, True), (24.0, 13.0, False), (1.2, 0.3, False), (2.0, 1.0, True)],
)
def test_an_index_must_halve_a_search_and_save_a_millisecond(
    without_ms: float, with_ms: float, is_worth_it: bool
) -> None:
    assert pays(Gain("{}", 0.01, (PRICE,), without_ms, with_ms)) is is_worth_it


def test_a_gain_says_what_to_write_into_the_map() -> None:
    assert str(Gain('{"price":{"$gt":3}}', 0.0123, (PRICE, LANG), 24.04, 1.5)) == (
        '{"price":{"$gt":3}} (1.23%) takes 24.0 ms, and with an index about 1.5 ms: set columns.price.index:'
        " true and metadata.indexes.lang: text, and run `pgscatter schema apply`"
    )
