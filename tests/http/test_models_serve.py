"""`pgscatter models serve` as a process: how it starts, is configured and ends."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest

from deploy.local.models import ModelService, model_service
from router.model_service.limits import Limits, described
from router.settings_docs import rewritten
from tests.http.running import COMMAND, failed, until

DOCS = (Path(__file__).parents[2] / "docs" / "models.md").read_text()
SERVE = ("models", "serve")


@pytest.fixture(scope="module")
def service() -> Iterator[ModelService]:
    with model_service("--reranker", "r=wordllama") as url:
        yield url


def test_it_says_where_it_listens_and_what_it_serves(service: ModelService) -> None:
    said = service.log.read_text().splitlines()[0]
    assert said == (
        "pgscatter serves wordllama (wordllama, 256 dimensions), r (wordllama, re-ranks) on " + service.root
    )


def test_it_answers_on_its_port(service: ModelService) -> None:
    asked = {"input": ["a", "b"], "encoding_format": "base64"}
    answer = httpx.post(f"{service}/embeddings", json=asked, timeout=30).json()
    vectors = [np.frombuffer(base64.b64decode(one["embedding"]), "<f4") for one in answer["data"]]
    assert [len(vector) for vector in vectors] == [256, 256]
    ranked = httpx.post(f"{service}/rerank", json={"query": "a", "documents": ["b", "a"]}, timeout=30).json()
    assert [one["index"] for one in ranked["results"]] == [1, 0]
    assert 'pgscatter_models_texts_total{model="wordllama"}' in httpx.get(f"{service.root}/metrics").text


def test_its_log_is_json_but_for_the_line_that_says_where(service: ModelService) -> None:
    httpx.get(f"{service.root}/livez")
    until(lambda: len(service.log.read_text().splitlines()) > 1)
    for line in service.log.read_text().splitlines()[1:]:
        assert json.loads(line)["level"] in ("info", "warning")


@contextmanager
def started(tmp_path: Path, *flags: str, **env: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A service that the test ends itself, and its URL."""
    log = tmp_path / "log"
    with log.open("wb") as output:
        command = [*COMMAND, *SERVE, "--port", "0", *flags]
        process = subprocess.Popen(command, stderr=output, env={**os.environ, **env})
    try:
        until(lambda: " on http://" in log.read_text() or process.poll() is not None)
        found = re.search(r" on (http://\S+)", log.read_text())
        assert found is not None, log.read_text()
        yield process, found[1]
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(30)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_finishes_what_is_under_way_and_leaves_with_status_0(
    tmp_path: Path, number: signal.Signals
) -> None:
    with started(tmp_path, "--drain-delay", "0", "--max-body-bytes", "100000000") as (process, url):
        statuses: list[int] = []
        body = {"input": ["word " * 2000] * 300}
        asking = threading.Thread(
            target=lambda: statuses.append(
                httpx.post(f"{url}/v1/embeddings", json=body, timeout=60).status_code
            )
        )
        asking.start()

        def under_way() -> bool:
            return "in_flight_requests 2.0" in httpx.get(f"{url}/metrics", timeout=30).text

        until(under_way)
        process.send_signal(number)
        assert process.wait(60) == 0
        asking.join(30)
        assert statuses == [200]
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/livez")


def test_sigterm_first_tells_load_balancers(tmp_path: Path) -> None:
    with started(tmp_path, PGSCATTER_MODELS_DRAIN_DELAY="120") as (process, url):
        process.send_signal(signal.SIGTERM)
        until(lambda: httpx.get(f"{url}/readyz", timeout=30).status_code == 503)
        assert httpx.post(f"{url}/v1/embeddings", json={"input": "a"}, timeout=30).status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0


def test_what_is_not_done_in_time_is_cut_off_and_told(tmp_path: Path) -> None:
    flags = ("--drain-delay", "0", "--drain-timeout", "0.1", "--max-body-bytes", "100000000")
    with started(tmp_path, *flags, "--max-text-chars", "100000") as (process, url):
        answers: list[httpx.Response] = []
        body = {"input": ["word " * 20_000] * 150}
        asking = threading.Thread(
            target=lambda: answers.append(httpx.post(f"{url}/v1/embeddings", json=body, timeout=60))
        )
        asking.start()
        until(lambda: 'waiting_texts{model="wordllama"} 1' in httpx.get(f"{url}/metrics", timeout=30).text)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        asking.join(30)
        assert answers[0].status_code == 503 and answers[0].json()["error"]["code"] == "unavailable"


