"""What is said of a write that the server refuses."""

from __future__ import annotations

from typing import cast

import asyncpg
import pytest

from router.postgres.connection import Connection, ErrorKind, NodeError
from router.postgres.write import explained
from tests.unit.queries import collection


class Server:
    def __init__(self, standby: bool) -> None:
        self.standby = standby

    def is_in_transaction(self) -> bool:
        return False

    async def fetchval(self, statement: str) -> bool:
        return self.standby


async def refuse() -> None:
    raise asyncpg.PostgresError.new(
        {"S": "ERROR", "V": "ERROR", "C": "25006", "M": "cannot execute INSERT in a read-only transaction"}
    )


async def test_a_read_only_transaction_is_a_replicas_way_and_denied_on_a_primary() -> None:
    with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
        await explained(cast(Connection, Server(standby=True)), collection(), refuse)
    with pytest.raises(NodeError, match="though it is the primary") as caught:
        await explained(cast(Connection, Server(standby=False)), collection(), refuse)
    assert caught.value.kind is ErrorKind.DENIED
