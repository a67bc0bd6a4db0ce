from __future__ import annotations

import random
from datetime import date

from router.query.filter import Compare, In, parse
from router.recall.filters import filters_of_share
from router.settings import Settings
from shard_config import model
from shard_config.times import DistantTime
from shard_config.values import ValueType
from tests.unit.queries import collection

WANTED = (0.01, 0.1, 0.5)


def columns(**types: ValueType) -> model.Collection:
    return collection(columns={name: model.Column(name, name, type_) for name, type_ in types.items()})


def test_frequent_values_are_equalities_and_numbers_ranges() -> None:
    documents = columns(kind=ValueType.TEXT, price=ValueType.FLOAT8)
    rows = [("half" if i % 2 else f"k{i % 40}", float(i)) for i in range(2000)]
    random.Random(0).shuffle(rows)
    one, ten, half = filters_of_share(documents, rows, WANTED)
    assert isinstance(half.filter, Compare)
    assert (half.filter.op, half.filter.value, half.share) == ("=", "half", 0.5)
    assert isinstance(ten.filter, Compare | In)
    for made, wanted in zip((one, ten, half), WANTED, strict=True):
        assert wanted / 2 <= made.share <= 2 * wanted
    assert half.said == '{"kind":"half"}'


def test_ranges_keep_what_they_say() -> None:
    rows = [(None,) if i % 4 == 0 else (i / 7,) for i in range(1000)]
    made = filters_of_share(columns(price=ValueType.FLOAT8), rows, WANTED)
    assert len(made) == 3
    for one, wanted in zip(made, WANTED, strict=True):
        assert isinstance(one.filter, Compare)
        bound = one.filter.value
        assert isinstance(bound, float)
        assert one.share == sum(row[0] is not None and row[0] >= bound for row in rows) / 1000
        assert one.share == wanted


def test_columns_that_say_nothing_make_no_filter() -> None:
    assert filters_of_share(columns(), [()] * 100, WANTED) == []
    unique = [(f"name {i}", None) for i in range(1000)]
    assert filters_of_share(columns(a=ValueType.TEXT, b=ValueType.DATE), unique, (0.001,)) == []
    assert filters_of_share(columns(a=ValueType.TEXT), [("same",)] * 100, WANTED) == []
    assert filters_of_share(columns(a=ValueType.FLOAT8), [(float("nan"),)] * 100, WANTED) == []


def test_values_that_json_lacks_are_said_as_a_request_would() -> None:
    documents = columns(day=ValueType.DATE)
    rows = [(DistantTime("date", 2**31 - 1) if i % 2 else date(2026, 1, 1 + i % 28),) for i in range(1000)]
    (half,) = filters_of_share(documents, rows, (0.5,))
    assert half.said == '{"day":"infinity"}'
    assert parse(documents, {"day": "infinity"}, Settings()) == half.filter
