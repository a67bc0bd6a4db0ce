"""Synthetic vectors in clusters, which are to an HNSW index what real embeddings are; uniform ones are not.

Invariant: equal parameters give equal vectors; more rows or queries do not change the clusters.
"""

from __future__ import annotations

import msgspec
import numpy as np
from numpy.typing import NDArray

from bench.errors import BenchError

__all__ = ["Clustered", "generate", "parse"]

_MOST_BYTES = 32 << 30
_BLOCK = 100_000
# Noise around a centre, relative to the distance between centres: neighbours come from several clusters.
_NOISE = 0.5


class Clustered(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """n base rows of d dimensions and q queries around c centres."""

    n: int = 50_000
    d: int = 128
    seed: int = 1
    q: int = 1_000
    c: int = 100


def parse(text: str) -> Clustered:
    """`n=50000,d=128,seed=1`, any of them."""
    pairs = [part.partition("=") for part in text.split(",")] if text else []
    try:
        made = msgspec.convert({name.strip(): value for name, _, value in pairs}, Clustered, strict=False)
    except msgspec.ValidationError as exc:
        raise BenchError(f"clustered:{text}: {exc}; expected n, d, seed, q and c with whole numbers") from exc
    for name in ("n", "d", "q", "c"):
        if getattr(made, name) < 1:
            raise BenchError(f"clustered:{text}: {name}={getattr(made, name)} is below 1")
    size = 4 * made.d * (made.n + made.q)
    if made.seed < 0 or size > _MOST_BYTES:
        raise BenchError(f"clustered:{text}: seed below 0, or {size:,} bytes exceed {_MOST_BYTES:,}")
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
