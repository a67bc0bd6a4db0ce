"""Texts become vectors by services that speak as the known ones do; no fault of one makes a wrong vector."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import random
import ssl
import tracemalloc
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, nullcontext
from email.utils import formatdate
from pathlib import Path
from time import time
from typing import Any

import numpy as np
import pytest
import uvloop

from router.models.embedding import Embeddings
from router.models.messages import words_of_refusal
from router.models.status import RefusedError
from router.query.errors import (
    DeadlineError,
    MisconfiguredError,
    OverloadedError,
    RouterError,
    UnavailableError,
)
from router.settings import Settings
from shard_config.model import EmbeddingService
from tests.unit.fake_services import (
    DIMENSIONS,
    Answer,
    FakeService,
    Received,
    bytes_of,
    floats,
    openai,
    strict,
)

# A circuit that opens, and closes, when a test wants it to.
SETTINGS = Settings(model_failures=1000, model_pause=0.01)
LONG = 30.0


class Heard(Counter[str]):
    """Listens to what is told of requests."""

    def service_answered(self, kind: str, name: str, seconds: float) -> None:
        assert seconds >= 0
        self[f"{kind} {name} answered"] += 1

    def service_failed(self, kind: str, name: str, cause: str) -> None:
        self[f"{kind} {name} {cause}"] += 1

    def text_embedded(self, name: str, tier: str) -> None:
        self[f"{name} {tier}"] += 1


def soon(seconds: float = LONG) -> float:
    return asyncio.get_running_loop().time() + seconds


@asynccontextmanager
async def embeddings(settings: Settings = SETTINGS, heard: Heard | None = None) -> AsyncIterator[Embeddings]:
    made = Embeddings(settings, listener=heard)
    try:
        yield made
    finally:
        await made.close()


def run(test: Callable[[FakeService, Embeddings], Awaitable[None]], settings: Settings = SETTINGS) -> None:
    async def whole() -> None:
        async with FakeService() as service, embeddings(settings) as made:
            await test(service, made)

    asyncio.run(whole())


AZURE = {"api_key": "k3y", "api_version": "2024-02-01"}


@pytest.mark.parametrize(
    ("usual", "changes", "path", "header"),
    [
        (openai, {}, "/v1/embeddings", None),
        (openai, {"api_key": "k3y"}, "/v1/embeddings", ("authorization", "bearer k3y")),
        (openai, AZURE, "/v1/embeddings?api-version=2024-02-01", ("api-key", "k3y")),
        (floats, {}, "/v1/embeddings", None),
        (strict, {"batch": 10}, "/v1/embeddings", None),
        (
            lambda r: {"data": [{"embedding": d["embedding"]} for d in floats(r)["data"]]},
            {},
            "/v1/embeddings",
            None,
        ),
        (lambda r: {"data": floats(r)["data"][::-1]}, {}, "/v1/embeddings", None),
    ],
    ids=["openai", "key", "azure", "ollama", "alibaba", "without index", "in another order"],
)
def test_services_that_speak_as_openai_does_are_understood(
    usual: Callable[[Received], Any], changes: dict[str, Any], path: str, header: tuple[str, str] | None
) -> None:
    async def test(fake: FakeService, made: Embeddings) -> None:
        fake.usual = usual
        model = fake.model(query_prefix="query: ", document_prefix="passage: ", **changes)
        assert await made.query(model, "what", soon()) == bytes_of("query: what")
        texts = [f"text {n}" for n in range(25)]
        assert await made.documents(model, texts, soon()) == [bytes_of(f"passage: {text}") for text in texts]
        assert {request.path for request in fake.requests} == {path}
        if header is not None:
            assert {request.headers.get(header[0]) for request in fake.requests} == {header[1]}
            assert ("authorization" in fake.requests[0].headers) == (header[0] == "authorization")
        assert all("dimensions" not in request.json for request in fake.requests)

    run(test)


def test_a_service_that_refuses_base64_is_asked_for_numbers_from_then_on() -> None:
    async def test(fake: FakeService, made: Embeddings) -> None:
        fake.usual = strict
        model = fake.model()
        for text in ("a", "b"):
            assert await made.query(model, text, soon()) == bytes_of(text)
        assert ["encoding_format" in request.json for request in fake.requests] == [True, False, False]

    run(test)


def test_dimensions_are_asked_for_where_the_map_says_so() -> None:
    async def test(fake: FakeService, made: Embeddings) -> None:
        await made.query(fake.model(send_dimensions=True), "a", soon())
        assert fake.requests[0].json["dimensions"] == DIMENSIONS

    run(test)


def test_a_name_is_looked_up_by_the_routers_own_names() -> None:
    async def test(fake: FakeService, made: Embeddings) -> None:
        model = fake.model(url=fake.url.replace("127.0.0.1", "localhost"))
        assert await made.query(model, "a", soon()) == bytes_of("a")
        gone = fake.model(url="http://name.invalid/v1")
        with pytest.raises(
            UnavailableError, match=r"embedding service m .*name\.invalid.* cannot be reached"
        ):
            await made.query(gone, "a", soon())
        with pytest.raises(UnavailableError, match=r"embedding service m .* cannot be spoken to"):
            await made.query(fake.model(url="http://[::::]/v1"), "a", soon())

    run(test)


CERTIFICATES = Path(__file__).parents[1] / "tls"


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
@pytest.mark.parametrize(
    ("certificate", "authority", "says"),
    [
        ("server.pem", "ca.pem", None),
        ("server.pem", "other.pem", "unable to get local issuer certificate"),
        ("elsewhere.pem", "ca.pem", "not valid for '127.0.0.1'"),
    ],
)
def test_a_service_behind_tls_has_to_be_the_one_that_the_map_names(
    certificate: str, authority: str, says: str | None, loop: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATES / authority))
    theirs = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    theirs.load_cert_chain(CERTIFICATES / certificate)

    async def test() -> None:
        async with FakeService(tls=theirs) as fake, embeddings(Settings(model_attempts=1)) as made:
            if says is None:
                texts = [f"{n} {'x' * 1000}" for n in range(500)]
                model = fake.model(batch=500, timeout=LONG)
                assert await made.documents(model, texts, soon()) == [bytes_of(text) for text in texts]
                assert await made.query(model, "a", soon()) == bytes_of("a")
                assert fake.connections == 1
                return
            with pytest.raises(UnavailableError, match=says):
                await made.query(fake.model(), "a", soon())

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(test())


VECTOR = [1.0, 2.0, 3.0, 4.0]


def data(*vectors: Any, indexes: tuple[Any, ...] | None = None) -> dict[str, Any]:
    places = range(len(vectors)) if indexes is None else indexes
    return {"data": [{"embedding": v, "index": i} for v, i in zip(vectors, places, strict=True)]}


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"<html>", "no list of embeddings"),
        (b"", "no list of embeddings"),
        (b"\xff\xfe", "no list of embeddings"),
        ({"object": "list"}, "no list of embeddings"),
        ({"data": [{"embedding": None}]}, "no list of embeddings"),
        (data(VECTOR), "1 vectors to 2 texts"),
        (data(VECTOR, VECTOR, VECTOR), "3 vectors to 2 texts"),
        (data(VECTOR, VECTOR, indexes=(0, 0)), "places of its answers"),
        (data(VECTOR, VECTOR, indexes=(1, 2)), "places of its answers"),
        (data(VECTOR, VECTOR, indexes=(0, None)), "places of its answers"),
        (b'{"data": [{"embedding": [1, 2, 3, NaN]}, {"embedding": [1, 2, 3, 4]}]}', "no list of embeddings"),
        (data([1.0, 2.0, 3.0, 1e39], VECTOR), "no finite number"),
        (data("AACAfwAAgH8AAIB/AACAfw==", VECTOR), "no finite number"),
        (data("no base64", VECTOR), "no base64"),
        (data("AACAfw", VECTOR), "no base64"),
        (data("AACA", VECTOR), "3 bytes"),
    ],
)
def test_an_answer_that_is_not_one_is_an_error_and_never_a_vector(body: Any, says: str) -> None:
    async def test(fake: FakeService, made: Embeddings) -> None:
        fake.answers.append(Answer(body=body))
        model = fake.model()
        for outcome in await made.documents(model, ["a", "b"], soon()):
            assert isinstance(outcome, UnavailableError)
            assert says in outcome.detail
            assert outcome.told(inside=False)[0] == "the embedding service m cannot answer"
        assert await made.documents(model, ["a", "b"], soon()) == [bytes_of("a"), bytes_of("b")]

    run(test)


@pytest.mark.parametrize("vector", [[1.0, 2.0], "AACAPwAAAEA=", [1.0] * 5, []])
def test_a_wrong_dimension_names_both(vector: Any) -> None:
    async def test(fake: FakeService, made: Embeddings) -> None:
        fake.answers.append(Answer(body=data(vector)))
        count = 2 if isinstance(vector, str) else len(vector)
        with pytest.raises(MisconfiguredError, match=f"vectors have {count} dimensions, and the map says 4"):
            await made.query(fake.model(), "a", soon())

    run(test)


@pytest.mark.parametrize(
    "answers",
    [
        [Answer(503), Answer(502)],
        [Answer(504)],
        [Answer(429)],
        [Answer(429, headers=("retry-after: 0",))],
        [Answer(reset=True)],
        [Answer(cut=20)],
        [Answer(408, close=True)],
    ],
    ids=["503 and 502", "504", "429", "429 with a time", "closed", "closed amid the answer", "408"],
)
def test_what_another_attempt_can_help_is_tried_again(answers: list[Answer]) -> None:
    async def test(fake: FakeService, made: Embeddings) -> None:
        fake.answers.extend(answers)
        assert await made.query(fake.model(), "a", soon()) == bytes_of("a")
        assert len(fake.requests) == len(answers) + 1

    run(test)


@pytest.mark.parametrize(
    ("answer", "error", "says"),
    [
        (
            Answer(500, {"error": {"message": "out of memory"}}),
            UnavailableError,
            "answers 500: out of memory",
        ),
        (Answer(401, {"error": "wrong key k3y"}), MisconfiguredError, r"does not take the key \(401\)$"),
        (Answer(404, {"message": "no model k3y"}), MisconfiguredError, r"answers 404: no model \*\*\*"),
        (Answer(301), MisconfiguredError, "answers 301"),
        (Answer(413, b"long"), RefusedError, "answers 413"),
        (Answer(body=b"x" * 2000), UnavailableError, "more than 1000 bytes"),
    ],
)
def test_what_another_attempt_cannot_help_is_said_at_once(
    answer: Answer, error: type[RouterError], says: str
) -> None:
    async def test(fake: FakeService, made: Embeddings) -> None:
        model = fake.model(api_key="k3y")
        await made.query(model, "first", soon())  # it takes base64
        fake.answers.append(answer)
        with pytest.raises(error, match=says) as raised:
            await made.query(model, "a", soon())
        assert len(fake.requests) == 2
        assert "embedding service m" in raised.value.detail
        assert fake.url in raised.value.detail
        told, problems = raised.value.told(inside=False)
        assert "k3y" not in f"{raised.value.detail}{told}{raised.value.problems}"
        assert fake.url not in f"{told}{problems}"
        assert await made.query(model, "a", soon()) == bytes_of("a")

    run(test, Settings(model_failures=1000, model_answer_bytes=1000))


@pytest.mark.parametrize("date", [False, True])
def test_a_time_that_the_deadline_does_not_leave_is_not_waited_for(date: bool) -> None:
    async def test(fake: FakeService, made: Embeddings) -> None:
        value = formatdate(time() + 3600, usegmt=True) if date else "3600"
        fake.always = Answer(429, headers=(f"Retry-After: {value}",))
        with pytest.raises(OverloadedError, match="too much to do") as raised:
            await made.query(fake.model(), "a", soon())
        assert 3500 < raised.value.retry_after <= 3600
        assert len(fake.requests) == 1
        fake.always = Answer(503, headers=("Retry-After: soon",))
        with pytest.raises(UnavailableError):
            await made.query(fake.model(), "a", soon())
        assert len(fake.requests) == 4

    run(test)


@pytest.mark.parametrize("value", ["1e999", "1e300", "9" * 400, "99999999999"])
@pytest.mark.parametrize("status", [429, 503])
def test_a_time_that_no_clock_has_is_answered_as_a_day(status: int, value: str) -> None:
    async def test(fake: FakeService, made: Embeddings) -> None:
        fake.always = Answer(status, headers=(f"Retry-After: {value}",))
        with pytest.raises((OverloadedError, UnavailableError)) as raised:
            await made.query(fake.model(), "a", soon())
        assert isinstance(raised.value, OverloadedError | UnavailableError)
        assert raised.value.retry_after == 86_400
        assert len(fake.requests) == 1

    run(test)


def test_of_an_answer_that_is_too_large_nothing_stays_in_memory() -> None:
    most = 1 << 20

    async def test(fake: FakeService, made: Embeddings) -> None:
        fake.always = Answer(body=b"x" * 4 * most)
        with pytest.raises(UnavailableError):
            await made.query(fake.model(), "first", soon())
        gc.collect()
        gc.disable()  # which would find later what errors and frames hold of each other
        tracemalloc.start()
        try:
            for _ in range(4):
                with pytest.raises(UnavailableError, match=f"more than {most} bytes"):
                    await made.query(fake.model(), "a", soon())
            left, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
            gc.enable()
        assert left < most / 2
        # A length that is said beforehand is believed. What the service itself holds counts here, too.
        assert peak < 8 * most

    run(test, Settings(model_failures=1000, model_answer_bytes=most))


def test_a_slow_service_is_given_up_when_its_time_or_the_callers_is_over() -> None:
    async def test(fake: FakeService, made: Embeddings) -> None:
        never = asyncio.Event()
        fake.always = Answer(held=never)
        with pytest.raises(UnavailableError, match=r"did not answer within 0\.05s"):
            await made.query(fake.model(timeout=0.05), "a", soon())
        with pytest.raises(DeadlineError, match=r"embedding service m .*before time ran out"):
            await made.query(fake.model(), "a", soon(0.05))
        assert len(fake.requests) == 2
        fake.always = None
        assert await made.query(fake.model(timeout=0.05), "a", soon()) == bytes_of("a")

    run(test)


def test_a_service_that_was_killed_is_used_again_when_it_is_back() -> None:
    async def test(fake: FakeService, made: Embeddings) -> None:
        model = fake.model()
        assert await made.query(model, "a", soon()) == bytes_of("a")
        await fake.stop()
        with pytest.raises(UnavailableError, match="cannot be reached"):
            await made.query(model, "b", soon())
        await fake.start()
        assert await made.query(model, "b", soon()) == bytes_of("b")

    run(test)


def test_connections_are_kept_and_one_that_was_closed_while_idle_costs_no_error() -> None:
    async def test(fake: FakeService, made: Embeddings) -> None:
        model = fake.model()
        for text in "abc":
            await made.query(model, text, soon())
        assert fake.connections == 1
        fake.answers.append(Answer(close=True))
        for text in "def":
            assert await made.query(model, text, soon()) == bytes_of(text)
        assert fake.connections == 2

    run(test)


def test_a_request_that_is_under_way_when_clients_close_leaves_no_connection() -> None:
    async def test(fake: FakeService, made: Embeddings) -> None:
        held = asyncio.Event()
        fake.answers.append(Answer(held=held))
        asked = asyncio.ensure_future(made.query(fake.model(), "a", soon()))
        await until(lambda: fake.at_once == 1)
        await made.close()
        held.set()
        assert await asked == bytes_of("a")
        await until(lambda: fake.open_connections == 0)

    run(test)


def test_what_comes_unasked_is_not_taken_for_the_answer_to_the_next_request() -> None:
    async def test(fake: FakeService, made: Embeddings) -> None:
        model = fake.model()
        other = json.dumps(data([9.0, 9.0, 9.0, 9.0])).encode()
        stray = b"HTTP/1.1 200 x\r\ncontent-length: %d\r\n\r\n%s" % (len(other), other)
        fake.answers.append(Answer(stray=stray))
        for text in "abc":
            assert await made.query(model, text, soon()) == bytes_of(text)
        assert fake.connections == 2

    run(test)


def test_a_service_that_keeps_failing_is_not_asked_until_one_trial_has_succeeded(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)

    async def test(fake: FakeService, made: Embeddings) -> None:
        model = fake.model()
        fake.always = Answer(500)
        for _ in range(2):
            with pytest.raises(UnavailableError, match="answers 500"):
                await made.query(model, "a", soon())
        assert made.statuses([model])[0].circuit == "open"
        with pytest.raises(UnavailableError, match=r"is not asked for another .*kept failing: answers 500"):
            await made.query(model, "a", soon())
        assert len(fake.requests) == 2
        held = asyncio.Event()
        fake.always = Answer(held=held)
        while True:
            trial = asyncio.ensure_future(made.query(model, "b", soon()))
            await until(lambda trial=trial: trial.done() or made.statuses([model])[0].circuit == "trial")
            if not trial.done():
                break
            assert isinstance(trial.exception(), UnavailableError)  # it was too soon
        with pytest.raises(UnavailableError, match="is not asked"):
            await made.query(model, "c", soon())
        held.set()
        assert await trial == bytes_of("b")
        assert await made.query(model, "c", soon()) == bytes_of("c")
        assert made.statuses([model])[0].circuit == "closed"

    run(test, Settings(model_failures=2, model_pause=0.05, model_attempts=1))
    said = [(record.levelname, record.message) for record in caplog.records]
    assert said == [
        ("WARNING", "service for texts fails and is not asked for a while"),
        ("INFO", "service for texts answers again"),
    ]
    assert caplog.records[0].__dict__["reason"] == "answers 500"


def test_the_log_says_once_that_a_service_is_not_as_the_map_says(caplog: pytest.LogCaptureFixture) -> None:
    async def test(fake: FakeService, made: Embeddings) -> None:
        model = fake.model(api_key="k3y")
        wrong = Answer(404, {"message": "no model k3y"})
        fake.answers.extend([wrong, wrong, Answer(), wrong])
        for text in "abcd":
            with nullcontext() if text == "c" else pytest.raises(MisconfiguredError):
                await made.query(model, text, soon())

    run(test)
    said = [(record.levelname, record.message, record.__dict__["reason"]) for record in caplog.records]
    assert said == [("WARNING", "service for texts is not as the map says", "answers 404: no model ***")]


def test_requests_at_once_and_those_that_wait_are_bounded() -> None:
    async def test(fake: FakeService, made: Embeddings) -> None:
        held = asyncio.Event()
        fake.always = Answer(held=held)
        model = fake.model(timeout=LONG)
        asked = [asyncio.ensure_future(made.query(model, text, soon())) for text in "abcde"]
        await until(lambda: len(fake.requests) == 2 and made.statuses([model])[0].waiting == 3)
        with pytest.raises(OverloadedError, match="3 requests waiting already"):
            await made.query(model, "f", soon())
        with pytest.raises(OverloadedError):
            await made.query(model, "a" * 9, soon())
        held.set()
        assert await asyncio.gather(*asked) == [bytes_of(text) for text in "abcde"]
        assert (fake.most_at_once, fake.connections) == (2, 2)

    run(test, Settings(model_requests=2, model_queue=3))


async def until(true: Callable[[], bool]) -> None:
    while not true():
        await asyncio.sleep(0.001)


def test_who_waits_for_a_turn_until_time_runs_out_is_told_so() -> None:
    async def test(fake: FakeService, made: Embeddings) -> None:
        held = asyncio.Event()
        fake.always = Answer(held=held)
        model = fake.model(timeout=LONG)
        first = asyncio.ensure_future(made.query(model, "a", soon()))
        await until(lambda: len(fake.requests) == 1)
        with pytest.raises(DeadlineError, match="had other requests"):
            await made.query(model, "b", soon(0.05))
        held.set()
        await first

    run(test, Settings(model_requests=1))


def test_equal_texts_in_flight_share_a_request_that_lives_while_one_of_them_waits() -> None:
    async def test(fake: FakeService, made: Embeddings) -> None:
        held = asyncio.Event()
        fake.answers.append(Answer(held=held))
        model = fake.model(timeout=LONG)
        end = soon()
        asked = [asyncio.ensure_future(made.query(model, "same", end)) for _ in range(4)]
        await until(lambda: len(fake.requests) == 1)
        for task in asked[:3]:
            task.cancel()
        await asyncio.gather(*asked[:3], return_exceptions=True)
        held.set()
        assert await asked[3] == bytes_of("same")
        assert len(fake.requests) == 1
        fake.answers.append(Answer(held=asyncio.Event()))
        last = asyncio.ensure_future(made.query(model, "other", end))
        await until(lambda: len(fake.requests) == 2)
        last.cancel()
        await asyncio.gather(last, return_exceptions=True)
        assert made.statuses([model])[0].in_flight == 0
        assert [task for task in asyncio.all_tasks() if "_look_up" in repr(task)] == []
        assert await made.query(model, "other", end) == bytes_of("other")

    run(test)


@pytest.mark.parametrize("tls", [False, True])
def test_requests_that_are_cancelled_at_any_moment_leave_nothing_behind(
    tls: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATES / "ca.pem"))
    theirs = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    theirs.load_cert_chain(CERTIFICATES / "server.pem")
    chance = random.Random(7)

    async def test() -> None:
        settings = Settings(model_requests=2, embedding_cache_bytes=0, model_failures=1000)
        async with FakeService(tls=theirs if tls else None) as fake, embeddings(settings) as made:
            model = fake.model(timeout=LONG)

            async def ask(n: int) -> None:
                task = asyncio.ensure_future(made.query(model, f"text {n}", soon()))
                for _ in range(chance.randrange(40)):
                    await asyncio.sleep(0)
                if task.done():
                    assert task.result() == bytes_of(f"text {n}")
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

            for n in range(100):
                await asyncio.gather(*(ask(3 * n + i) for i in range(3)))
            (status,) = made.statuses([model])
            assert (status.in_flight, status.waiting, status.circuit) == (0, 0, "closed")
            texts = [f"last {n}" for n in range(4)]
            found = await asyncio.gather(*(made.query(model, text, soon()) for text in texts))
            assert found == [bytes_of(text) for text in texts]

    asyncio.run(test())


def test_a_cancelled_trial_does_not_keep_the_circuit_open() -> None:
    async def test(fake: FakeService, made: Embeddings) -> None:
        model = fake.model()
        fake.answers.append(Answer(500))
        with pytest.raises(UnavailableError):
            await made.query(model, "a", soon())
        fake.answers.append(Answer(held=asyncio.Event()))
        await asyncio.sleep(0.02)
        trial = asyncio.ensure_future(made.query(model, "a", soon()))
        await until(lambda: len(fake.requests) == 2)
        trial.cancel()
        await asyncio.gather(trial, return_exceptions=True)
        assert await made.query(model, "a", soon()) == bytes_of("a")

    run(test, Settings(model_failures=1, model_pause=0.01))


def test_a_text_that_was_searched_for_is_not_asked_for_again_by_any_version_of_the_map() -> None:
    heard = Heard()

    async def whole() -> None:
        async with FakeService() as fake, embeddings(heard=heard) as made:
            model = fake.model()
            for _ in range(3):
                assert await made.query(model, "a", soon()) == bytes_of("a")
            again = fake.model(api_key="new", timeout=2.0, batch=1)
            assert (await made.embed(again, "a", soon())).tier == "l1"
            assert len(fake.requests) == 1
            other: EmbeddingService
            for other in (fake.model(model="b"), fake.model(query_prefix="q")):
                assert (await made.embed(other, "a", soon())).tier == "miss"
            assert len(fake.requests) == 3

    asyncio.run(whole())
    assert heard == {"m l1": 3, "m miss": 3, "embedding m answered": 3}


@pytest.mark.parametrize("settings", [{"embedding_cache_bytes": 0}, {"embedding_cache_ttl": 0.0}])
def test_the_cache_can_be_turned_off(settings: dict[str, Any]) -> None:
    async def test(fake: FakeService, made: Embeddings) -> None:
        for _ in range(2):
            assert (await made.embed(fake.model(), "a", soon())).tier == "miss"
        assert len(fake.requests) == 2

    run(test, Settings(**settings))


@pytest.mark.parametrize("component", [0.0, 1e30, 1e-30])
def test_a_vector_that_no_metric_can_use_is_not_remembered(component: float) -> None:
    async def test(fake: FakeService, made: Embeddings) -> None:
        fake.answers.append(Answer(body=data([component] * DIMENSIONS)))
        assert await made.query(fake.model(), "a", soon()) == np.full(DIMENSIONS, component, "<f4").tobytes()
        assert await made.query(fake.model(), "a", soon()) == bytes_of("a")
        assert (await made.embed(fake.model(), "a", soon())).tier == "l1"

    run(test)


def test_the_cache_is_bounded_in_bytes() -> None:
    async def test(fake: FakeService, made: Embeddings) -> None:
        model = fake.model()
        for n in range(20):
            await made.query(model, f"text {n}", soon())
        assert (await made.embed(model, "text 19", soon())).tier == "l1"
        assert (await made.embed(model, "text 0", soon())).tier == "miss"

    run(test, Settings(embedding_cache_bytes=5000))


def test_documents_go_in_batches_some_at_a_time_and_one_that_fails_takes_no_other_with_it() -> None:
    async def test(fake: FakeService, made: Embeddings) -> None:
        def usual(request: Received) -> Any:
            texts = request.json["input"]
            return Answer(500) if "text 11" in texts else openai(request)

        fake.usual = usual
        texts = [f"text {n}" for n in range(95)]
        outcomes = await made.documents(fake.model(batch=10), texts, soon())
        failed = [i for i, outcome in enumerate(outcomes) if isinstance(outcome, UnavailableError)]
        assert failed == list(range(10, 20))
        assert [outcomes[i] for i in (0, 9, 20, 94)] == [bytes_of(texts[i]) for i in (0, 9, 20, 94)]
        assert sorted(map(len, fake.texts())) == [5] + [10] * 9
        assert fake.most_at_once <= 4
        assert await made.documents(fake.model(), [], soon()) == []

    run(test)


def test_a_document_that_is_refused_is_found_among_the_others() -> None:
    async def test(fake: FakeService, made: Embeddings) -> None:
        def usual(request: Received) -> Any:
            long = any(len(text) > 100 for text in request.json["input"])
            return Answer(400, {"error": {"message": "too long"}}) if long else openai(request)

        fake.usual = usual
        texts = [f"text {n}" for n in range(16)]
        texts[5] = "x" * 101
        outcomes = await made.documents(fake.model(), texts, soon())
        refused = outcomes.pop(5)
        assert isinstance(refused, RefusedError)
        assert "answers 400: too long" in refused.detail
        del texts[5]
        assert outcomes == [bytes_of(text) for text in texts]

    run(test)


def test_a_text_that_cannot_be_sent_is_refused_alone() -> None:
    async def test(fake: FakeService, made: Embeddings) -> None:
        with pytest.raises(RefusedError, match="surrogate"):
            await made.query(fake.model(), "a\udc00", soon())
        first, second, third = await made.documents(fake.model(), ["a", "\ud800", "é"], soon())
        assert (first, third) == (bytes_of("a"), bytes_of("é"))
        assert isinstance(second, RefusedError)

    run(test)


def test_documents_whose_time_is_over_say_so() -> None:
    async def test(fake: FakeService, made: Embeddings) -> None:
        fake.always = Answer(held=asyncio.Event())
        outcomes = await made.documents(fake.model(batch=1), list("abcdef"), soon(0.05))
        assert all(isinstance(outcome, DeadlineError) for outcome in outcomes)

    run(test)


def test_large_answers_come_whole() -> None:
    async def test(fake: FakeService, made: Embeddings) -> None:
        dimensions = 16_000
        numbers = [n / 7 for n in range(dimensions)]
        fake.always = Answer(body=data(*[numbers] * 8))
        model = fake.model(dimensions=dimensions, timeout=LONG)
        vectors = await made.documents(model, list("abcdefgh"), soon())
        assert {len(vector) for vector in vectors if isinstance(vector, bytes)} == {4 * dimensions}
        assert len(set(vectors)) == 1

    run(test)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (json.dumps({"error": {"message": "a\nb\u0007  c"}}).encode(), "a b c"),
        (b'{"detail": "no"}', "no"),
        (b'{"error": "no", "error_type": "x"}', "no"),
        (b'{"detail": [{"loc": 1}]}', ""),
        (b"<html>", ""),
        (b"", ""),
        (json.dumps({"message": "x" * 5000}).encode(), "x" * 297 + "..."),
        (json.dumps({"message": "y" * 292 + "s3cret" + "z" * 99}).encode(), "y" * 292 + "***zz..."),
    ],
)
def test_what_a_service_says_is_one_short_line(body: bytes, words: str) -> None:
    assert words_of_refusal(body, "s3cret") == words
