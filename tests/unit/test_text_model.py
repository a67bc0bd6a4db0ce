"""The text model: what it finds alike, what it refuses, and files that lie."""

from __future__ import annotations

import builtins
import zipfile
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from router.text import TextModel, fit, model
from router.text.words import words

TEXTS = [
    "functools.lru_cache: least recently used cache decorator",
    "functools.cached_property: a property computed once and cached",
    "os.path.join: join pathname components",
    "os.path.split: split a pathname into head and tail",
    "json.dumps: serialize an object to a JSON string",
    "HTTPServer.serve_forever: handle requests until shutdown",
    "socket.bind: bind the socket to an address",
    "random.shuffle: shuffle a list in place",
]


@pytest.fixture(scope="module")
def fitted() -> TextModel:
    return fit(TEXTS, dimensions=6, seed=1)


@pytest.fixture
def saved(fitted: TextModel, tmp_path: Path) -> Path:
    fitted.save(tmp_path / "m.model")
    return tmp_path / "m.model"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("functools.lru_cache", ["functool", "lru", "cache"]),
        ("HTTPServer serveForever", ["http", "server", "serve", "forever"]),
        ("least-recently-used caches", ["least", "recently", "used", "cache"]),
        ("class process utf8 x", ["class", "process", "utf"]),
        ("Übergröße naïve", ["übergröße", "naïve"]),
        ("x" * 500, ["x" * 64]),
        ("", []),
    ],
)
def test_names_are_taken_apart_into_the_words_people_type(text: str, expected: list[str]) -> None:
    assert words(text) == expected


def test_ignored_words_are_left_out_before_the_singular_is_made() -> None:
    assert words("this is a list", {"this", "is"}) == ["list"]


def test_a_vector_is_float32_of_length_one(fitted: TextModel) -> None:
    vector = fitted.embed("the cache")
    assert vector.dtype == np.float32
    assert vector.shape == (6,)
    assert np.linalg.norm(vector) == pytest.approx(1.0, abs=1e-6)


def test_the_nearest_text_is_the_one_about_it(fitted: TextModel) -> None:
    for question, answer in [
        ("recently used decorator", 0),
        ("serving HTTP requests", 5),
        ("shuffling lists", 7),
    ]:
        assert int(np.argmax(fitted.embed_many(TEXTS) @ fitted.embed(question))) == answer


def test_one_text_alone_and_among_others_gives_one_vector(fitted: TextModel) -> None:
    assert np.allclose(fitted.embed_many(TEXTS)[2], fitted.embed(TEXTS[2]), atol=1e-6)


def test_a_seed_decides_the_model() -> None:
    first, second = fit(TEXTS, 6, seed=7), fit(TEXTS, 6, seed=7)
    assert np.array_equal(first.embed_many(TEXTS), second.embed_many(TEXTS))


def test_text_of_unknown_words_is_refused_by_name(fitted: TextModel) -> None:
    for text in ["zzyzx", "the and of", "", "?!"]:
        with pytest.raises(ValueError, match="knows none of the words"):
            fitted.embed(text)


def test_more_dimensions_than_words_are_refused() -> None:
    with pytest.raises(ValueError, match="100 dimensions need more than 8 texts"):
        fit(TEXTS, dimensions=100)


def test_a_saved_model_embeds_as_before(fitted: TextModel, saved: Path) -> None:
    loaded = TextModel.load(saved)
    assert repr(loaded) == repr(fitted)
    assert np.array_equal(loaded.embed_many(TEXTS), fitted.embed_many(TEXTS))
    assert [path.name for path in saved.parent.iterdir()] == ["m.model"]


def rewritten(path: Path, **changes: Any) -> Path:
    with np.load(path) as arrays:
        parts = {name: arrays[name] for name in arrays.files}
    parts.update(changes)
    with path.open("wb") as file:
        np.savez(file, **{name: part for name, part in parts.items() if part is not None})
    return path


def encoded(value: object) -> np.ndarray[Any, Any]:
    return np.frombuffer(msgspec.json.encode(value), dtype=np.uint8)


@pytest.mark.parametrize(
    "changes",
    [
        {"header": encoded({"format": "pgscatter text model", "version": 2})},
        {"header": encoded({"format": "something else", "version": 1})},
        {"header": encoded([1])},
        {"vocabulary": None},
        {"vocabulary": encoded(["cache"])},
        {"vocabulary": np.zeros(3)},
        {"idf": np.zeros(2, dtype=np.float32)},
        {"components": np.zeros((6, 2), dtype=np.float32)},
        {"idf": np.array([object()], dtype=object)},  # a pickle
    ],
)
def test_a_file_that_is_not_a_whole_model_is_refused_by_name(saved: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"m\.model"):
        TextModel.load(rewritten(saved, **changes))


def test_numbers_that_are_not_finite_are_refused(saved: Path) -> None:
    with np.load(saved) as arrays:
        bad = arrays["components"] * np.nan
    with pytest.raises(ValueError, match="not finite"):
        TextModel.load(rewritten(saved, components=bad))


def test_words_that_occur_twice_are_refused(saved: Path) -> None:
    with np.load(saved) as arrays:
        count = arrays["idf"].size
    with pytest.raises(ValueError, match="do not fit together"):
        TextModel.load(rewritten(saved, vocabulary=encoded(["same"] * count)))


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04 broken"])
def test_garbage_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "g.model"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"g\.model is not a text model"):
        TextModel.load(path)


def test_a_small_file_that_unpacks_beyond_the_bound_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "MAX_MODEL_BYTES", 1 << 20)
    path = tmp_path / "bomb.model"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("idf.npy", bytes(2 << 20))
    assert path.stat().st_size < 10_000
    with pytest.raises(ValueError, match="exceed 1048576"):
        TextModel.load(path)


def test_without_scikit_learn_the_error_says_what_to_install(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("sklearn"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match=r"pip install 'pgscatter\[text\]'"):
        TextModel.load(saved)
