"""What is used of asyncpg beyond its documentation; a version without it must not be installed."""

from __future__ import annotations

import inspect
import re
from importlib.metadata import version
from pathlib import Path

import asyncpg
import pytest
from asyncpg.prepared_stmt import PreparedStatement
from asyncpg.protocol.protocol import ConnectionSettings, PreparedStatementState

from router.postgres import connection
from router.postgres.connection import ErrorKind, node_error
from router.schema import session

PYPROJECT = (Path(__file__).parents[2] / "pyproject.toml").read_text()


@pytest.mark.parametrize(
    ("ours", "name"),
    [
        (connection.Connection, "get_reset_query"),
        (connection.Connection, "_introspect_types"),
        (connection.Connection, "is_in_transaction"),
        (session.Connection, "_cancel_current_command"),
    ],
)
def test_what_is_overridden_is_there_and_is_called_alike(ours: type, name: str) -> None:
    theirs = inspect.signature(getattr(asyncpg.Connection, name))
    called = [f"_{parameter}" for parameter in list(theirs.parameters)[1:]]
    inspect.signature(getattr(ours, name)).bind(None, *called)
    assert name in vars(ours)


def test_attributes_that_are_read_are_there() -> None:
    assert {"_protocol", "_top_xact"} <= set(asyncpg.Connection.__slots__)
    assert "_state" in PreparedStatement.__slots__
    assert callable(PreparedStatementState.mark_unprepared)
    assert callable(ConnectionSettings.register_data_types)
    assert asyncpg.PostgresError("made by the driver").severity is None
    assert asyncpg.PostgresError("made by the driver").server_source_function is None


def test_errors_of_the_driver_are_told_from_the_servers() -> None:
    assert node_error(asyncpg.InterfaceError("x")).kind is ErrorKind.LOST
    assert issubclass(asyncpg.OutdatedSchemaCacheError, asyncpg.InternalClientError)
    assert issubclass(asyncpg.exceptions._base.DataError, (asyncpg.InterfaceError, ValueError))
    assert node_error(asyncpg.exceptions._base.DataError("x")).kind is ErrorKind.DATA


def test_versions_are_bounded_to_those_that_were_looked_at() -> None:
    least, most = re.findall(r'"asyncpg>=([\d.]+),<([\d.]+)"', PYPROJECT)[0]
    major, minor = version("asyncpg").split(".")[:2]
    assert f"{major}.{minor}" == least
    assert most == f"{major}.{int(minor) + 1}"
