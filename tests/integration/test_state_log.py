"""Lines of the log about servers that really change."""

from __future__ import annotations

import logging

import pytest

from deploy.local import Cluster
from router.nodes.node import Node
from router.nodes.state_log import StateLog
from router.policy.limit import Limit
from router.policy.selection import Health, NodeState, Role
from router.postgres.connection import NodeError
from router.settings import Settings
from shard_config import model
from tests.integration.worlds import execute


async def test_a_login_that_stops_working_is_named_as_such_and_its_return_too(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="router.nodes.state_log")
    admin = cluster.node("s0-a").dsn
    await execute(admin, "CREATE ROLE leaver LOGIN PASSWORD 'hunter2'; CREATE EXTENSION IF NOT EXISTS vector")
    dsn = "postgresql://leaver:hunter2@" + admin.rpartition("@")[2]
    log = StateLog()
    node = Node(model.Node("s0-a", dsn), "s0", Settings(), Limit(1, 1), changed=log.node)
    try:
        await node.reads.warm()
        node.observe(NodeState(Health.UP, Role.PRIMARY, 1))
        log.begin([node])
        await execute(admin, "ALTER ROLE leaver NOLOGIN")
        node.reads.discard_idle()
        with pytest.raises(NodeError) as refused:
            await node.reads.warm()
        assert refused.value.cause == "authentication"
        (line,) = [one for one in caplog.records if one.getMessage() == "node login"]
        said = vars(line)
        assert (line.levelname, said["from"], said["to"]) == ("WARNING", "accepted", "refused")
        assert said["cause"] == "authentication" and "leaver" in said["reason"]
        assert "hunter2" not in str(said)
        assert node.status(None).cause == "authentication"
        await execute(admin, "ALTER ROLE leaver LOGIN")
        await node.reads.warm()
        assert node.status(None).cause is None
    finally:
        log.close()
        await node.close()
        await execute(admin, "DROP ROLE leaver")
