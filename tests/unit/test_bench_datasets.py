from __future__ import annotations

import gzip
import struct
from pathlib import Path

import h5py
import numpy as np
import pytest

from bench.datasets import open_dataset
from bench.errors import BenchError
from deploy.corpus import documents as corpus
from shard_config.model import Metric

IMAGES = np.arange(5 * 2 * 3, dtype=np.uint8).reshape(5, 2, 3)


def idx_bytes(items: np.ndarray) -> bytes:
    return struct.pack(f">4B{items.ndim}I", 0, 0, 8, items.ndim, *items.shape) + items.tobytes()


def fashion(folder: Path, train: bytes, test: bytes, suffix: str = "") -> str:
    for part, data in (("train", train), ("t10k", test)):
        packed = gzip.compress(data) if suffix else data
        (folder / f"{part}-images-idx3-ubyte{suffix}").write_bytes(packed)
    return f"fashion-mnist:{folder}"


def hdf5(path: Path, distance: object = "euclidean", **parts: object) -> str:
    with h5py.File(path, "w") as file:
        if distance is not None:
            file.attrs["distance"] = distance
        for name, data in parts.items():
            file[name] = data
    return str(path)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_images_become_rows(tmp_path: Path, suffix: str) -> None:
    dataset = open_dataset(fashion(tmp_path, idx_bytes(IMAGES), idx_bytes(IMAGES[:2]), suffix))
    assert dataset.metric is Metric.L2
    assert dataset.base.dtype == np.float32 and dataset.base.shape == (5, 6)
    assert dataset.base[4].tolist() == list(range(24, 30))
    assert dataset.queries.shape == (2, 6)


GOOD = idx_bytes(IMAGES)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (GOOD[:-1], "29 bytes of items, the header says 30"),
        (GOOD + b"x", "31 bytes of items, the header says 30"),
        (GOOD[:10], "ends within its header"),
        (b"", "no IDX file"),
        (b"\0\0\x0d\3" + GOOD[4:], "no IDX file"),
        (struct.pack(">4B3I", 0, 0, 8, 3, 0, 2, 3), "no base vectors"),
    ],
)
def test_a_malformed_idx_file_is_named(tmp_path: Path, data: bytes, said: str) -> None:
    with pytest.raises(BenchError, match=said):
        open_dataset(fashion(tmp_path, data, GOOD))


def test_a_truncated_gzip_file_is_named(tmp_path: Path) -> None:
    spec = fashion(tmp_path, GOOD, GOOD, ".gz")
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(BenchError, match=path.name):
        open_dataset(spec)


def test_a_folder_without_the_files_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(BenchError, match="neither train-images-idx3-ubyte nor"):
        open_dataset(f"fashion-mnist:{tmp_path}")
    with pytest.raises(BenchError, match="dataset-fashion-mnist"):
        open_dataset(f"fashion-mnist:{tmp_path}/none")


@pytest.mark.parametrize(
    ("distance", "metric"),
    [("euclidean", Metric.L2), (b"angular", Metric.COSINE), ("dot", Metric.INNER_PRODUCT)],
)
def test_an_ann_benchmarks_file_says_its_metric(tmp_path: Path, distance: object, metric: Metric) -> None:
    rows = np.ones((4, 3), dtype=np.float64)
    dataset = open_dataset(hdf5(tmp_path / "a.hdf5", distance, train=rows, test=rows[:1]))
    assert (dataset.name, dataset.metric, dataset.base.dtype) == ("a", metric, np.float32)
    assert (dataset.base.shape, dataset.queries.shape) == ((4, 3), (1, 3))


ROWS = np.ones((4, 3), dtype=np.float32)


@pytest.mark.parametrize(
    ("distance", "parts", "said"),
    [
        ("jaccard", {"train": ROWS, "test": ROWS}, "distance is 'jaccard'"),
        (None, {"train": ROWS, "test": ROWS}, "distance is None"),
        ("euclidean", {"train": ROWS}, "no data set train or test"),
        ("euclidean", {"train": ROWS, "test": ROWS[:, :2]}, "2 dimensions in queries, 3 in base"),
        ("euclidean", {"train": ROWS, "test": ROWS[0]}, "a row per vector"),
        ("euclidean", {"train": ROWS * np.nan, "test": ROWS}, "a base vector is not finite"),
        ("angular", {"train": ROWS, "test": ROWS * 0}, "a query vector is zero"),
        ("euclidean", {"train": np.ones((2, 2001)), "test": ROWS}, "2001"),
        ("euclidean", {"train": np.ones((2, 2001)), "test": np.ones((1, 2001))}, "takes 1 to 2000"),
    ],
)
def test_a_faulty_hdf5_file_is_named(
    tmp_path: Path, distance: str | None, parts: dict[str, object], said: str
) -> None:
    with pytest.raises(BenchError, match=said):
        open_dataset(hdf5(tmp_path / "a.hdf5", distance, **parts))


def test_a_truncated_hdf5_file_is_named(tmp_path: Path) -> None:
    spec = hdf5(tmp_path / "a.h5", train=np.ones((1000, 8)), test=ROWS)
    Path(spec).write_bytes(Path(spec).read_bytes()[:3000])
    with pytest.raises(BenchError, match=r"a\.h5"):
        open_dataset(spec)


def test_equal_parameters_give_equal_vectors() -> None:
    one = open_dataset("clustered:n=300,d=8,seed=4,q=10")
    two = open_dataset("clustered:n=300,d=8,seed=4,q=20")
    assert one.base.shape == (300, 8) and one.queries.shape == (10, 8)
    assert np.array_equal(one.base, two.base)
    assert np.array_equal(one.queries, two.queries[:10])
    assert not np.array_equal(one.base, open_dataset("clustered:n=300,d=8,seed=5").base)


@pytest.mark.parametrize("spec", ["n=0", "n=x", "m=4", "d=0", "seed=-1", "n=99999999999", "n"])
def test_clusters_that_cannot_be_are_refused(spec: str) -> None:
    with pytest.raises(BenchError, match=f"clustered:{spec}"):
        open_dataset(f"clustered:{spec}")


def test_an_unknown_spec_lists_those_that_exist() -> None:
    with pytest.raises(BenchError, match="'sift'; expected fashion-mnist"):
        open_dataset("sift")


def test_a_head_says_so_in_its_name() -> None:
    dataset = open_dataset("clustered:n=300,d=8,q=10")
    assert dataset.head(100, 5).name == "clustered:n=300,d=8,q=10[:100]"
    assert dataset.head(1000).name == dataset.name
    assert repr(dataset.head(100, 5)).endswith("100 x 8 l2, 5 queries>")


def test_the_demo_corpus_has_queries_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    some = corpus.entries()[::5]
    monkeypatch.setattr(corpus, "entries", lambda: some)
    dataset = open_dataset("demo")
    assert dataset.metric is Metric.COSINE
    assert len(dataset.base) == len(some) > 1000 >= len(dataset.queries) > 900
