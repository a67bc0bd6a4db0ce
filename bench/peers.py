"""Other systems beside pgscatter: each is an adapter, our own or one that an installed package announces.

    [project.entry-points."pgscatter.bench_peers"]
    NAME = "module:function"

The function takes the `World`, whose data set it loads into its system, and is a context manager: its
block gets what to measure, an `ImportedSpec` as a rule. Where the system does not run, it raises `NotHere`
instead, and the report says why.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from importlib.metadata import entry_points
from typing import TypeAlias

from bench import faiss_peer
from bench.errors import NotHere
from bench.targets import TargetSpec
from bench.world import World

__all__ = ["GROUP", "NotHere", "Peer", "installed", "open_peers"]

GROUP = "pgscatter.bench_peers"


Peer: TypeAlias = Callable[[World], AbstractContextManager[TargetSpec]]

_OWN: dict[str, Peer] = {"faiss in the process": faiss_peer.peer}


def installed() -> dict[str, Peer]:
    """Adapters by their names, our own first."""
    return {**_OWN, **{point.name: point.load() for point in entry_points(group=GROUP)}}


def open_peers(
    peers: Mapping[str, Peer], world: World, stack: ExitStack
) -> tuple[dict[str, TargetSpec], dict[str, str]]:
    """What to measure by name, until `stack` closes; and of those that do not run here, why."""
    running: dict[str, TargetSpec] = {}
    absent: dict[str, str] = {}
    for name, peer in peers.items():
        try:
            running[name] = stack.enter_context(peer(world))
        except NotHere as exc:
            absent[name] = str(exc)
    return running, absent