def test_a_key_from_a_file_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("secret\n")
    with started(tmp_path, "--api-key-file", str(tmp_path / "key"), "--drain-delay", "0") as (_, url):
        asked = {"input": "a"}
        assert httpx.post(f"{url}/v1/embeddings", json=asked, timeout=30).status_code == 401
        headers = {"authorization": "Bearer secret"}
        assert httpx.post(f"{url}/v1/embeddings", json=asked, headers=headers, timeout=30).status_code == 200


def test_it_is_not_open_to_other_machines_without_a_key() -> None:
    status, said = failed(*SERVE, "--host", "0.0.0.0", "--port", "0")
    assert status == 1 and "there is no key" in said


def test_a_port_that_is_taken_is_said_before_a_model_is_loaded() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        started_at = time.monotonic()
        status, said = failed(*SERVE, "--port", port, "--embedder", "m=sentence-transformers:/nowhere")
    assert status == 1 and said.startswith(f"cannot listen on 127.0.0.1 port {port}: "), started_at


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--embedder", "m"), "--embedder: expected NAME=BACKEND"),
        (("--embedder", "=wordllama"), "--embedder: expected NAME=BACKEND"),
        (("--embedder", "m m=wordllama"), "--embedder: expected NAME=BACKEND"),
        (("--embedder", "m=onnx:x"), "--embedder: expected wordllama, sentence-transformers:PATH_OR_NAME"),
        (("--embedder", "m=wordllama:x"), "wordllama takes nothing behind it"),
        (("--reranker", "m=cross-encoder"), "cross-encoder needs a path or a name"),
        (("--embedder", "m=wordllama", "--reranker", "m=wordllama"), "two models are named 'm'"),
        (("--reranker", "wordllama=wordllama"), "two models are named 'wordllama'"),
        (("--port", "70000"), "expected an integer from 0 to 65535"),
        (("--max-texts", "0"), "--max-texts: expected a whole number above 0, got '0'"),
        (("--drain-delay", "-1"), "--drain-delay: expected a number of seconds of at least 0"),
    ],
)
def test_wrong_flags_end_it_with_status_2(
    flags: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from router import cli

    with pytest.raises(SystemExit) as caught:
        cli.main([*SERVE, *flags])
    assert caught.value.code == 2 and said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--embedder", "m=cross-encoder:x"), "model 'm': cross-encoder cannot embed; wordllama, sentence-"),
        (
            ("--reranker", "m=sentence-transformers:x"),
            "model 'm': sentence-transformers cannot re-rank; wordl",
        ),
        (("--embedder", "m=sentence-transformers:/nowhere"), "model 'm': sentence-transformers"),
        (("--reranker", "m=cross-encoder:./nowhere"), "model 'm': "),
        (("--api-key-file", "/nowhere"), "/nowhere: No such file"),
    ],
)
def test_what_cannot_be_loaded_ends_it_with_status_1(flags: tuple[str, ...], said: str) -> None:
    status, error = failed(*SERVE, "--port", "0", *flags)
    lines = [line for line in error.splitlines() if not line.startswith("{")]  # that is the log
    assert status == 1 and len(lines) == 1 and lines[0].startswith(said)


def test_a_missing_package_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("wordllama", "sentence_transformers"):
        (tmp_path / f"{package}.py").write_text("raise ImportError('not here')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert "install pgscatter[models]" in failed(*SERVE, "--port", "0")[1]
    for flags in (("--embedder", "m=sentence-transformers:x"), ("--reranker", "m=cross-encoder:x")):
        # The default would be missing too.
        more = () if "--embedder" in flags else ("--embedder", "e=sentence-transformers:x")
        assert "install pgscatter[models-torch]" in failed(*SERVE, "--port", "0", *flags, *more)[1]


def test_the_limits_are_documented_as_they_are() -> None:
    assert rewritten(DOCS, described()) == DOCS, "run: make docs"
    rows = re.findall(r"^\| `(\w+)` \| [^|]+ \| (?:a|the) ", DOCS, re.MULTILINE)
    assert rows == list(Limits.__struct_fields__)


def test_every_metric_is_documented(service: ModelService) -> None:
    httpx.post(f"{service}/embeddings", json={"input": "a"}, timeout=30)
    text = httpx.get(f"{service.root}/metrics").text
    names = set(
        re.findall(r"^# TYPE pgscatter_models_(\w+) (?:counter|gauge|histogram)$", text, re.MULTILINE)
    )
    assert {name for name in names if not name.endswith("_created")} == {
        name
        for row in re.findall(r"^\| ((?:`\w+`(?:, )?)+) \| ", DOCS.split("### Metrics")[1], re.MULTILINE)
        for name in re.findall(r"`(\w+)`", row)
    }
