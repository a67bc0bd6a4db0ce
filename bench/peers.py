"""Other systems beside pgscatter: each is an adapter, a function that an installed package announces.

    [project.entry-points."pgscatter.bench_peers"]
    NAME = "module:function"

The function takes the `World`, whose data set it loads into its system, and is a context manager: its
block gets what to measure, an `ImportedSpec` as a rule, or None where the system does not run here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from importlib.metadata import entry_points
from typing import TypeAlias

from bench.targets import TargetSpec
from bench.world import World

__all__ = ["GROUP", "Peer", "installed", "open_peers"]

GROUP = "pgscatter.bench_peers"

Peer: TypeAlias = Callable[[World], AbstractContextManager[TargetSpec | None]]


def installed() -> dict[str, Peer]:
    """Adapters by their names."""
    return {point.name: point.load() for point in entry_points(group=GROUP)}


def open_peers(
    peers: Mapping[str, Peer], world: World, stack: ExitStack
) -> tuple[dict[str, TargetSpec], list[str]]:
    """What to measure by name, until `stack` closes, and the names of those that do not run here."""
    opened = {name: stack.enter_context(peer(world)) for name, peer in peers.items()}
    running = {name: spec for name, spec in opened.items() if spec is not None}
    return running, [name for name in opened if name not in running]
