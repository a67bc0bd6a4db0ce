"""WordLlama as the service loads and calls it."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from router.model_service.static import WordLlamaEmbedder, WordLlamaReranker

TEXTS = ["sort a list", "a", "größer 😀", "x" * 5000, "open a file for reading\n" * 40, "\0", "   "]


@pytest.fixture(scope="module")
def embedder() -> WordLlamaEmbedder:
    return WordLlamaEmbedder()


def test_vectors_are_those_of_the_package(embedder: WordLlamaEmbedder) -> None:
    import wordllama  # here, where pytest has set up the logging, which its import does otherwise

    folder = Path(wordllama.__file__).parent
    theirs = wordllama.WordLlama.load(cache_dir=folder, disable_download=True)
    made = embedder.run(TEXTS)
    assert np.allclose(made.values, theirs.embed(TEXTS, norm=True), atol=1e-5)
    assert made.values.dtype == np.float32 and made.values.shape == (len(TEXTS), embedder.dimensions)
    assert made.tokens.tolist() == [sum(one.attention_mask) for one in theirs.tokenize(TEXTS)]
    assert not made.truncated.any()
    assert list(embedder.shorter) == [64, 128]


def test_a_vector_does_not_depend_on_the_texts_beside_it(embedder: WordLlamaEmbedder) -> None:
    together = embedder.run(TEXTS).values
    for place, text in enumerate(TEXTS):
        assert embedder.run([text]).values.tobytes() == together[place].tobytes()


def test_a_text_without_tokens_has_no_direction(embedder: WordLlamaEmbedder) -> None:
    made = embedder.run(["", "a"])
    assert not made.values[0].any() and made.tokens[0] == 0
    assert np.linalg.norm(made.values[1]) == pytest.approx(1)


def test_it_loads_where_nothing_can_be_downloaded_or_written(tmp_path: Path) -> None:
    code = """
import socket
def refuse(*_, **__): raise AssertionError("a connection")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
from router.model_service.static import WordLlamaEmbedder
print(WordLlamaEmbedder().run(["a text"]).values.shape)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "HOME": "/nonexistent"},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout == "(1, 256)\n"


def test_loading_it_leaves_the_logging_of_the_process_alone(embedder: WordLlamaEmbedder) -> None:
    code = "import logging; from router.model_service.static import WordLlamaEmbedder; WordLlamaEmbedder(); "
    code += "print(logging.root.handlers, logging.root.level)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == f"[] {logging.WARNING}\n"


def test_ranking_is_by_the_cosine_with_each_texts_own_query(embedder: WordLlamaEmbedder) -> None:
    reranker = WordLlamaReranker(embedder)
    pairs = [("sort a list", "sorted() sorts a list"), ("open a file", "sorted() sorts a list"), ("a", "")]
    made = reranker.run(pairs)
    assert made.values[0] > made.values[1] and made.values[2] == 0
    vectors = embedder.run([*pairs[0]]).values
    assert made.values[0] == pytest.approx(float(vectors[0] @ vectors[1]))
    relevance = reranker.relevance(np.array([-1.00001, 0.0, 1.00001]))
    assert relevance.tolist() == [0, 0.5, 1]
