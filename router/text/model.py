"""TF-IDF weights reduced by a truncated SVD (latent semantic analysis), over scikit-learn.

It is a small model, fitted in a second on the collection's own texts, that lets the demo and the
tests search real text without a download; a stronger model stands in front of the router and sends
vectors. scikit-learn (the `text` extra) is imported only when a model is used.

A model is a file of plain arrays and JSON. Invariant: loading one runs nothing that the file says,
and takes no more memory than `MAX_MODEL_BYTES` allows.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from router.text.words import words
from shard_config.file.replace import replace_file

__all__ = ["MAX_MODEL_BYTES", "TextModel", "fit"]

# 200,000 words in 300 dimensions; the demo's model takes 8 MB.
MAX_MODEL_BYTES = 256 << 20


class _Header(msgspec.Struct, frozen=True):
    format: str = "pgscatter text model"
    version: int = 1


class TextModel:
    """A fitted model; its methods may be called from several threads at once."""

    def __init__(
        self, vocabulary: Sequence[str], idf: NDArray[np.float32], components: NDArray[np.float32]
    ) -> None:
        """
        Args:
            vocabulary: distinct words, in the order of the columns.
            idf: the words' weights, of shape (words,).
            components: of shape (dimensions, words).
        """
        self._vocabulary = tuple(vocabulary)
        self._idf = idf
        # Row by row of a word, so that a text of ten words reads ten rows (0.6 ms the other way round).
        self._projection = np.ascontiguousarray(components.T)
        self._vectorizer = _vectorizer(vocabulary={word: i for i, word in enumerate(self._vocabulary)})
        self._vectorizer.idf_ = idf

    def __repr__(self) -> str:
        return f"<TextModel {len(self._vocabulary)} words, {self.dimensions} dimensions>"

    @property
    def dimensions(self) -> int:
        return int(self._projection.shape[1])

    def embed(self, text: str) -> NDArray[np.float32]:
        """The vector of `text`, of shape (dimensions,) and length 1.

        Raises:
            ValueError: the model knows none of its words.
        """
        vector: NDArray[np.float32] = self.embed_many([text])[0]
        return vector

    def embed_many(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """One row per text, each of length 1.

        Raises:
            ValueError: of some text the model knows no word.
        """
        rows = np.asarray(self._vectorizer.transform(texts) @ self._projection, dtype=np.float32)
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        # A text whose words the reduction dropped comes out as rounding noise around zero.
        unknown = np.flatnonzero(lengths < 1e-6)
        if unknown.size:
            raise ValueError(f"the model knows none of the words of {_shortened(texts[unknown[0]])}")
        return np.asarray(rows / lengths, dtype=np.float32)

    def save(self, path: Path) -> None:
        """Write the model; a reader sees the old file or the whole new one.

        Raises:
            OSError
        """
        file = io.BytesIO()
        np.savez(
            file,
            header=_bytes(_Header()),
            vocabulary=_bytes(self._vocabulary),
            idf=self._idf,
            components=self._projection.T,
        )
        replace_file(path, file.getbuffer())

    @classmethod
    def load(cls, path: Path) -> TextModel:
        """
        Raises:
            OSError: the file cannot be read.
            ValueError: it is not a model, or too large.
            ImportError: scikit-learn is missing.
        """
        try:
            header, vocabulary, idf, components = _read(path)
        except (zipfile.BadZipFile, msgspec.DecodeError, EOFError, KeyError, ValueError) as exc:
            raise ValueError(f"{path} is not a text model: {exc}") from exc
        if header != _Header():
            raise ValueError(f"{path} is not a text model of version {_Header().version}")
        count = len(set(vocabulary))
        if count != len(vocabulary) or idf.shape != (count,) or components.shape[1:] != (count,):
            raise ValueError(f"{path} is damaged: its parts do not fit together")
        if not (np.isfinite(idf).all() and np.isfinite(components).all()):
            raise ValueError(f"{path} is damaged: it holds numbers that are not finite")
        return cls(vocabulary, idf, components)


def fit(texts: Sequence[str], dimensions: int = 256, seed: int = 0) -> TextModel:
    """The model of `texts`; the same texts and seed give the same model.

    Raises:
        ValueError: there are fewer distinct words than dimensions.
        ImportError: scikit-learn is missing.
    """
    vectorizer = _vectorizer()
    weights = vectorizer.fit_transform(texts)
    if min(weights.shape) <= dimensions:
        rows, columns = weights.shape
        raise ValueError(f"{dimensions} dimensions need more than {rows} texts with {columns} words")
    svd = _sklearn().decomposition.TruncatedSVD(n_components=dimensions, random_state=seed).fit(weights)
    return TextModel(
        vectorizer.get_feature_names_out().tolist(),
        vectorizer.idf_.astype(np.float32),
        svd.components_.astype(np.float32),
    )


def _sklearn() -> ModuleType:
    try:
        import sklearn.decomposition
        import sklearn.feature_extraction.text
    except ImportError as exc:
        raise ImportError("text search needs scikit-learn: pip install 'pgscatter[text]'") from exc
    module: ModuleType = sklearn
    return module


def _vectorizer(**options: Any) -> Any:
    """Logarithmic word counts, since a long docstring is not about a word because it repeats it."""
    text = _sklearn().feature_extraction.text
    stop_words = text.ENGLISH_STOP_WORDS

    def analyze(document: str) -> list[str]:
        return words(document, stop_words)

    return text.TfidfVectorizer(analyzer=analyze, sublinear_tf=True, dtype=np.float32, **options)


def _shortened(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + "...")


def _bytes(value: object) -> NDArray[np.uint8]:
    return np.frombuffer(msgspec.json.encode(value), dtype=np.uint8)


def _read(path: Path) -> tuple[_Header, list[str], NDArray[np.float32], NDArray[np.float32]]:
    with zipfile.ZipFile(path) as archive:
        # The sizes that the members will have in memory, which is not what the file takes on disk.
        size_bytes = sum(member.file_size for member in archive.infolist())
    if size_bytes > MAX_MODEL_BYTES:
        raise ValueError(f"{size_bytes} bytes exceed {MAX_MODEL_BYTES}")
    with np.load(path, allow_pickle=False) as arrays:
        return (
            msgspec.json.decode(arrays["header"].tobytes(), type=_Header),
            msgspec.json.decode(arrays["vocabulary"].tobytes(), type=list[str]),
            arrays["idf"].astype(np.float32, copy=False),
            arrays["components"].astype(np.float32, copy=False),
        )
