from __future__ import annotations

import json

import msgspec
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from router.query.hits import pieces_of
from router.query.sizes import expected_bytes, layout_for, least_bytes, runs
from router.query.wire import base64_text, from_wire_bytes, number_text, to_wire
from shard_config.model import VectorType
from tests.unit.queries import collection

FINITE = st.integers(0, 2**32 - 1).map(lambda bits: np.uint32(bits).view(np.float32)).filter(np.isfinite)


@given(st.lists(FINITE, min_size=1, max_size=50))
def test_the_text_of_a_vector_is_the_same_float32_and_short(components: list[np.float32]) -> None:
    data = np.array(components, "<f4").tobytes()
    wire = to_wire(data, VectorType.VECTOR)
    text = number_text(wire, VectorType.VECTOR)
    assert np.array(json.loads(text), "<f4").tobytes() == data  # a zero's sign included
    # At most nine digits, a sign, a point and an exponent.
    assert len(text) <= 2 + len(components) * len("-1.23456789e-38,")
    assert msgspec.json.decode(base64_text(wire, VectorType.VECTOR), type=bytes) == data


@given(st.lists(st.integers(0, 2**16 - 1).map(lambda b: np.uint16(b).view(np.float16)).filter(np.isfinite)))
def test_the_text_of_a_halfvec_is_exactly_its_components(components: list[np.float16]) -> None:
    data = np.array(components, "<f2").astype("<f4").tobytes()
    wire = to_wire(data, VectorType.HALFVEC)
    assert np.array(json.loads(number_text(wire, VectorType.HALFVEC)), "<f4").tobytes() == data
    assert from_wire_bytes(wire, VectorType.HALFVEC) == data


def test_a_tenth_is_written_as_a_tenth() -> None:
    wire = to_wire(np.array([0.1, -0.0, 1e-45, 3.4028235e38], "<f4").tobytes(), VectorType.VECTOR)
    assert number_text(wire, VectorType.VECTOR) == b"[0.1,-0.0,1e-45,3.4028235e+38]"


@given(st.lists(st.integers(0, 30)), st.integers(1, 40), st.integers(1, 40))
def test_runs_cover_all_places_once_and_are_no_larger_than_said(
    sizes: list[int], first: int, most: int
) -> None:
    made = list(runs(sizes, first, most))
    assert [i for run in made for i in run] == list(range(len(sizes)))
    for number, run in enumerate(made):
        assert len(run) == 1 or sum(sizes[i] for i in run) <= (most if number else first)


def test_a_document_in_pieces_is_the_document() -> None:
    long = 'x"\\\n\u00e9\U0001f642\u0001' * 60_000
    metadata = json.dumps({"long": long}, ensure_ascii=False)
    document = {"id": 1, "": None, "content": long, "metadata": msgspec.Raw(metadata.encode()), "last": [1]}
    pieces = list(pieces_of(document))
    assert json.loads(b"".join(pieces)) == document | {"metadata": {"long": long}}
    assert len(pieces) > 6 and max(map(len, pieces)) < 6 * (1 << 18) + 1000


def test_what_is_wide_does_not_come_along() -> None:
    documents = collection()
    assert layout_for(documents, frozenset(), 1000, 100).inline == frozenset()
    include = frozenset({"content", "vector"})
    near = layout_for(documents, include, 10, 4)
    assert near.inline == include and near.guarded and 10 * 4 * (near.row_bytes + near.fixed_bytes) <= 1 << 20
    assert not layout_for(documents, frozenset({"vector"}), 10, 4).guarded
    assert layout_for(documents, include, 100_000, 100).inline == frozenset()


def test_the_least_that_an_answer_takes_is_less_than_what_it_usually_does() -> None:
    documents = collection()
    for include in (frozenset({"content"}), frozenset({"vector"}), frozenset({"content", "vector"})):
        sizes = [10, 2000, 0]
        for format_ in ("float", "base64"):
            assert least_bytes(documents, include, sizes, format_) < expected_bytes(  # type: ignore[arg-type]
                documents,
                include,
                sizes,
                format_,  # type: ignore[arg-type]
            )
