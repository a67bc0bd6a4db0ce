"""YAML as a tree: places, repeated keys, and the bounds on what a file can ask for."""

from __future__ import annotations

import time

import pytest
import yaml

from shard_config.file import codec, document
from shard_config.file.codec import MapError
from shard_config.file.document import Mapping, Refused, Scalar, Sequence, compose, resolve

parsers = pytest.mark.parametrize("loader", [yaml.SafeLoader, getattr(yaml, "CSafeLoader", yaml.SafeLoader)])


@parsers
def test_every_value_knows_its_place(loader: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(document, "_Loader", loader)
    root = compose("# é\na:\n  - x\n  - {b: 'ü', c: 1.5}\n")
    assert isinstance(root, Mapping)
    key, value = root.entries["a"]
    assert (key.line, key.column) == (2, 1)
    assert isinstance(value, Sequence)
    assert (value.line, value.column) == (3, 3)
    inner = value.items[1]
    assert isinstance(inner, Mapping)
    assert (inner.line, inner.column) == (4, 5)
    last = inner.entries["c"][1]
    assert isinstance(last, Scalar)
    assert (last.value, last.text, last.line, last.column) == (1.5, "1.5", 4, 17)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None), ("~", None), ("null", None), ("true", True), ("False", False),
        ("0", 0), ("-7", -7), ("007", 7), ("1.", 1.0), (".5", 0.5), ("1e3", 1000.0), ("-1.5E-1", -0.15),
        ("yes", "yes"), ("no", "no"), ("on", "on"), ("12:30", "12:30"), ("0x1f", "0x1f"), ("0o7", "0o7"),
        ("1_000", "1_000"), ("2026-01-31", "2026-01-31"), (".inf", ".inf"), (".nan", ".nan"), (".", "."),
        ("=", "="), ("<<", "<<"), ("9" * 401, "9" * 401),
    ],
)  # fmt: skip
def test_a_plain_scalar_resolves_by_the_core_schema(text: str, value: object) -> None:
    found = resolve(text)
    assert (found, type(found)) == (value, type(value))


def test_a_quoted_scalar_is_a_string() -> None:
    root = compose("['1', \"true\", '']")
    assert isinstance(root, Sequence)
    assert [item.value for item in root.items if isinstance(item, Scalar)] == ["1", "true", ""]


def test_a_repeated_key_is_kept_and_the_first_counts() -> None:
    root = compose("a: 1\n'a': 2\n&k b: 3\n*k : 4\n")
    assert isinstance(root, Mapping)
    assert [(key.text, key.line) for key in root.repeated] == [("a", 2), ("b", 3)]
    with pytest.raises(MapError, match="a: the key stands twice in one mapping, first in line 1"):
        codec.parse("a: 1\na: 2\n")


def test_an_alias_stands_for_what_it_names() -> None:
    root = compose("a: &x [1, 2]\nb: *x\n")
    assert isinstance(root, Mapping)
    assert root.entries["a"][1] is root.entries["b"][1]


@parsers
@pytest.mark.parametrize(
    ("text", "message", "line"),
    [
        ("", "the document is empty", 1),
        ("# nothing\n", "the document is empty", 1),
        ("a: 1\nb: [1\n", "not valid YAML", 3),
        ("a: 1\n---\nb: 1\n", "a second document", 2),
        ("a: 1\nb: !!python/object:os.system x", "the tag 'tag:yaml.org,2002:python/object:os.system'", 2),
        ("a: !!str 5", "the tag", 1),
        ("a: ! 5", "the tag", 1),
        ("a: !x {b: 1}", "the tag '!x'", 1),
        ("? [a]\n: 1", "a key must be a plain name", 1),
        ("a: *b", "the alias *b has no anchor", 1),
        ("a: &a [*a]", "stands inside of what it names", 1),
        ("a: b\n\x07", "the character '\\x07' cannot stand in YAML", 2),
        ("a: \ud800", "the character '\\ud800' cannot stand in YAML", 1),
        ("[" * 40 + "]" * 40, "nested more than 32 levels", 1),
        ("a: {b: ${C}}", "quote a value that holds ${...}", 1),
    ],
)
def test_what_is_no_document_is_refused(
    text: str, message: str, line: int, loader: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(document, "_Loader", loader)
    with pytest.raises(Refused) as caught:
        compose(text)
    assert message in caught.value.message
    assert caught.value.line == line


def test_an_alias_bomb_is_refused_at_once() -> None:
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{at}: &a{at} [{', '.join([f'*a{at - 1}'] * 10)}]\n" for at in range(1, 30)
    )
    started = time.thread_time()
    with pytest.raises(Refused, match="more than 1000000 values"):
        compose(bomb)
    assert time.thread_time() - started < 5


def test_depth_is_refused_without_recursion() -> None:
    with pytest.raises(MapError, match="nested more than 32"):
        codec.parse("[" * 100_000)
    with pytest.raises(MapError, match="nested more than 32"):
        codec.parse("".join(f"{' ' * at}a:\n" for at in range(200)))
