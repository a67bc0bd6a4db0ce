"""Transformers as the service loads and calls them, on small ones with random weights.

They run where the extra models-torch is installed.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from deploy.local.models import model_service
from router.model_service.backend import BackendError
from router.model_service.specs import ModelSpec, load_embedder, load_reranker
from router.model_service.transformer import CrossEncoderReranker, TransformerEmbedder

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytest.importorskip("sentence_transformers")

# What the libraries below warn about is not ours to mend.
pytestmark = pytest.mark.filterwarnings("ignore")

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"sort a list open file the of red green blue".split()]
READ = 16  # tokens
LONG = "red green blue " * 10


def saved(folder: Path, kind: str, **config: Any) -> str:
    """A model of one layer in `folder`, with its tokenizer."""
    torch.manual_seed(1)
    made = transformers.BertConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=READ,
        initializer_range=0.5,
        **config,
    )
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    getattr(transformers, kind)(made).save_pretrained(folder)
    tokenizer = transformers.BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=READ)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    with warnings.catch_warnings(action="ignore"):
        return saved(tmp_path_factory.mktemp("models") / "bert", "BertModel")


@pytest.fixture(scope="module")
def cross(tmp_path_factory: pytest.TempPathFactory) -> str:
    with warnings.catch_warnings(action="ignore"):
        folder = tmp_path_factory.mktemp("models") / "cross"
        return saved(folder, "BertForSequenceClassification", num_labels=1)


@pytest.fixture(scope="module")
def embedder(bert: str) -> TransformerEmbedder:
    with warnings.catch_warnings(action="ignore"):
        return TransformerEmbedder(bert)


@pytest.fixture(scope="module")
def reranker(cross: str) -> CrossEncoderReranker:
    with warnings.catch_warnings(action="ignore"):
        return CrossEncoderReranker(cross)


def test_vectors_have_length_1_and_do_not_depend_on_their_batch(embedder: TransformerEmbedder) -> None:
    texts = ["sort a list", "open the file", "red", LONG]
    made = embedder.run(texts)
    assert embedder.dimensions == 32 and embedder.shorter == ()
    assert made.values.dtype == np.float32 and made.values.shape == (4, 32)
    assert np.allclose(np.linalg.norm(made.values, axis=1), 1, atol=1e-5)
    for place, text in enumerate(texts):
        assert np.allclose(embedder.run([text]).values[0], made.values[place], atol=1e-5)


def test_tokens_are_those_that_were_read_and_what_is_longer_is_told(embedder: TransformerEmbedder) -> None:
    made = embedder.run(["sort a list", LONG, "red"])
    assert made.tokens.tolist() == [5, READ, 3]  # with the two special ones
    assert made.truncated.tolist() == [False, True, False]
    cut = " ".join(LONG.split()[: READ - 2])
    assert np.allclose(embedder.run([cut]).values[0], made.values[1], atol=1e-5)
    assert not embedder.run([cut]).truncated.any()


@pytest.mark.parametrize(
    ("config", "shorter"),
    [({"matryoshka_dimensions": [32, 16, 8]}, (8, 16)), ({"is_matryoshka": True}, tuple(range(1, 32)))],
)
def test_fewer_dimensions_are_those_that_the_config_names(
    tmp_path: Path, config: dict[str, Any], shorter: tuple[int, ...]
) -> None:
    assert TransformerEmbedder(saved(tmp_path / "m", "BertModel", **config)).shorter == shorter


def test_scores_are_the_outputs_of_the_model(reranker: CrossEncoderReranker, cross: str) -> None:
    pairs = [("sort", "sort a list"), ("sort", "open the file"), ("red", "")]
    made = reranker.run(pairs)
    model = transformers.BertForSequenceClassification.from_pretrained(cross).eval()
    tokenizer = transformers.BertTokenizerFast.from_pretrained(cross)
    for (query, text), score in zip(pairs, made.values, strict=True):
        with torch.no_grad():
            logit = model(**tokenizer([[query, text]], return_tensors="pt")).logits[0, 0]
        assert score == pytest.approx(float(logit), abs=1e-5)
    assert made.tokens.tolist() == [7, 7, 4] and not made.truncated.any()
    assert np.allclose(reranker.relevance(made.values), 1 / (1 + np.exp(-made.values)))
    with np.errstate(all="raise"):
        assert reranker.relevance(np.array([-1e9, 0.0, 1e9])) == pytest.approx([0, 0.5, 1])


def test_a_pair_with_more_tokens_than_are_read_is_told(reranker: CrossEncoderReranker) -> None:
    made = reranker.run([("sort a list", LONG), ("sort", "a list")])
    assert made.truncated.tolist() == [True, False] and made.tokens.tolist() == [READ, 6]


def test_a_classifier_of_several_labels_is_no_reranker(tmp_path: Path) -> None:
    source = saved(tmp_path / "m", "BertForSequenceClassification", num_labels=3)
    with pytest.raises(BackendError, match="has 3 outputs; a re-ranker has one"):
        CrossEncoderReranker(source)


@pytest.mark.parametrize("load", [load_embedder, load_reranker])
def test_a_folder_without_a_model_is_named(tmp_path: Path, load: Any) -> None:
    kind = "sentence-transformers" if load is load_embedder else "cross-encoder"
    with pytest.raises(BackendError) as caught:
        load(ModelSpec("m", kind, str(tmp_path)))
    assert str(caught.value).startswith(f"model 'm': {kind}:{tmp_path} cannot be loaded: ")
    with pytest.raises(BackendError, match="cannot be loaded: there is no such folder"):
        load(ModelSpec("m", kind, str(tmp_path / "gone")))


def test_the_service_serves_both(bert: str, cross: str, embedder: TransformerEmbedder) -> None:
    flags = ("--embedder", f"bert=sentence-transformers:{bert}", "--reranker", f"ce=cross-encoder:{cross}")
    with model_service(*flags) as url, httpx.Client(base_url=str(url), timeout=60) as client:
        answer = client.post("/embeddings", json={"model": "bert", "input": ["sort a list", LONG]}).json()
        found = [one["embedding"] for one in answer["data"]]
        assert np.allclose(found, embedder.run(["sort a list", LONG]).values, atol=1e-5)
        assert answer["truncated"] == [1] and answer["usage"]["total_tokens"] == 5 + READ
        documents = ["open the file", "sort a list", LONG]
        ranked = client.post("/rerank", json={"query": "sort", "documents": documents}).json()
        scores = [one["relevance_score"] for one in ranked["results"]]
        assert scores == sorted(scores, reverse=True) and ranked["truncated"] == [2]
        tei = {"query": "sort", "texts": documents}
        assert client.post(f"{url.root}/rerank", json=tei).status_code == 422
        cut = client.post(f"{url.root}/rerank", json={**tei, "truncate": True}).json()
        assert [one["index"] for one in cut] == [one["index"] for one in ranked["results"]]
        for line in url.log.read_text().splitlines():
            assert line.startswith("pgscatter serves ") or json.loads(line)
