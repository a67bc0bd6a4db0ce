from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from router.http.keys_file import parse
from router.settings import Settings, origins_of
from tests.http.fake import FakeBackend, LogLines, application

APP = "https://app.example.com"
SEARCH = "/v1/collections/documents/search"
ASKING = {
    "origin": APP,
    "access-control-request-method": "POST",
    "access-control-request-headers": "x-api-key",
}
EXPOSED = {"x-request-id", "server-timing", "retry-after", "x-stale-shard"}
KEYS = parse("keys: [{name: a, key: secret, scopes: [read]}]", {}, "keys.yaml")

Connect = Callable[[Any], httpx.AsyncClient]


def listed(response: httpx.Response, header: str) -> set[str]:
    return {name.strip().lower() for name in response.headers.get(header, "").split(",")}


async def test_a_browser_is_given_leave_without_a_key_and_reads_answers_and_errors(connect: Connect) -> None:
    log = LogLines()
    settings = Settings(cors_origins=f"{APP}, http://localhost:3000")
    client = connect(application(FakeBackend(), settings, KEYS, log))
    leave = await client.options(SEARCH, headers=ASKING)
    assert leave.status_code == 200
    assert leave.headers["access-control-allow-origin"] == APP
    assert {"get", "post", "put", "delete"} <= listed(leave, "access-control-allow-methods")
    assert {"authorization", "content-type", "x-api-key"} <= listed(leave, "access-control-allow-headers")
    (line,) = await log.lines()
    assert (line["method"], line["route"], line["status"]) == (
        "OPTIONS",
        "/v1/collections/{collection}/search",
        200,
    )
    own = {"origin": APP, "x-api-key": "secret"}
    answers = [
        await client.post(SEARCH, json={"vector": [1, 2, 3]}, headers=own),
        await client.post(SEARCH, json={"vector": [1, 2, 3]}, headers={"origin": APP}),
        await client.post(SEARCH, content="{", headers=own),
        await client.post("/nowhere", headers=own),
        await client.put(SEARCH, headers=own),
        await client.get("/livez", headers=own),
    ]
    assert [answer.status_code for answer in answers] == [200, 401, 415, 404, 405, 200]
    for answer in answers:
        assert answer.headers["access-control-allow-origin"] == APP
        assert EXPOSED <= listed(answer, "access-control-expose-headers")
        assert "origin" in listed(answer, "vary")
        assert "access-control-allow-credentials" not in answer.headers


async def test_other_origins_and_other_clients_get_no_leave(connect: Connect) -> None:
    client = connect(application(FakeBackend(), Settings(cors_origins=APP)))
    for origin in ("https://app.example.com.evil.org", "http://app.example.com", "null"):
        refused = await client.options(SEARCH, headers=ASKING | {"origin": origin})
        assert refused.status_code == 405
        answer = await client.post(SEARCH, json={"vector": [1, 2, 3]}, headers={"origin": origin})
        assert answer.status_code == 200
        for response in (refused, answer):
            assert not [name for name in response.headers if name.startswith("access-control")]
            assert "origin" in listed(response, "vary")
    nowhere = await client.options("/nowhere", headers=ASKING)
    assert nowhere.status_code == 404 and nowhere.headers["access-control-allow-origin"] == APP


async def test_all_origins_are_a_star_and_nothing_varies(connect: Connect) -> None:
    client = connect(application(FakeBackend(), Settings(cors_origins="*")))
    answer = await client.get("/livez", headers={"origin": "https://anywhere.test"})
    assert answer.headers["access-control-allow-origin"] == "*"
    assert "vary" not in answer.headers


async def test_without_the_setting_there_is_none_of_it(client: httpx.AsyncClient) -> None:
    assert (await client.options(SEARCH, headers=ASKING)).status_code == 405
    answer = await client.get("/livez", headers={"origin": APP})
    assert not [name for name in answer.headers if name.startswith("access-control") or name == "vary"]


@pytest.mark.parametrize(
    "wrong", ["app.example.com", "https://app.example.com/", "https://App.example.com", "https://a b", "null"]
)
def test_what_no_browser_sends_as_an_origin_is_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match="expected origins such as"):
        origins_of(f"{APP},{wrong}")
