"""`pgscatter search`: what it asks, what it prints, and what it says when it fails."""

from __future__ import annotations

import argparse
import base64
import io
import json
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from router import client
from router.commands import search as command

COLLECTION = {"name": "docs", "content": True, "columns": {"name": "text", "kind": "text"}}
COVERAGE = {
    "full": True,
    "shards": {"total": 4, "queried": 4, "ok": 4, "skipped": 0, "timed_out": 0, "failed": 0},
    "failures": [],
}
HITS = [
    {
        "id": 7,
        "distance": 0.12345,
        "shard": "s1",
        "name": "functools.lru_cache",
        "content": "\nLeast.\nMore.",
    },
    {"id": 9, "distance": 0.5, "shard": "s0", "name": None, "content": "[bold]as it is[/bold]\x1b[31m"},
]
ANSWER = {"hits": HITS, "took_ms": 3.14, "cache": "miss", "coverage": COVERAGE, "map_version": 12}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser()
    command.add_parser(parser.add_subparsers())
    args = parser.parse_args(arguments)
    status: int = args.run(args)
    return status


class Fake:
    """A router that answers every search alike and remembers what it was asked."""

    def __init__(self) -> None:
        self.seen: list[SimpleNamespace] = []
        self.status = 200
        self.answer: Any = ANSWER
        self.headers: dict[str, str] = {}
        self.wait = threading.Event()
        self.wait.set()
        fake = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.reply(200, COLLECTION)

            def do_POST(self) -> None:
                fake.wait.wait(10)
                self.reply(fake.status, fake.answer)

            def reply(self, status: int, answer: Any) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                fake.seen.append(
                    SimpleNamespace(
                        method=self.command,
                        path=self.path,
                        headers=self.headers,
                        body=json.loads(body) if body else None,
                    )
                )
                data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                self.send_response(status)
                for name, value in fake.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    @property
    def body(self) -> dict[str, Any]:
        body: dict[str, Any] = self.seen[-1].body
        return body


@pytest.fixture
def fake() -> Iterator[Fake]:
    fake = Fake()
    thread = threading.Thread(target=fake.server.serve_forever, args=(0.01,))
    thread.start()
    yield fake
    fake.wait.set()
    fake.server.shutdown()
    fake.server.server_close()
    thread.join(10)


@pytest.fixture
def search(fake: Fake) -> Callable[..., int]:
    def run(*arguments: str, collection: str = "docs") -> int:
        sought = [] if {"--text", "--vector"} & set(arguments) else ["--text", "a cache"]
        return main(["search", "--url", fake.url, "--collection", collection, *sought, *arguments])

    return run


