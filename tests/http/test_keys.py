from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from router.http.keys_file import KeysError, load, parse
from tests.http.fake import FakeBackend, LogLines, application

SEARCH = "/v1/collections/documents/search"
FILE = f"""
keys:
  - {{name: reader, key: "${{READER}}", scopes: [read]}}
  - {{name: writer, sha256: "{hashlib.sha256(b"write-key").hexdigest()}", scopes: [read, write]}}
  - {{name: operator, key: admin-key, scopes: [admin]}}
"""


@pytest.fixture
def log() -> LogLines:
    return LogLines()


@pytest.fixture
def guarded(
    backend: FakeBackend, connect: Callable[[Any], httpx.AsyncClient], log: LogLines
) -> httpx.AsyncClient:
    return connect(application(backend, keys=parse(FILE, {"READER": "read-key"}, "keys.yaml"), log=log))


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


async def test_without_a_valid_key_nothing_but_probes_and_docs_opens(guarded: httpx.AsyncClient) -> None:
    for path in ("/livez", "/readyz", "/openapi.json", "/docs"):
        assert (await guarded.get(path)).status_code == 200
    wrong: list[dict[str, str]] = [
        {},
        bearer("wrong"),
        bearer(""),
        {"x-api-key": "read-ke"},
        {"authorization": "Basic cmVhZC1rZXk6"},
        {"authorization": "read-key"},
    ]
    for headers in wrong:
        for path in ("/v1/collections", "/v1/shard-map", "/metrics", "/health"):
            response = await guarded.get(path, headers=headers)
            assert response.status_code == 401
            assert response.headers["www-authenticate"] == 'Bearer realm="pgscatter"'
            assert response.json()["title"] == "No valid key"


async def test_a_key_is_taken_from_either_header(guarded: httpx.AsyncClient) -> None:
    for headers in (bearer("read-key"), {"authorization": "bearer  read-key"}, {"x-api-key": "read-key"}):
        response = await guarded.post(SEARCH, json={"vector": [1, 2, 3]}, headers=headers)
        assert response.status_code == 200


async def test_a_key_opens_its_scopes_and_no_others(guarded: httpx.AsyncClient, backend: FakeBackend) -> None:
    documents = {"documents": [{"id": 1, "vector": [1, 2, 3]}]}
    url = "/v1/collections/documents/documents"
    response = await guarded.put(url, json=documents, headers=bearer("read-key"))
    assert response.status_code == 403
    assert response.json()["detail"] == "this needs the scope write; the key has read"
    assert backend.upserts == []
    assert (await guarded.put(url, json=documents, headers=bearer("write-key"))).status_code == 200
    assert (await guarded.get("/v1/nodes", headers=bearer("write-key"))).status_code == 403
    for method, path in (("GET", "/v1/nodes"), ("GET", "/metrics"), ("DELETE", f"{url}/1")):
        assert (await guarded.request(method, path, headers=bearer("admin-key"))).status_code == 200


async def test_the_log_names_the_key_and_never_shows_it(guarded: httpx.AsyncClient, log: LogLines) -> None:
    await guarded.get("/v1/collections", headers=bearer("read-key"))
    await guarded.get("/v1/collections", headers=bearer("wrong-key"))
    assert [line.get("caller") for line in await log.lines()] == ["reader", None]
    assert "read-key" not in log.getvalue() and "wrong-key" not in log.getvalue()


async def test_the_key_is_asked_for_before_the_collection_is_looked_up(guarded: httpx.AsyncClient) -> None:
    assert (await guarded.post("/v1/collections/nothing/search")).status_code == 401


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ("", ["k: expected one field, keys: a list of at least one key"]),
        ("keys: []", ["k: expected one field, keys: a list of at least one key"]),
        ("keys: [x]\nmore: 1", ["k: expected one field, keys: a list of at least one key"]),
        ("keys:\n\t- x", ["k:2: not valid YAML"]),
        ("keys: [x]", ["k: keys[0]: expected an object with name, key or sha256, and scopes"]),
        (
            "keys: [{name: a, scopes: [read]}]",
            ["k: keys[0]: expected key or sha256, one of the two"],
        ),
        (
            "keys: [{name: a, key: s, sha256: s, scopes: [read]}]",
            ["k: keys[0]: expected key or sha256, one of the two"],
        ),
        ("keys: [{name: a, key: 1, scopes: [read]}]", ["k: keys[0].key: expected a string; quote it"]),
        (
            "keys: [{name: a, key: '', scopes: [read]}]",
            ["k: keys[0].key: expected printable ASCII without spaces, and not nothing"],
        ),
        (
            "keys: [{name: a, sha256: abc, scopes: [read]}]",
            ["k: keys[0].sha256: expected 64 hexadecimal digits"],
        ),
        (
            "keys: [{name: a, key: '${NOT_SET}', scopes: [read]}]",
            ["k: keys[0].key: the environment variable NOT_SET is not set; write $$ for a dollar"],
        ),
        (
            "keys: [{name: a, key: s3cret, scopes: [all]}, {name: a, key: t, scopes: []}]",
            [
                "k: keys[0].scopes[0]: unknown scope 'all'; known are read, write, admin",
                "k: keys[1].name: 'a' is the name of keys[0] too",
                "k: keys[1].scopes: expected a list of read, write, admin",
            ],
        ),
        (
            "keys: [{name: a, key: s3cret, scopes: [read]}, {name: b, key: s3cret, scopes: [read]}]",
            ["k: keys[1]: the same key as keys[0]"],
        ),
        (
            "keys: [{name: a, s3cret: key, key: x, scopes: [read]}]",
            ["k: keys[0]: a field other than name, key, sha256 and scopes"],
        ),
    ],
)
def test_a_faulty_file_is_refused_with_all_its_faults(text: str, problems: list[str]) -> None:
    with pytest.raises(KeysError) as caught:
        parse(text, {}, "k")
    assert caught.value.problems == problems
    assert "s3cret" not in str(caught.value)


def test_a_file_that_cannot_be_read_says_so(tmp_path: Path) -> None:
    with pytest.raises(KeysError, match="No such file"):
        load(tmp_path / "nothing.yaml", {})
    (tmp_path / "latin.yaml").write_bytes(b"keys: \xff")
    with pytest.raises(KeysError, match="not UTF-8 at byte 6"):
        load(tmp_path / "latin.yaml", {})


def test_keys_show_their_names_only() -> None:
    keys = parse(FILE, {"READER": "read-key"}, "keys.yaml")
    assert repr(keys) == "<Keys reader, writer, operator>"
    assert len(keys) == 3
