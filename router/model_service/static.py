"""WordLlama: a table with a vector for each token; a text is the mean of its tokens' vectors.

It needs no accelerator and no download, since its package holds the table (16 MB), and it makes some ten
thousand vectors a second. Its quality lies between that of word vectors and that of small transformers.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from router.model_service.backend import BackendError, Floats, Output, Pair

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["WordLlamaEmbedder", "WordLlamaReranker", "mean_vectors"]

_CONFIG = "l2_supercat"
_DIMENSIONS = 256
# Tokens whose vectors are added up at once. They are 4 MiB then, and stay within reach of the processor's
# caches: with 64 texts of 200 characters at once it made 20,000 texts/s, with 1024 of them 6,000.
_TOKENS = 4096


class WordLlamaEmbedder:
    """Vectors of 256 dimensions, which may be cut to 128 or 64.

    Raises:
        BackendError: the package is not installed.
    """

    backend = "wordllama"
    dimensions = _DIMENSIONS

    def __init__(self) -> None:
        self._table, self._tokenizer, self.shorter = _load()

    def __repr__(self) -> str:
        return f"<WordLlamaEmbedder {self.dimensions} dimensions>"

    def run(self, items: Sequence[str]) -> Output:
        encodings = self._tokenizer.encode_batch_fast(list(items), add_special_tokens=False)
        ids = [encoding.ids for encoding in encodings]
        tokens = np.fromiter(map(len, ids), np.int64, len(ids))
        return Output(mean_vectors(self._table, ids), tokens, np.zeros(len(ids), bool))


class WordLlamaReranker:
    """The cosine of a query's and a text's vector: no more than the embedder knows, but of the whole text.

    It lets re-ranking be tried where no cross-encoder is installed.
    """

    backend = "wordllama"

    def __init__(self, embedder: WordLlamaEmbedder | None = None) -> None:
        self._embedder = embedder or WordLlamaEmbedder()

    def __repr__(self) -> str:
        return "<WordLlamaReranker>"

    def run(self, items: Sequence[Pair]) -> Output:
        queries = {query: place for place, query in enumerate({query: None for query, _ in items})}
        made = self._embedder.run([*queries, *(text for _, text in items)])
        of_query = np.array([queries[query] for query, _ in items])
        texts = slice(len(queries), None)
        scores = np.einsum("ij,ij->i", made.values[of_query], made.values[texts], dtype=np.float64)
        return Output(scores, made.tokens[of_query] + made.tokens[texts], made.truncated[texts])

    def relevance(self, scores: Floats) -> Floats:
        return np.clip((1 + scores) / 2, 0, 1)


def mean_vectors(table: NDArray[np.float32], ids: Sequence[Sequence[int]]) -> NDArray[np.float32]:
    """Of each text the mean of its tokens' rows in `table`, scaled to length 1; zeros where there are none.

    As `WordLlamaInference.embed(norm=True)` up to rounding, without vectors for padding: 20,000 instead of
    14,000 texts/s.
    """
    out = np.zeros((len(ids), table.shape[1]), np.float32)
    begin = 0
    while begin < len(ids):
        end, size = begin + 1, len(ids[begin])
        while end < len(ids) and size + len(ids[end]) <= _TOKENS:
            size += len(ids[end])
            end += 1
        filled = [place for place in range(begin, end) if ids[place]]
        if filled:
            lengths = [len(ids[place]) for place in filled]
            flat = np.concatenate([np.asarray(ids[place], np.intp) for place in filled])
            begins = np.concatenate([[0], np.cumsum(lengths[:-1], dtype=np.intp)])
            out[filled] = np.add.reduceat(table[np.minimum(flat, len(table) - 1)], begins, axis=0)
        begin = end
    # The mean and the sum have the same direction.
    lengths_of = np.linalg.norm(out, axis=1, keepdims=True)
    np.divide(out, lengths_of, out=out, where=lengths_of > 0)
    return out


def _load() -> tuple[NDArray[np.float32], Tokenizer, tuple[int, ...]]:
    handlers = list(logging.root.handlers)
    try:
        import wordllama
        from wordllama.config import WordLlamaModels
    except ImportError as exc:
        raise BackendError(f"wordllama is missing ({exc}): install pgscatter[models]") from exc
    finally:
        # Its import sets up the logging of the whole process.
        logging.root.handlers[:] = handlers
    # It looks for the tokenizer in a folder of another name than its wheel has, unless told where: then it
    # would download it.
    folder = Path(wordllama.__file__).parent
    try:
        model = wordllama.WordLlama.load(_CONFIG, cache_dir=folder, dim=_DIMENSIONS, disable_download=True)
    except OSError as exc:
        raise BackendError(f"wordllama is incomplete: {exc}") from exc
    model.tokenizer.no_padding()
    trained = WordLlamaModels.l2_supercat.available_dims
    return model.embedding, model.tokenizer, tuple(sorted(n for n in trained if n < _DIMENSIONS))
