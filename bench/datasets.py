"""What is searched in a bench: base vectors, queries, and the metric that compares them.

Invariant: a spec and the files it names give the same data on every machine; a row's number is its id.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from bench import clustered, idx
from bench.errors import BenchError
from shard_config.model import Metric

__all__ = ["SPECS", "Dataset", "Vectors", "open_dataset"]

Vectors = NDArray[np.float32]

SPECS = "fashion-mnist, fashion-mnist:DIR, FILE.hdf5, demo, or clustered:n=50000,d=128,seed=1"

# Where Debian's package dataset-fashion-mnist puts its files.
_FASHION = Path("/usr/share/datasets/fashion-mnist")
# What pgvector's HNSW takes for the type vector.
_MOST_DIMENSIONS = 2000
_DISTANCES = {
    "euclidean": Metric.L2,
    "angular": Metric.COSINE,
    "cosine": Metric.COSINE,
    "dot": Metric.INNER_PRODUCT,
    "ip": Metric.INNER_PRODUCT,
}
_DEMO_QUERIES = 1000


class Dataset(msgspec.Struct, frozen=True, eq=False):
    """`base` is (n, d), `queries` is (q, d)."""

    name: str
    metric: Metric
    base: Vectors
    queries: Vectors

    def __repr__(self) -> str:
        rows, dimensions = self.base.shape
        return f"<Dataset {self.name}: {rows} x {dimensions} {self.metric}, {len(self.queries)} queries>"

    @property
    def dimensions(self) -> int:
        return int(self.base.shape[1])

    def head(self, rows: int | None = None, queries: int | None = None) -> Dataset:
        """The first `rows` and `queries` of it."""
        cut = rows is not None and rows < len(self.base)
        name = f"{self.name}[:{rows}]" if cut else self.name
        return Dataset(name, self.metric, self.base[:rows], self.queries[:queries])


def open_dataset(spec: str) -> Dataset:
    """The data set that `spec` names, see `SPECS`.

    Raises:
        BenchError: no such data set, or its files are not what they should be.
    """
    kind, _, rest = spec.partition(":")
    if kind == "fashion-mnist":
        return _checked(_fashion_mnist(Path(rest) if rest else _FASHION))
    if kind == "clustered":
        base, queries = clustered.generate(clustered.parse(rest))
        return _checked(Dataset(spec, Metric.L2, base, queries))
    if spec == "demo":
        return _checked(_demo())
    if spec.endswith((".hdf5", ".h5")):
        return _checked(_hdf5(Path(spec)))
    raise BenchError(f"unknown data set {spec!r}; expected {SPECS}")


def _checked(dataset: Dataset) -> Dataset:
    for what, vectors in (("base", dataset.base), ("query", dataset.queries)):
        if not len(vectors):
            raise BenchError(f"{dataset.name} has no {what} vectors")
        if not np.isfinite(vectors).all():
            raise BenchError(f"{dataset.name}: a {what} vector is not finite")
        if dataset.metric is Metric.COSINE and not vectors.any(axis=1).all():
            raise BenchError(f"{dataset.name}: a {what} vector is zero, which has no direction")
    dimensions = dataset.dimensions
    if dataset.queries.shape[1] != dimensions:
        raise BenchError(
            f"{dataset.name}: {dataset.queries.shape[1]} dimensions in queries, {dimensions} in base"
        )
    if not 1 <= dimensions <= _MOST_DIMENSIONS:
        raise BenchError(
            f"{dataset.name}: {dimensions} dimensions, an HNSW index takes 1 to {_MOST_DIMENSIONS}"
        )
    return dataset


def _fashion_mnist(folder: Path) -> Dataset:
    if not folder.is_dir():
        raise BenchError(
            f"no folder {folder}: install Debian's package dataset-fashion-mnist, or name a folder that has"
            " train-images-idx3-ubyte and t10k-images-idx3-ubyte, with or without .gz: fashion-mnist:DIR"
        )
    base, queries = (idx.read(idx.find(folder, f"{part}-images-idx3-ubyte")) for part in ("train", "t10k"))
    return Dataset("fashion-mnist", Metric.L2, base, queries)


def _hdf5(path: Path) -> Dataset:
    """An ann-benchmarks file: data sets `train` and `test`, attribute `distance`."""
    try:
        import h5py
    except ImportError as exc:
        raise BenchError("HDF5 files need h5py: pip install 'pgscatter[bench]'") from exc
    try:
        with h5py.File(path) as file:
            distance = file.attrs.get("distance")
            parts = [np.asarray(file[name][:], dtype=np.float32) for name in ("train", "test")]
    except KeyError as exc:
        raise BenchError(f"{path}: no data set train or test, as ann-benchmarks files have") from exc
    except (OSError, TypeError, ValueError) as exc:
        raise BenchError(f"{path}: {exc}") from exc
    name = distance.decode() if isinstance(distance, bytes) else distance
    if name not in _DISTANCES:
        raise BenchError(f"{path}: distance is {name!r}, expected one of {', '.join(_DISTANCES)}")
    if any(part.ndim != 2 for part in parts):
        raise BenchError(f"{path}: train and test must have a row per vector")
    return Dataset(path.stem, _DISTANCES[name], *parts)


def _demo() -> Dataset:
    """The standard library's documentation; the queries are first paragraphs without what follows."""
    from deploy.corpus import documents as corpus

    entries = corpus.entries()
    chosen = np.random.default_rng(0).permutation(len(entries))[:_DEMO_QUERIES]
    try:
        base = corpus.vectors([entry.text for entry in entries])
        queries = corpus.vectors([entries[i].text.partition("\n\n")[0] for i in chosen])
    except RuntimeError as exc:
        raise BenchError(str(exc)) from exc
    return Dataset("demo", Metric.COSINE, base, queries)
