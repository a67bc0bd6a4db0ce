"""Who may see the inside of the cluster: nodes, hosts, roles, and what servers say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import httpx
import msgspec
import pytest

from router.documents.types import DeleteOutcome, DocumentFailure, ShardWrite, UpsertOutcome, WriteFailure
from router.http.keys_file import parse
from router.postgres.connection import _CAUSES
from router.query.answer import coverage_of, raise_if_unanswered
from router.query.errors import MisconfiguredError, OverloadedError
from router.query.redaction import redacted
from router.query.types import Found, SearchQuery, ShardReport, ShardState
from tests.http.fake import FakeBackend, LogLines, application

C = "/v1/collections/documents"
BODY = {"vector": [1, 2, 3]}
KEYS = """
keys:
  - {name: app, key: app, scopes: [read, write]}
  - {name: operator, key: operator, scopes: [admin]}
"""
# What a server, the driver and the map may say: none of it is for an application.
INNER = (
    "10.0.0.7",
    "s1-a",
    "pg_hba.conf",
    "router_role",
    "refused",
    "sslmode",
    "/etc/pgscatter",
    "WRONGPASS",
)
SAID = (
    's1-a: no pg_hba.conf entry for host "10.0.0.7", user "router_role", sslmode off; '
    "s1-b: connection refused"
)


class Broken(FakeBackend):
    """s1 is away; whatever is known of it is in `SAID`."""

    def __init__(self) -> None:
        super().__init__()
        self.raised: Exception | None = None

    async def search(self, query: SearchQuery, deadline: float) -> Found:
        if self.raised is not None:
            raise self.raised
        reports = [
            ShardReport("s0", ShardState.OK, "s0-a", "primary", 1),
            ShardReport("s1", ShardState.FAILED, "s1-a", attempts=2, error=SAID, cause="authentication"),
        ]
        coverage = coverage_of(reports, 2)
        raise_if_unanswered(coverage, reports, allow_partial=query.allow_partial)
        found = await super().search(query, deadline)
        answer = msgspec.structs.replace(found.answer, coverage=coverage, reports=tuple(reports))
        return Found(answer, "miss")

    async def count(self, *args: Any) -> Any:
        answer = await super().count(*args)
        reports = [ShardReport("s1", ShardState.FAILED, "s1-a", error=SAID, cause="authentication")]
        return msgspec.structs.replace(answer, coverage=coverage_of(reports, 2))

    async def upsert(self, collection: Any, documents: Any, deadline: float) -> UpsertOutcome:
        failures = tuple(DocumentFailure(one.index, one.id, "misconfigured", SAID, "s1") for one in documents)
        write = ShardWrite("s1", False, 0, SAID, reason="misconfigured")
        return UpsertOutcome(0, (write,), failures)

    async def delete(self, *args: Any) -> DeleteOutcome:
        return DeleteOutcome(0, (ShardWrite("s1", False, 0, SAID, unknown=True, reason="unknown"),))

    def nodes(self) -> list[Any]:
        first, second = super().nodes()
        down = msgspec.structs.replace(second, state="down", reason=SAID, cause="authentication")
        return [first, down]

    def cache_stats(self) -> dict[str, Any]:
        reason = "WRONGPASS at 10.0.0.7"
        return {"l2_enabled": True, "l2_on": False, "l2_cause": "authentication", "l2_reason": reason}


@pytest.fixture
def log() -> LogLines:
    return LogLines()


@pytest.fixture
def broken() -> Broken:
    return Broken()


@pytest.fixture
def client(broken: Broken, log: LogLines, connect: Callable[[Any], httpx.AsyncClient]) -> httpx.AsyncClient:
    return connect(application(broken, keys=parse(KEYS, {}, "keys"), log=log))


REQUESTS: dict[str, tuple[str, str, Any]] = {
    "partial": ("POST", f"{C}/search", BODY),
    "explained": ("POST", f"{C}/search", {**BODY, "explain": True}),
    "all or nothing": ("POST", f"{C}/search", {**BODY, "allow_partial": False}),
    "batch": ("POST", f"{C}/search/batch", {"searches": [BODY, {**BODY, "allow_partial": False}]}),
    "count": ("GET", f"{C}/count", None),
    "upsert": ("PUT", f"{C}/documents", {"documents": [{"id": 1, "vector": [1, 2, 3]}]}),
    "delete": ("DELETE", f"{C}/documents/1", None),
    "health": ("GET", "/health", None),
}


@pytest.mark.parametrize("what", REQUESTS)
async def test_an_application_is_told_shards_and_causes_and_an_operator_everything(
    client: httpx.AsyncClient, what: str
) -> None:
    method, path, body = REQUESTS[what]
    seen = await client.request(method, path, json=body, headers={"x-api-key": "app"})
    assert "s1" in seen.text
    assert not [inner for inner in INNER if inner in seen.text], seen.text
    whole = await client.request(method, path, json=body, headers={"x-api-key": "operator"})
    assert whole.status_code == seen.status_code
    assert "pg_hba.conf" in whole.text


async def test_a_stream_says_as_little(client: httpx.AsyncClient) -> None:
    headers = {"x-api-key": "app", "content-type": "application/x-ndjson"}
    seen = await client.put(f"{C}/documents", content=b'{"id": 1, "vector": [1, 2, 3]}\n', headers=headers)
    assert seen.json()["failures"][0]["reason"] == "misconfigured"
    assert not [inner for inner in INNER if inner in seen.text]


async def test_without_keys_whoever_can_connect_sees_everything(
    broken: Broken, connect: Callable[[Any], httpx.AsyncClient]
) -> None:
    # The router listens on this machine's own addresses only then.
    opened = connect(application(broken))
    for what in ("partial", "health"):
        method, path, body = REQUESTS[what]
        assert "pg_hba.conf" in (await opened.request(method, path, json=body)).text


async def test_readiness_names_no_shard_to_those_who_may_have_no_key(
    client: httpx.AsyncClient, broken: Broken, connect: Callable[[Any], httpx.AsyncClient]
) -> None:
    for headers in ({}, {"x-api-key": "app"}, {"x-api-key": "nobody's"}):
        answer = await client.get("/readyz", headers=headers)
        assert (answer.status_code, answer.json()) == (200, {"ready": True})
    assert set((await client.get("/health", headers={"x-api-key": "app"})).json()["shards"]) == {"s0", "s1"}
    assert set((await connect(application(broken)).get("/readyz")).json()["shards"]) == {"s0", "s1"}


@pytest.mark.parametrize(
    "cause", sorted({*get_args(WriteFailure), *_CAUSES.values(), "authentication", "no_node"})
)
def test_each_cause_has_words_of_its_own_for_those_outside(cause: str) -> None:
    assert "could not answer" not in redacted(cause, "10.0.0.7 says no")


async def test_causes_are_words_that_programs_can_tell_apart(client: httpx.AsyncClient) -> None:
    app = {"x-api-key": "app"}
    (failure,) = (await client.post(f"{C}/search", json=BODY, headers=app)).json()["coverage"]["failures"]
    assert (failure["shard"], failure["state"], failure["cause"]) == ("s1", "failed", "authentication")
    health = (await client.get("/health", headers=app)).json()
    assert health["faults"] == [
        {"shard": "s1", "role": "primary", "state": "down", "cause": "authentication", "since": 0.0}
    ]
    assert "nodes" not in health
    assert health["caches"]["l2_cause"] == "authentication"


async def test_refusals_name_no_node_either(client: httpx.AsyncClient, broken: Broken) -> None:
    for error in (
        OverloadedError("512 searches wait for node s1-a").hidden("512 searches wait for a shard"),
        MisconfiguredError("the text model, /etc/pgscatter/x: gone").hidden("the text model is gone"),
    ):
        broken.raised = error
        for key, hidden in (("app", True), ("operator", False)):
            seen = await client.post(f"{C}/search", json=BODY, headers={"x-api-key": key})
            assert any(inner in seen.text for inner in INNER) is not hidden


async def test_what_a_server_says_of_the_callers_own_values_stays(
    client: httpx.AsyncClient, broken: Broken, log: LogLines
) -> None:
    said = 'value "9e999" is out of range for type real'
    report = ShardReport("s1", ShardState.FAILED, error=said, cause="invalid", fault="request")
    coverage = coverage_of([report], 2)
    try:
        raise_if_unanswered(coverage, [report], allow_partial=True)
    except Exception as exc:
        broken.raised = exc
    seen = await client.post(f"{C}/search", json=BODY, headers={"x-api-key": "app"})
    assert seen.status_code == 422 and "9e999" in seen.text
    # The log is no place for them.
    assert [line["missing"] for line in await log.lines()] == [
        [{"shard": "s1", "state": "failed", "cause": "invalid", "reason": None}]
    ]
    assert "9e999" not in log.getvalue()


@pytest.mark.parametrize("what", [what for what in REQUESTS if what != "health"])
async def test_the_line_of_a_request_names_the_shards_that_are_missing_and_why(
    client: httpx.AsyncClient, log: LogLines, what: str
) -> None:
    method, path, body = REQUESTS[what]
    await client.request(method, path, json=body, headers={"x-api-key": "app"})
    (line,) = await log.lines()
    (missing,) = line["missing"]
    state, cause = {
        "upsert": ("failed", "misconfigured"),
        "delete": ("unknown", "unknown"),
    }.get(what, ("failed", "authentication"))
    assert (missing["shard"], missing["state"], missing["cause"]) == ("s1", state, cause)
    assert missing["reason"] == SAID[:200]


async def test_whole_answers_have_no_such_field_and_many_shards_are_counted(
    backend: FakeBackend, log: LogLines, connect: Callable[[Any], httpx.AsyncClient]
) -> None:
    opened = connect(application(backend, log=log))
    await opened.post(f"{C}/search", json=BODY)
    reports = [ShardReport(f"s{i}", ShardState.FAILED, error="x" * 999, cause="busy") for i in range(400)]
    try:
        raise_if_unanswered(coverage_of(reports, 400), reports, allow_partial=True)
    except Exception as exc:
        backend.error = exc
    await opened.post(f"{C}/search", json=BODY)
    await opened.post(f"{C}/search/batch", json={"searches": [BODY] * 9})
    whole, *failed = await log.lines()
    assert "missing" not in whole
    for line in failed:
        assert [one["shard"] for one in line["missing"]] == ["s0", "s1", "s2", "s3", "s4"]
        assert line["missing_more"] == 395
        assert len(str(line)) < 2500
