from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bench import truth
from bench.datasets import Dataset, open_dataset
from bench.errors import BenchError
from shard_config.model import Metric

DATASET = open_dataset("clustered:n=500,d=12,seed=2,q=30")


def naive(dataset: Dataset, query: int) -> list[float]:
    q = dataset.queries[query].astype(float)
    found = []
    for row in dataset.base.astype(float):
        match dataset.metric:
            case Metric.L2:
                found.append(float(((row - q) ** 2).sum()))
            case Metric.L1:
                found.append(float(np.abs(row - q).sum()))
            case Metric.INNER_PRODUCT:
                found.append(-float(row @ q))
            case Metric.COSINE:
                found.append(1 - float(row @ q) / float(np.linalg.norm(row) * np.linalg.norm(q)))
    return found


@pytest.mark.parametrize("metric", list(Metric))
def test_neighbours_are_those_of_brute_force(metric: Metric, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(truth, "_BLOCK_BYTES", 8 * 500 * 7)  # several blocks, the last one not full
    dataset = Dataset("d", metric, DATASET.base, DATASET.queries)
    done: list[int] = []
    found = truth.exact(dataset, 10, done.append)
    assert done == [7, 14, 21, 28, 30]
    for i in range(30):
        every = naive(dataset, i)
        expected = sorted(range(500), key=lambda row: (every[row], row))[:10]
        assert found.ids[i].tolist() == expected
        assert np.allclose(found.distances[i], [every[row] for row in expected])


def test_ties_go_by_id() -> None:
    base = np.repeat(np.eye(2, dtype=np.float32), 5, axis=0)
    found = truth.exact(Dataset("ties", Metric.L2, base, base[:1]), 7)
    assert found.ids[0].tolist() == [0, 1, 2, 3, 4, 5, 6]


def test_a_row_as_near_as_the_last_true_one_is_right() -> None:
    base = np.array([[1, 0], [2, 0], [2, 0], [0, 2], [3, 0]], dtype=np.float32)
    dataset = Dataset("ties", Metric.L2, base, np.zeros((1, 2), dtype=np.float32))
    found = truth.exact(dataset, 2)

    def recall(*answers: list[int]) -> float:
        return found.recall(dataset, np.zeros(len(answers), np.int64), np.array(answers))

    assert recall([0, 1]) == recall([0, 3]) == recall([2, 0]) == 1
    assert recall([0, 4]) == recall([0, -1]) == recall([0, 0]) == 0.5
    assert recall([-1, -1]) == 0
    assert recall([0, 1], [0, 1], [0, 4], [4, -1]) == pytest.approx(2.5 / 4)
    # Equally near rows cannot make up for the nearest one.
    assert recall([1, 2]) == 1 or recall([1, 2]) == 0.5


def test_no_answer_has_no_recall() -> None:
    found = truth.exact(DATASET, 5)
    with pytest.raises(BenchError):
        found.recall(DATASET, np.empty(0, np.int64), np.empty((0, 5), np.int64))


def test_it_is_computed_once_for_equal_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = truth.truth_of(DATASET, 10, folder=tmp_path)
    (kept,) = tmp_path.iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(truth, "exact", None)
        again = truth.truth_of(DATASET, 10, folder=tmp_path)
    assert np.array_equal(first.ids, again.ids)
    kept.write_bytes(kept.read_bytes()[:100])
    assert np.array_equal(truth.truth_of(DATASET, 10, folder=tmp_path).ids, first.ids)
    truth.truth_of(DATASET.head(400), 10, folder=tmp_path)
    truth.truth_of(DATASET, 9, folder=tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("k", [0, 501])
def test_more_neighbours_than_rows_are_refused(k: int, tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=f"k={k}, but .* has 500 rows"):
        truth.truth_of(DATASET, k, folder=tmp_path)


def test_the_cache_is_where_the_user_keeps_caches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert truth.cache_folder() == tmp_path / "pgscatter" / "truth"
