"""The status of a write that stored nothing, by why its shards did not."""

from __future__ import annotations

from typing import get_args

import pytest

from router.documents.types import DeleteOutcome, DocumentFailure, ShardWrite, WriteFailure
from router.http.outcomes import Tally, delete_reply


@pytest.mark.parametrize(
    ("reasons", "status"),
    [
        (["denied"], 403),
        (["denied", "invalid"], 403),
        (["denied", "conflict"], 403),
        (["denied", "misconfigured"], 500),
        (["denied", "unavailable"], 503),
        (["denied", "unknown"], 503),
        (["conflict"], 409),
        (["misconfigured"], 500),
    ],
)
def test_the_status_says_whether_to_try_again(reasons: list[str], status: int) -> None:
    tally = Tally("docs", listed=10)
    for index, reason in enumerate(reasons):
        tally.fail(DocumentFailure(index, index, reason, "why", "s0"))  # type: ignore[arg-type]
    upsert = tally.reply("id")
    assert upsert.status == status
    assert ("retry-after" in dict_of(upsert.headers)) == (status == 503)
    writes = [
        ShardWrite(f"s{i}", False, 0, "why", reason == "unknown", reason)  # type: ignore[arg-type]
        for i, reason in enumerate(reasons)
        if reason in get_args(WriteFailure)
    ]
    if "invalid" not in reasons:
        assert delete_reply("docs", DeleteOutcome(0, tuple(writes)), "id").status == status


def dict_of(headers: list[tuple[bytes, bytes]]) -> dict[str, bytes]:
    return {name.decode(): value for name, value in headers}
