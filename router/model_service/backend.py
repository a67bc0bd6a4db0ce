"""What the service asks of a model, whatever makes it.

Invariant: `run` is called by one thread at a time, never by the event loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

__all__ = ["BackendError", "Embedder", "Floats", "Model", "Output", "Pair", "Reranker"]

Floats: TypeAlias = NDArray[np.floating[Any]]
Pair: TypeAlias = tuple[str, str]  # a query and a text

Item = TypeVar("Item", contravariant=True)


class BackendError(Exception):
    """A model cannot be loaded; the message says which, why, and what would help."""


class Output(msgspec.Struct, frozen=True):
    """What a model made of `n` items.

    Attributes:
        values: of an embedder float32 of shape (n, dimensions), each row of length 1, or all zeros where the
            model knows nothing of a text; of a re-ranker float64 of shape (n,), higher is better.
        tokens: int64 of shape (n,), those that the model has read.
        truncated: bool of shape (n,), whether the item had more tokens than the model reads.
    """

    values: Floats
    tokens: NDArray[np.int64]
    truncated: NDArray[np.bool_]


class Model(Protocol[Item]):
    """What both kinds of models have.

    Attributes:
        backend: what it was loaded from, as the command line says it.
    """

    @property
    def backend(self) -> str: ...

    def run(self, items: Sequence[Item]) -> Output: ...


class Embedder(Model[str], Protocol):
    """Turns texts into vectors.

    Attributes:
        dimensions: of its vectors.
        shorter: the fewer dimensions to which its vectors may be cut, since it was trained for that
            (Matryoshka representation learning, Kusupati et al. 2022).
    """

    @property
    def dimensions(self) -> int: ...

    @property
    def shorter(self) -> Sequence[int]: ...


class Reranker(Model[Pair], Protocol):
    """Scores texts for a query; a score is only comparable with others of the same query."""

    def relevance(self, scores: Floats) -> Floats:
        """`scores` between 0 and 1, in the same order."""
        ...
