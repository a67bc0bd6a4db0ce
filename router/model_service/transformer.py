"""Transformers by the library sentence-transformers: bi-encoders that embed, cross-encoders that re-rank.

Both read only the first tokens of a text, as many as they were trained for; `Output.truncated` tells which
texts had more.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from router.model_service.backend import BackendError, Floats, Output, Pair

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder, SentenceTransformer

__all__ = ["CrossEncoderReranker", "TransformerEmbedder"]

_INSTALL = "install pgscatter[models-torch]"
# Hugging Face's name for "no limit known".
_UNBOUNDED = 1 << 30


class TransformerEmbedder:
    """A bi-encoder from a folder, or by its name on the Hugging Face hub.

    Raises:
        BackendError
    """

    def __init__(self, source: str) -> None:
        self.backend = f"sentence-transformers:{source}"
        self._model = _embedder(source)
        self._most = _limit(self._model.max_seq_length)
        # Also sees to it that the first request does not pay for what the first call sets up.
        self.dimensions = int(self.run(["a text"]).values.shape[1])
        self.shorter = _matryoshka(self._model, self.dimensions)

    def __repr__(self) -> str:
        return f"<TransformerEmbedder {self.backend!r}, {self.dimensions} dimensions>"

    def run(self, items: Sequence[str]) -> Output:
        texts = list(items)
        values = self._model.encode(
            texts,
            batch_size=len(texts),
            normalize_embeddings=True,
            convert_to_numpy=True,
            show_progress_bar=False,
        )
        tokens = _token_counts(self._model.tokenizer, texts)
        vectors = np.ascontiguousarray(values, dtype=np.float32)
        return Output(vectors, np.minimum(tokens, self._most), tokens > self._most)


class CrossEncoderReranker:
    """A cross-encoder with one output, from a folder, or by its name on the Hugging Face hub.

    Raises:
        BackendError
    """

    def __init__(self, source: str) -> None:
        self.backend = f"cross-encoder:{source}"
        self._model, self._identity = _cross_encoder(source)
        if self._model.num_labels != 1:
            raise BackendError(
                f"{self.backend} has {self._model.num_labels} outputs; a re-ranker has one, the relevance"
            )
        self._most = _limit(self._model.max_length)
        self.run([("a query", "a text")])

    def __repr__(self) -> str:
        return f"<CrossEncoderReranker {self.backend!r}>"

    def run(self, items: Sequence[Pair]) -> Output:
        pairs = [[query, text] for query, text in items]
        scores = self._model.predict(
            pairs,
            batch_size=len(pairs),
            activation_fn=self._identity,
            convert_to_numpy=True,
            show_progress_bar=False,
        )
        tokens = _token_counts(
            self._model.tokenizer, [query for query, _ in items], [text for _, text in items]
        )
        values = np.asarray(scores, dtype=np.float64).reshape(len(items))
        return Output(values, np.minimum(tokens, self._most), tokens > self._most)

    def relevance(self, scores: Floats) -> Floats:
        """The logistic function, with which models of one output are trained."""
        return 1 / (1 + np.exp(-np.clip(scores, -700, 700)))


def _embedder(source: str) -> SentenceTransformer:
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as exc:
        raise BackendError(f"sentence-transformers is missing ({exc}): {_INSTALL}") from exc
    try:
        return SentenceTransformer(source)
    except Exception as exc:  # whatever the libraries below raise about a file or a name
        raise BackendError(f"sentence-transformers:{source} cannot be loaded: {_first_line(exc)}") from exc


def _cross_encoder(source: str) -> tuple[CrossEncoder, Any]:
    try:
        from sentence_transformers import CrossEncoder
        from torch.nn import Identity
    except ImportError as exc:
        raise BackendError(f"sentence-transformers is missing ({exc}): {_INSTALL}") from exc
    try:
        return CrossEncoder(source), Identity()
    except Exception as exc:
        raise BackendError(f"cross-encoder:{source} cannot be loaded: {_first_line(exc)}") from exc


def _limit(tokens: int | None) -> int:
    return _UNBOUNDED if tokens is None else min(int(tokens), _UNBOUNDED)


def _token_counts(tokenizer: Any, texts: list[str], pairs: list[str] | None = None) -> NDArray[np.int64]:
    """Of each text, or pair of texts, the number of tokens, special ones included, if none were cut."""
    # verbose=False: that a text has more tokens than the model reads is told in the answer.
    found = tokenizer(
        texts, pairs, truncation=False, padding=False, return_attention_mask=False, verbose=False
    )
    return np.fromiter(map(len, found["input_ids"]), np.int64, len(texts))


def _matryoshka(model: SentenceTransformer, dimensions: int) -> tuple[int, ...]:
    """The fewer dimensions that the model's config.json allows, by the names that vLLM reads there too."""
    config = getattr(model, "config", None)
    some = getattr(config, "matryoshka_dimensions", None)
    if some:
        return tuple(sorted(int(n) for n in some if 0 < int(n) < dimensions))
    return tuple(range(1, dimensions)) if getattr(config, "is_matryoshka", False) else ()


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
