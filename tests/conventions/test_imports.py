"""Imports flow one way: a room may use what stands below it, never what stands above."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# From the bottom up; a module belongs to the longest name that begins its own. Rooms of one level do
# not know each other.
LEVELS = [
    ["shard_config.times", "shard_config.dsn"],
    ["shard_config.values", "shard_config.ordering"],
    ["shard_config.hashing", "shard_config.metadata_path", "shard_config.model"],
    ["shard_config.limits", "shard_config.predicate"],
    ["shard_config.template"],
    ["shard_config.partition"],
    ["shard_config.file"],
    ["shard_config"],
    ["router.settings", "router.terminal", "router.client", "router.network", "router.flights"],
    ["router.query"],
    ["router.policy", "router.postgres", "router.freshness"],
    ["router.nodes", "router.models"],
    ["router.schema"],
    ["router.stages"],
    ["router.recall"],
    ["router.documents"],
    ["router.decode"],
    ["router.topology"],
    ["router.logs", "router.serve_config", "router.settings_docs"],
    ["router.http"],
    ["router.model_service"],
    ["router.bulk"],
    ["router.app"],
    # Commands and benches run on a cluster of their own, so they stand above what starts one.
    ["deploy"],
    ["bench"],
    ["router.commands"],
    ["router.cli"],
]
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}


def room(module: str) -> str | None:
    parts = module.split(".")
    for end in range(len(parts), 0, -1):
        name = ".".join(parts[:end])
        if name in LEVEL:
            return name
    return None


def modules() -> list[Path]:
    folders = ("shard_config", "router", "bench", "deploy")
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.split(".")[0] in ("shard_config", "router", "bench", "deploy")}


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_a_module_imports_only_what_stands_below_it(path: Path) -> None:
    own = room(name_of(path))
    if name_of(path) == "router":
        return
    assert own is not None, f"{name_of(path)} stands in no room"
    for name in imports(path):
        other = room(name)
        assert other is not None, f"{name} stands in no room"
        assert other == own or LEVEL[other] < LEVEL[own], f"{own} must not import {other} ({name})"


def test_what_decides_does_not_wait() -> None:
    for path in modules():
        if name_of(path).startswith(("router.query", "router.policy", "shard_config")):
            assert "asyncio" not in path.read_text(), f"{path} is pure and must not know asyncio"


def test_a_running_router_loads_nothing_that_only_commands_show_with() -> None:
    # rich took 3 MB of each worker when the check of tables brought it along.
    code = "import router.app, sys; print({'rich', 'pyarrow', 'bench'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
