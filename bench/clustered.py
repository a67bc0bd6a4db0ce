"""Synthetic vectors in clusters, which are to an HNSW index what real embeddings are; uniform ones are not.

Invariant: equal parameters give equal vectors; more rows or queries do not change the clusters.
"""

from __future__ import annotations

from typing import Annotated, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from bench.errors import BenchError

__all__ = ["Clustered", "generate", "parse"]

_MOST_BYTES = 32 << 30
_BLOCK = 100_000
# Noise around a centre, relative to the distance between centres: neighbours come from several clusters.
_NOISE = 0.5


Positive: TypeAlias = Annotated[int, msgspec.Meta(ge=1)]


class Clustered(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """n base rows of d dimensions and q queries around c centres."""

    n: Positive = 50_000
    d: Positive = 128
    seed: Annotated[int, msgspec.Meta(ge=0)] = 1
    q: Positive = 1_000
    c: Positive = 100


def parse(text: str) -> Clustered:
    """`n=50000,d=128,seed=1`, any of them."""
    pairs = [part.partition("=") for part in text.split(",")] if text else []
    try:
        made = msgspec.convert({name.strip(): value for name, _, value in pairs}, Clustered, strict=False)
    except msgspec.ValidationError as exc:
        raise BenchError(f"clustered:{text}: {exc}; expected n, d, seed, q and c with whole numbers") from exc
    if (size := 4 * made.d * (made.n + made.q)) > _MOST_BYTES:
        raise BenchError(f"clustered:{text}: {size:,} bytes exceed {_MOST_BYTES:,}")
    return made


def generate(wanted: Clustered) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Base and queries, from generators of their own."""
    centres_rng, base_rng, queries_rng = np.random.default_rng(wanted.seed).spawn(3)
    centres = centres_rng.standard_normal((wanted.c, wanted.d), dtype=np.float32)
    return _around(centres, wanted.n, base_rng), _around(centres, wanted.q, queries_rng)


def _around(centres: NDArray[np.float32], count: int, rng: np.random.Generator) -> NDArray[np.float32]:
    made = np.empty((count, centres.shape[1]), dtype=np.float32)
    noise, choice = rng.spawn(2)
    for first in range(0, count, _BLOCK):
        block = made[first : first + _BLOCK]
        noise.standard_normal(out=block, dtype=np.float32)
        block *= _NOISE
        block += centres[choice.integers(0, len(centres), len(block))]
    return made
