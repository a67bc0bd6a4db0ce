"""Rows of a load that come as text: read from files, embedded, and what happens when the service fails."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bench.simulation.virtual_time import run
from router.bulk.batch import Batch, Source, Unembedded
from router.bulk.embed import Embedding
from router.bulk.errors import EmbeddingError, SourceError
from router.bulk.resume import options_digest
from router.bulk.sources import open_source
from router.documents.types import Document, TextDocument
from router.query.errors import (
    DeadlineError,
    InvalidError,
    MisconfiguredError,
    OverloadedError,
    Problem,
    RouterError,
    UnavailableError,
)
from shard_config.model import Collection, EmbeddingService
from tests.unit.bulk_sources import collection, write_lines

OF = collection(embedder="m", template="{tenant}: {content}")
DOWN = UnavailableError("the embedding service m cannot be reached", retry_after=0.1)


def parquet(path: Path, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def chunk(source: Source, rows: int = 1000) -> Batch | Unembedded:
    (only,) = source.chunks(rows, lambda _: True)
    assert only.batch is not None
    return only.batch


def opened(path: Path, of: Collection = OF) -> Source:
    return open_source(path, of, "train", None)


def texts(rows: Batch | Unembedded) -> dict[int, str]:
    assert isinstance(rows, Unembedded)
    return {each.index: each.text for each in rows.documents if isinstance(each, TextDocument)}


class Service:
    """Answers as `plan` says for its calls one after the other, then for ever as the last of them."""

    def __init__(self, *plan: Callable[[Sequence[str]], list[bytes | RouterError]]) -> None:
        self.plan = list(plan)
        self.calls: list[list[str]] = []

    async def __call__(
        self, service: EmbeddingService, texts: Sequence[str], deadline: float
    ) -> list[bytes | RouterError]:
        self.calls.append(list(texts))
        return (self.plan.pop(0) if len(self.plan) > 1 else self.plan[0])(texts)


def vector(text: str) -> bytes:
    return np.array([len(text), 1], "<f4").tobytes()


def made(texts: Sequence[str]) -> list[bytes | RouterError]:
    return [vector(text) for text in texts]


def failing(error: RouterError) -> Callable[[Sequence[str]], list[bytes | RouterError]]:
    return lambda texts: [error] * len(texts)


def embedding(path: Path, service: Service, patience: float = 60.0) -> tuple[Embedding, list[str]]:
    said: list[str] = []
    return Embedding(OF, opened(path), service, patience, said.append), said


def embedded(
    path: Path, service: Service, patience: float = 60.0
) -> tuple[dict[int, bytes | Any], list[str]]:
    work, said = embedding(path, service, patience)
    rows = chunk(opened(path))
    assert isinstance(rows, Unembedded)
    return run(work.outcomes(rows)), said


def some_lines(folder: Path, count: int = 20) -> Path:
    return write_lines(
        folder / "a.jsonl", *({"id": i, "content": str(i), "tenant": "t"} for i in range(count))
    )


def test_lines_without_a_vector_have_their_texts_and_others_their_vectors(tmp_path: Path) -> None:
    path = write_lines(
        tmp_path / "a.jsonl",
        {"id": 1, "content": "c", "tenant": "t", "metadata": {"a": 1}},
        {"id": 2, "content": "c", "vector": [3, 4]},
        {"id": 3, "content": " "},
        {"id": 4, "vector": [1, 2, 3]},
        {"id": 5, "vector": None, "tenant": "u"},
    )
    source = opened(path)
    rows = chunk(source)
    assert texts(rows) == {1: "t: c", 5: "u: "}
    assert isinstance(rows, Unembedded)
    assert [row.row for row in rows.refused] == [3, 4]
    assert rows.refused[0].reason == (
        "vector: required, but missing; there is no text in tenant and content to make it of"
    )
    work, _ = embedding(path, Service(made))
    batch = work.completed(rows, {1: vector("t: c"), 5: vector("u: ")})
    assert batch.rows.tolist() == [1, 2, 5]
    assert batch.vectors.tolist() == [[4, 1], [3, 4], [3, 1]]
    assert batch.columns["body"] == ["c", "c", None]
    assert batch.columns["meta"] == ['{"a": 1}', None, None]
    assert [row.row for row in batch.refused] == [3, 4]


def test_lines_that_all_have_vectors_are_read_as_ever(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", {"id": 1, "vector": [1, 2], "content": "c"})
    assert isinstance(chunk(opened(path)), Batch)


@pytest.mark.parametrize(
    ("line", "as_text"),
    [
        ({"id": 1, "content": "c"}, True),
        ({"id": 1, "vector": None}, True),
        ({"id": 1, "vector": [1, 2]}, False),
        (b"nonsense", False),
        (b"[1]", False),
    ],
)
def test_what_a_file_of_lines_holds_is_told_by_its_first(tmp_path: Path, line: Any, as_text: bool) -> None:
    path = write_lines(tmp_path / "a.jsonl", b"", line)
    assert opened(path).as_text is as_text
    assert opened(path, collection()).as_text is False


@pytest.mark.parametrize("name", ["vector", "embedding"])
def test_a_parquet_file_may_lack_vectors_of_some_rows(tmp_path: Path, name: str) -> None:
    path = parquet(
        tmp_path / "a.parquet",
        id=[1, 2, 3, 4, 5],
        **{name: pa.array([[1.0, 2.0], None, None, [1.0], None], pa.list_(pa.float64()))},
        content=["a", "b", None, "d", "e"],
        tenant=["t", "t", None, "t", "x\0"],
        metadata=['{"x": 1}', '{"x": 2}', None, None, None],
        day=pa.array([0, 1, 2, 3, 4], pa.date32()),
    )
    rows = chunk(opened(path))
    assert texts(rows) == {1: "t: b"}
    work, _ = embedding(path, Service(made))
    batch = work.completed(rows, {1: vector("t: b")})  # type: ignore[arg-type]
    assert (batch.rows.tolist(), list(batch.ids)) == ([0, 1], [1, 2])
    assert batch.vectors.tolist() == [[1, 2], [4, 1]]
    assert batch.columns["meta"] == ['{"x": 1}', '{"x": 2}']
    assert [str(day) for day in batch.columns["day"]] == ["1970-01-01", "1970-01-02"]
    assert [(row.row, row.reason.split(":")[0]) for row in batch.refused] == [
        *((2, "vector"), (3, "vector"), (4, "tenant"))
    ]


def test_a_parquet_file_may_lack_the_column_of_vectors_where_there_is_an_embedder(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", id=[1, 2], content=["a", "b"])
    assert opened(path).as_text
    assert texts(chunk(opened(path))) == {0: ": a", 1: ": b"}
    with pytest.raises(SourceError, match="expected one, since documents has no embedder"):
        opened(path, collection())


def test_rows_are_the_same_whether_their_vectors_came_or_were_made(tmp_path: Path) -> None:
    documents = [
        {"id": i, "content": f"c{i}", "tenant": "t", "price": i / 4, "metadata": {"i": i}} for i in range(9)
    ]
    full = [{**one, "vector": [len(f"t: c{one['id']}"), 1]} for one in documents]
    lines = write_lines(tmp_path / "a.jsonl", *documents)
    given = chunk(opened(write_lines(tmp_path / "b.jsonl", *full)))
    columns = {name: [one[name] for one in documents] for name in documents[0]}
    columns["metadata"] = [json.dumps(each) for each in columns["metadata"]]
    for path in (lines, parquet(tmp_path / "a.parquet", **columns)):
        work, _ = embedding(path, Service(made))
        rows = chunk(opened(path))
        batch = work.completed(rows, {row: vector(text) for row, text in texts(rows).items()})  # type: ignore
        assert isinstance(given, Batch)
        assert batch.vectors.tolist() == given.vectors.tolist()
        assert (list(batch.ids), batch.columns) == (list(given.ids), given.columns)
        assert batch.shards.tolist() == given.shards.tolist()


def test_texts_are_sent_in_the_services_batches_and_come_back_to_their_rows(tmp_path: Path) -> None:
    service = Service(made)
    outcomes, said = embedded(some_lines(tmp_path, 100), service)
    assert outcomes == {i + 1: vector(f"t: {i}") for i in range(100)}
    # The service takes 4 texts in a request, and a call is of 4 requests.
    assert ({len(call) for call in service.calls}, said) == ({16, 4}, [])


@pytest.mark.parametrize("error", [DOWN, OverloadedError("busy", 1.0), DeadlineError("late")])
def test_what_fails_for_a_while_is_sent_again_and_told_once(tmp_path: Path, error: RouterError) -> None:
    def half(texts: Sequence[str]) -> list[bytes | RouterError]:
        return [vector(text) if i % 2 else error for i, text in enumerate(texts)]

    service = Service(failing(error), failing(error), half, half, failing(error), made)
    outcomes, said = embedded(some_lines(tmp_path, 16), service)
    assert outcomes == {i + 1: vector(f"t: {i}") for i in range(16)}
    assert said == [f"{error.detail}; trying again, for 60 s at most"]
    assert [len(call) for call in service.calls] == [16, 16, 16, 8, 4, 4]


def test_a_service_that_stays_away_ends_the_load_at_the_row_that_lacks_its_vector(tmp_path: Path) -> None:
    service = Service(failing(DOWN))
    with pytest.raises(EmbeddingError) as caught:
        embedded(some_lines(tmp_path, 5), service, patience=10)
    first, rest = caught.value.lines
    assert first == f"{tmp_path / 'a.jsonl'}, line 1: not embedded: {DOWN.detail}"
    assert rest.startswith("nor were 4 other rows, in ")


def test_every_vector_gives_the_service_its_time_anew(tmp_path: Path) -> None:
    def one(texts: Sequence[str]) -> list[bytes | RouterError]:
        return [vector(texts[0]), *([DOWN] * (len(texts) - 1))]

    plan = [failing(DOWN), failing(DOWN), failing(DOWN), one] * 16
    outcomes, _ = embedded(some_lines(tmp_path, 16), Service(*plan), patience=4)
    assert len(outcomes) == 16


@pytest.mark.parametrize(
    "error", [MisconfiguredError("makes 3 dimensions"), OverloadedError("ask again tomorrow", 86_400.0)]
)
def test_what_waiting_cannot_mend_ends_the_load_at_once(tmp_path: Path, error: RouterError) -> None:
    service = Service(failing(error))
    with pytest.raises(EmbeddingError, match=error.detail):
        embedded(some_lines(tmp_path, 5), service)
    assert len(service.calls) == 1


def test_a_text_that_the_model_refuses_is_a_bad_row(tmp_path: Path) -> None:
    said = "the embedding service m answers 413: too long"
    error = InvalidError(f"text: {said}", [Problem("text", said)])
    path = some_lines(tmp_path, 3)
    work, _ = embedding(path, Service(made))
    rows = chunk(opened(path))
    assert isinstance(rows, Unembedded)
    batch = work.completed(rows, {1: vector("t: 0"), 2: error, 3: bytes(8)})
    assert batch.rows.tolist() == [1]
    assert [(row.row, row.reason.split(";")[0]) for row in batch.refused] == [
        (2, said),
        (3, "vector: a zero vector has no direction, which cosine distance needs"),
    ]


def test_another_model_or_template_does_not_go_on_with_a_load(tmp_path: Path) -> None:
    service = OF.embedder
    assert service is not None
    others = [
        OF,
        msgspec.structs.replace(OF, template="{content}"),
        msgspec.structs.replace(OF, embedder=msgspec.structs.replace(service, model="another")),
        msgspec.structs.replace(OF, embedder=msgspec.structs.replace(service, document_prefix="passage: ")),
    ]
    assert len({options_digest(of, "train", None) for of in others}) == 4
    moved = msgspec.structs.replace(service, url="http://10.0.0.1/v1", api_key="k", batch=7, timeout=9.0)
    same = msgspec.structs.replace(OF, embedder=moved)
    assert options_digest(same, "train", None) == options_digest(OF, "train", None)


def test_documents_of_a_chunk_keep_the_order_of_the_file(tmp_path: Path) -> None:
    rows = [{"id": i, "content": "x", **({"vector": [1, i + 1]} if i % 2 else {})} for i in range(6)]
    path = write_lines(tmp_path / "a.jsonl", *rows)
    found = chunk(opened(path))
    assert isinstance(found, Unembedded)
    assert [isinstance(each, Document) for each in found.documents] == [False, True] * 3
    work, _ = embedding(path, Service(made))
    batch = work.completed(found, {i: vector("x") for i in (1, 3, 5)})
    assert batch.rows.tolist() == [1, 2, 3, 4, 5, 6]