def test_hits_are_a_table_of_rank_id_distance_shard_and_first_lines(
    search: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert search() == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["#", "id", "distance", "shard", "name", "content"]
    assert lines[1].split() == ["1", "7", "0.1235", "s1", "functools.lru_cache", "Least."]
    assert lines[2].split()[:5] == ["2", "9", "0.5000", "s0", "-"]
    assert lines[-1] == "2 hits in 3.1 ms, cache miss, 4 of 4 shards, map version 12"


def test_hits_of_a_search_for_words_are_shown_with_their_scores(
    search: Callable[..., int], fake: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.answer = {**ANSWER, "hits": [{"id": 7, "score": 0.06079, "shard": "s1"}]}
    fake.answer["short"] = {"asked": 10, "returned": 1, "reason": "no_words"}
    assert search("--text", "cache", "--mode", "fulltext") == 0
    assert fake.seen[-1].body["mode"] == "fulltext" and "match" not in fake.seen[-1].body
    out = capsys.readouterr().out
    assert out.splitlines()[0].split()[:4] == ["#", "id", "score", "shard"]
    assert out.splitlines()[1].split()[:4] == ["1", "7", "0.0608", "s1"]
    assert "the text has no word to search for" in out
    assert search("--text", "cache", "--mode", "hybrid", "--match", "all") == 0
    assert fake.seen[-1].body["match"] == "all"


def test_a_ranked_list_that_is_missing_is_not_overlooked(
    search: Callable[..., int], fake: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = {"name": "vector", "mode": "vector", "error": "the model did not answer in time"}
    fake.answer = {**ANSWER, "legs": [missing, {"name": "fulltext", "mode": "fulltext"}]}
    assert search("--text", "cache", "--mode", "hybrid") == 0
    assert fake.seen[-1].body["mode"] == "hybrid"
    assert "MISSING: the list vector: the model did not answer in time" in capsys.readouterr().out


def test_a_distance_that_is_infinite_is_shown_as_such(
    fake: Fake, search: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    fake.answer = ANSWER | {"hits": [HITS[0] | {"distance": "Infinity"}]}
    assert search() == 0
    assert capsys.readouterr().out.splitlines()[1].split()[:3] == ["1", "7", "inf"]


def test_content_is_printed_as_text_and_never_obeyed(
    search: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    search()
    out = capsys.readouterr().out
    assert "[bold]as it is[/bold] [31m" in out
    assert "\x1b" not in out


def test_the_request_says_what_was_asked_and_no_more(search: Callable[..., int], fake: Fake) -> None:
    assert search("--text", "lru") == 0
    assert (fake.seen[-1].method, fake.seen[-1].path) == ("POST", "/v1/collections/docs/search")
    assert fake.body == {"text": "lru", "k": 10, "include": ["name", "content"]}


def test_every_option_reaches_the_request(search: Callable[..., int], fake: Fake) -> None:
    assert (
        search(
            *("--k", "3", "--filter", '{"kind": {"$in": ["class"]}}', "--include", "kind, content"),
            *("--exact", "--explain"),
        )
        == 0
    )
    assert fake.body == {
        "text": "a cache",
        "k": 3,
        "filter": {"kind": {"$in": ["class"]}},
        "include": ["kind", "content"],
        "exact": True,
        "explain": True,
    }
    assert len(fake.seen) == 1  # who says what to include need not be told what there is


def test_a_collections_name_cannot_leave_its_place_in_the_path(
    search: Callable[..., int], fake: Fake
) -> None:
    search("--include", "", collection="../nodes?x#y")
    assert fake.seen[-1].path == "/v1/collections/..%2Fnodes%3Fx%23y/search"
    assert fake.body["include"] == []


def test_a_vector_comes_from_json(search: Callable[..., int], fake: Fake, tmp_path: Path) -> None:
    path = tmp_path / "v.json"
    path.write_text("[0.5, -1, 2e-3]")
    assert search("--vector", str(path)) == 0
    assert fake.body["vector"] == [0.5, -1.0, 0.002]


@pytest.mark.parametrize("shape", [(3,), (1, 3)])
def test_a_vector_comes_from_npy_without_losing_a_bit(
    search: Callable[..., int], fake: Fake, tmp_path: Path, shape: tuple[int, ...]
) -> None:
    vector = np.array([0.1, -2.5, 1e-8], dtype=np.float32)
    np.save(tmp_path / "v.npy", vector.reshape(shape))
    assert search("--vector", str(tmp_path / "v.npy")) == 0
    assert base64.b64decode(fake.body["vector"]) == vector.tobytes()


def test_a_mode_and_a_model_to_rank_again_with_are_asked_for_by_name(
    search: Callable[..., int], fake: Fake
) -> None:
    assert search() == 0
    assert not {"mode", "rerank"} & fake.body.keys()
    assert search("--mode", "hybrid", "--rerank", "ce") == 0
    assert (fake.body["mode"], fake.body["rerank"]) == ("hybrid", {"model": "ce"})


def test_a_hybrid_answer_shows_scores_and_the_rank_in_each_list(
    search: Callable[..., int], fake: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    hits = [
        {"id": 7, "score": 0.5, "distance": 0.25, "ranks": {"vector": 2, "fulltext": 1}, "shard": "s1"},
        {"id": 9, "score": 0.25, "ranks": {"fulltext": 3}, "shard": "s0"},
    ]
    legs = [{"name": name, "mode": name, "returned": 3} for name in ("vector", "fulltext")]
    fake.answer = {**ANSWER, "hits": hits, "legs": legs}
    assert search("--include", "") == 0
    head, first, second, _ = capsys.readouterr().out.splitlines()
    assert head.split() == ["#", "id", "score", "distance", "in", "vector", "in", "fulltext", "shard"]
    assert first.split() == ["1", "7", "0.5000", "0.2500", "2", "1", "s1"]
    assert second.split() == ["2", "9", "0.2500", "-", "-", "3", "s0"]


def test_an_answer_in_words_shows_scores_alone(
    search: Callable[..., int], fake: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.answer = {**ANSWER, "hits": [{"id": 7, "score": 1.5, "shard": "s1"}]}
    assert search("--include", "") == 0
    assert [line.split() for line in capsys.readouterr().out.splitlines()[:2]] == [
        ["#", "id", "score", "shard"],
        ["1", "7", "1.5000", "s1"],
    ]


def test_what_was_wanted_and_not_done_is_said_with_the_reason(
    search: Callable[..., int], fake: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    leg = {"name": "vector", "mode": "vector", "returned": 0, "error": "no answer of minilm"}
    fake.answer = {**ANSWER, "rerank": {"done": False, "reason": "ce did not answer in time"}, "legs": [leg]}
    assert search() == 0
    out = capsys.readouterr().out
    assert "NOT RE-RANKED: ce did not answer in time" in out
    assert "MISSING: the list vector: no answer of minilm" in out


def test_a_vector_comes_from_standard_input(
    search: Callable[..., int], fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"[1, 2]")))
    assert search("--vector", "-") == 0
    assert fake.body["vector"] == [1.0, 2.0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        (b"", "truncated"),
        (b'{"a": 1}', "Expected `array`"),
        (b'[1, "x"]', "Expected `float`"),
        (b"[" + b"1," * 600_000 + b"1]", "larger than 1048576 bytes"),
        (np.zeros((2, 3)), "shape (2, 3) is not one vector"),
        (np.array(["a"]), "is not one vector"),
        (np.array(1.0), "is not one vector"),
        (np.array([None]), "pickle"),
    ],
)
def test_a_file_without_a_vector_is_named(
    search: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    content: bytes | np.ndarray[Any, Any] | None,
    message: str,
) -> None:
    path = tmp_path / "v"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        with path.open("wb") as file:
            np.save(file, content)
    assert search("--vector", str(path)) == 1
    said = capsys.readouterr()
    assert f"no vector in {path}" in said.err
    assert message in said.err
    assert said.out == ""


def test_json_prints_the_answer_as_it_came(
    search: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert search("--json") == 0
    assert json.loads(capsys.readouterr().out) == ANSWER


def test_a_partial_answer_says_so_and_names_what_is_missing(
    search: Callable[..., int], fake: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    counts = {"total": 4, "queried": 4, "ok": 3, "skipped": 0, "timed_out": 1, "failed": 0}
    failures = [{"shard": "s2", "state": "timed_out", "error": "no answer in time"}]
    coverage = {"full": False, "shards": counts, "failures": failures, "stale": ["s1"]}
    fake.answer = {**ANSWER, "coverage": coverage}
    assert search() == 0
    out = capsys.readouterr().out
    assert "3 of 4 shards" in out
    assert "INCOMPLETE: 1 of 4 shards are missing" in out
    assert "s2 timed_out: no answer in time" in out
    assert "OUT OF DATE: s1" in out


def test_an_unsettled_answer_says_which_shard_had_no_time_for_what(
    search: Callable[..., int], fake: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.answer = {**ANSWER, "unsettled": [{"shard": "s2", "reason": "ties"}]}
    assert search() == 0
    assert "UNSETTLED: s2: no time was left to find the lowest ids" in capsys.readouterr().out


def test_too_few_hits_come_with_the_reason_and_skipped_shards_are_counted(
    search: Callable[..., int], fake: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    counts = {"total": 4, "queried": 1, "ok": 1, "skipped": 3, "timed_out": 0, "failed": 0}
    short = {"asked": 5, "returned": 1, "reason": "exhausted"}
    fake.answer = {**ANSWER, "hits": HITS[:1], "short": short, "coverage": {"full": True, "shards": counts}}
    assert search("--k", "5") == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("1 hit of 5 (nothing else matches) in")
    assert "1 of 4 shards (3 not needed)" in last
    fake.answer = {**ANSWER, "hits": [], "short": short}
    assert search("--k", "5") == 0
    assert "0 hits of 5 (nothing matches) in" in capsys.readouterr().out


def test_no_hits_are_no_table(
    search: Callable[..., int], fake: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.answer = {**ANSWER, "hits": []}
    assert search() == 0
    assert capsys.readouterr().out == "0 hits in 3.1 ms, cache miss, 4 of 4 shards, map version 12\n"


def test_explain_shows_every_shard(
    search: Callable[..., int], fake: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    report = {
        **{"shard": "s0", "state": "ok", "node": "s0-b", "role": "replica", "attempts": 2, "hedged": True},
        **{"queue_ms": 0.25, "execute_ms": 1.5, "total_ms": 2.0, "asked": 20, "returned": 20, "kept": 3},
    }
    fake.answer = {**ANSWER, "explain": {"shards": [report]}}
    assert search("--explain") == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if "s0-b" in line)
    assert row.split() == ["s0", "ok", "s0-b", "replica", "2", "true", "0.2", "1.5", "2.0", "20", "20", "3"]


def test_a_refusal_says_what_the_router_said(
    search: Callable[..., int], fake: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.status = 422
    places = [{"path": "k", "message": "k is 0"}, {"path": "filter.x", "message": "no such column"}]
    fake.answer = {"title": "Invalid request", "detail": "k: k is 0", "status": 422, "errors": places}
    assert search() == 1
    said = capsys.readouterr()
    assert said.err == "pgscatter search: 422: k: k is 0\n  filter.x: no such column\n"
    assert said.out == ""


@pytest.mark.parametrize(
    ("status", "answer", "message"),
    [
        (502, b"<html>", "502: Bad Gateway"),
        (500, b"\xff", "500: Internal Server Error"),
        (200, b"<html>", "is not pgscatter"),
        (200, b'{"hits": 1}', "is not pgscatter"),
    ],
)
def test_an_answer_of_somebody_else_is_recognised(
    search: Callable[..., int],
    fake: Fake,
    capsys: pytest.CaptureFixture[str],
    status: int,
    answer: bytes,
    message: str,
) -> None:
    fake.status, fake.answer = status, answer
    assert search() == 1
    assert message in capsys.readouterr().err


def test_a_key_comes_from_the_argument_or_the_environment(
    search: Callable[..., int], fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PGSCATTER_API_KEY", raising=False)
    search()
    assert "Authorization" not in fake.seen[-1].headers
    monkeypatch.setenv("PGSCATTER_API_KEY", "from-env")
    search()
    assert {seen.headers["Authorization"] for seen in fake.seen[-2:]} == {"Bearer from-env"}
    search("--api-key", "given")
    assert fake.seen[-1].headers["Authorization"] == "Bearer given"


def test_a_key_comes_from_a_file(
    search: Callable[..., int], fake: Fake, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "key"
    file.write_text("from-file\n")
    search("--api-key-file", str(file))
    assert fake.seen[-1].headers["Authorization"] == "Bearer from-file"
    assert search("--api-key-file", str(tmp_path / "none")) == 1
    assert "--api-key-file" in capsys.readouterr().err


@pytest.mark.parametrize("url", ["http://u:s3cret@127.0.0.1:1", "ftp://u:s3cret@h", "u:x/s3cret@x@h"])
def test_what_is_said_of_an_address_shows_no_password(url: str) -> None:
    with pytest.raises(client.ClientError) as caught:
        client.Client(url, timeout=1).call("GET", "/livez")
    assert "s3cret" not in str(caught.value)


def test_a_redirection_is_not_followed_with_the_key(
    search: Callable[..., int], fake: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.status, fake.headers = 307, {"Location": f"{fake.url}/elsewhere"}
    assert search("--api-key", "secret") == 1
    assert "307" in capsys.readouterr().err
    assert [seen.path for seen in fake.seen][-1] == "/v1/collections/docs/search"


def test_a_proxy_of_the_environment_is_not_asked_for_loopback(
    search: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert search() == 0


def test_other_hosts_are_reached_through_the_proxy_of_the_environment(
    fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", fake.url.replace("//", "//somebody:a%40b@"))
    monkeypatch.setenv("no_proxy", "router.invalid")
    arguments = ["--collection", "docs", "--text", "x", "--timeout", "30"]
    assert main(["search", "--url", "http://router.example:81", *arguments]) == 0
    assert fake.seen[-1].path == "http://router.example:81/v1/collections/docs/search"
    login = fake.seen[-1].headers["Proxy-Authorization"].removeprefix("Basic ")
    assert base64.b64decode(login) == b"somebody:a@b"
    seen = len(fake.seen)
    assert main(["search", "--url", "http://router.invalid", *arguments]) == 1
    assert len(fake.seen) == seen


@pytest.mark.parametrize(
    ("proxy", "url", "said"),
    [
        ("socks5://127.0.0.1:1", "http://router.example", "cannot reach http://router.example"),
        ("http://127.0.0.1:99999", "http://router.example", "proxy for http://router.example is no address"),
        ("", "http://a..b", "cannot reach http://a..b"),
        ("", f"http://{'a' * 64}.example", "cannot reach http://aaa"),
    ],
)
def test_what_no_connection_can_be_made_to_is_an_error(
    proxy: str, url: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("http_proxy", proxy)
    assert main(["search", "--url", url, "--collection", "docs", "--text", "x"]) == 1
    assert said in capsys.readouterr().err


def test_a_router_that_is_not_there_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        assert main(["search", "--url", url, "--collection", "docs", "--text", "x"]) == 1
    assert f"cannot reach {url}" in capsys.readouterr().err


def test_a_router_that_does_not_answer_is_waited_for_only_so_long(
    search: Callable[..., int], fake: Fake, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.wait.clear()
    assert search("--timeout", "0.2") == 1
    assert "did not answer within 0.2 s" in capsys.readouterr().err


def test_an_endless_answer_is_cut_off(
    search: Callable[..., int],
    fake: Fake,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(client, "_MAX_BYTES", 1000)
    fake.answer = b" " * 100_000
    assert search() == 1
    assert "larger than 1000 bytes" in capsys.readouterr().err


@pytest.mark.parametrize(
    "url", ["127.0.0.1:8080", "ftp://127.0.0.1", "http://", "http://[::1", "http://127.0.0.1:x", ""]
)
def test_an_address_that_is_none_is_refused(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", "--url", url, "--collection", "docs", "--text", "x"]) == 1
    assert "is not an address like" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--filter", "{"],
        ["--filter", "[1]"],
        ["--timeout", "0"],
        ["--timeout", "nan"],
        ["--k", "many"],
        ["--text", "a", "--vector", "b"],
    ],
)
def test_wrong_usage_is_status_two_and_asks_nothing(
    search: Callable[..., int], fake: Fake, arguments: list[str]
) -> None:
    with pytest.raises(SystemExit) as raised:
        search(*arguments)
    assert raised.value.code == 2
    assert fake.seen == []


@pytest.mark.parametrize("key", ["a\nb", "a b", "schlüssel", "\udc80"])
def test_a_key_that_no_header_can_hold_is_refused_unseen(
    key: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--url", "http://127.0.0.1:1", "--collection", "docs", "--text", "x", "--api-key", key]
    assert main(["search", *arguments]) == 1
    said = capsys.readouterr().err
    assert said == "pgscatter search: the API key is none: one is printable ASCII without spaces\n"


def test_a_filter_that_is_no_text_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--url", "http://127.0.0.1:1", "--collection", "docs", "--text", "x"]
    with pytest.raises(SystemExit) as caught:
        main(["search", *arguments, "--filter", '{"a": "\udc80"}'])
    assert caught.value.code == 2
    assert "--filter: not a JSON object: not UTF-8" in capsys.readouterr().err
