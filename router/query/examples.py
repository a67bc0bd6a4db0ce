"""A query vector made of documents that hits are to be like, and of others that they are not. Pure.

Rocchio, "Relevance Feedback in Information Retrieval" (1971), moves a query towards the mean of what is
relevant and away from the mean of what is not. Here the query itself is the mean of the likes, which gives

    q = p + (p - n)        p, n: the means of the likes and of the others; q = p where there are no others

Under cosine distance, where a vector's length means nothing, each vector counts with length 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from shard_config.model import Metric

__all__ = ["like_vector"]


def like_vector(likes: Sequence[bytes], others: Sequence[bytes], metric: Metric) -> NDArray[np.floating]:
    """The query vector; vectors are little-endian float32, of one length, and there is one like at least.

    The vector of a single like is that document's, bit for bit.
    """
    if len(likes) == 1 and not others:
        return np.frombuffer(likes[0], dtype="<f4")
    wanted = _mean(likes, metric)
    return wanted if not others else wanted + (wanted - _mean(others, metric))


def _mean(vectors: Sequence[bytes], metric: Metric) -> NDArray[np.float64]:
    rows = np.stack([np.frombuffer(data, dtype="<f4") for data in vectors]).astype(np.float64)
    if metric is Metric.COSINE:
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        rows /= np.where(lengths > 0.0, lengths, 1.0)
    return np.asarray(rows.mean(axis=0))
