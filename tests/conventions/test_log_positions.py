"""Timelines and log positions are asked for by one SQL text, so that all mean the same by them."""

from __future__ import annotations

from tests.conventions.test_imports import modules, name_of

FUNCTIONS = ("pg_current_wal_", "pg_last_wal_", "pg_walfile_name")


def test_one_module_knows_how_postgresql_tells_positions() -> None:
    asking = {
        name_of(path)
        for path in modules()
        if name_of(path).startswith("router.") and any(name in path.read_text() for name in FUNCTIONS)
    }
    assert asking == {"router.postgres.wal"}
