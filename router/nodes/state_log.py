"""A line in the log for each change of state: of a node, its role, its lag, its login, its shard, and Redis.

The lines are made by comparing what operators are shown, whatever states there are; `router.policy.changes`
bounds how many. Every worker says what it sees itself: one of them alone may have left a node out, or may
lack the connections that the others have.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING

from router.nodes.node import Node
from router.nodes.status import NodeStatus
from router.policy.changes import Changes, Line, Subject, View

if TYPE_CHECKING:
    from router.freshness.redis_link import RedisLink

__all__ = ["StateLog"]

_logger = logging.getLogger(__name__)

_LEVELS = {"info": logging.INFO, "warning": logging.WARNING}
_FLUSH = 1.0
# Nodes that a shard's line names.
_NAMED = 3
_REASON_CHARACTERS = 300


class StateLog:
    """Told of changes by whoever makes them; says nothing before `begin`."""

    def __init__(self, changes: Changes | None = None) -> None:
        self._changes = changes or Changes()
        self._begun = False
        self._closed = False
        self._timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"<StateLog {self._changes!r}>"

    def begin(self, nodes: Iterable[Node]) -> None:
        """Say how `nodes` stand after their first probes; from now on, what changes is said."""
        self._begun = True
        nodes = list(nodes)
        shards = {node.shard: node for node in nodes}
        # Of one shard the same set answers, whichever node is asked.
        sets = [node.sets[-1] for node in shards.values() if node.sets]
        counts = {
            "nodes": len(nodes),
            "up": sum(node.status(None).state == "up" for node in nodes),
            "shards": len(shards),
            "readable": sum(one.readable for one in sets),
            "primaries": sum(one.primary() is not None for one in sets),
        }
        _logger.info("nodes probed", extra=counts)
        for node in nodes:
            self.node(node)

    def node(self, node: Node) -> None:
        """What is known of `node` may have changed."""
        if not self._begun or self._closed:
            return
        status = node.status(None)
        shard, name = status.shard, status.name
        bad = status.state != "up"
        state = View(status.state, status.reason if bad else None, status.cause if bad else None, bad)
        self._note(Subject("node state", shard, name), state)
        if status.role is not None:
            self._note(Subject("node role", shard, name), View(str(status.role)))
        if not bad:
            behind = View("behind", status.reason, status.cause, bad=True)
            lag = behind if status.cause == "lagging" else View("current")
            self._note(Subject("node lag", shard, name), lag)
        refused = node.login_refused
        login = View("refused", refused, "authentication", bad=True) if refused else View("accepted")
        self._note(Subject("node login", shard, name), login)
        if node.sets:
            self._shard(node)

    def redis(self, link: RedisLink) -> None:
        """Whether Redis is used, or takes writes, may have changed."""
        if self._closed:
            return
        off, refused = not link.on, link.refusal is not None
        use = View("off", link.reason, link.cause, bad=True) if off else View("on")
        self._note(Subject("redis"), use)
        if not off:
            # One that is away refuses nothing.
            writes = View("refused", link.refusal, link.refusal_cause, bad=True) if refused else View("taken")
            self._note(Subject("redis writes"), writes)

    def close(self) -> None:
        """Say nothing more: what ends with the router is no news."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()

    def _shard(self, node: Node) -> None:
        members = node.sets[-1]
        primary = members.primary()
        readable = members.readable
        why = None
        if primary is None or not readable:
            why = "; ".join([_described(one.status(None)) for one in members.nodes[:_NAMED]])
        state = View("readable") if readable else View("unreadable", why, bad=True)
        self._note(Subject("shard state", node.shard), state)
        leads = View(None, why, bad=True) if primary is None else View(primary.config.name)
        self._note(Subject("shard primary", node.shard), leads)

    def _note(self, subject: Subject, view: View) -> None:
        self._write(self._changes.note(subject, view))
        if self._changes.held and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_FLUSH, self._flush)

    def _flush(self) -> None:
        self._timer = None
        self._write(self._changes.due())
        if self._changes.held:
            self._timer = asyncio.get_running_loop().call_later(_FLUSH, self._flush)

    def _write(self, lines: list[Line]) -> None:
        for line in lines:
            fields = dict(line.fields)
            if isinstance(reason := fields.get("reason"), str):
                fields["reason"] = reason[:_REASON_CHARACTERS]
            _logger.log(_LEVELS[line.level], line.event, extra=fields)


def _described(status: NodeStatus) -> str:
    role = f" {status.role}" if status.role else ""
    return f"{status.name} is {status.state}{role}" + (f" ({status.reason})" if status.reason else "")
