"""What an error allows, and whose words it is told in."""

from __future__ import annotations

import logging
import socket
import ssl

import asyncpg
import pytest

from router.postgres.connection import ErrorKind, NodeError, _connect_error, node_error

LOST, NONE = "the connection was lost", "no connection to be had"


def server_error(state: str, **fields: str) -> asyncpg.PostgresError:
    return asyncpg.PostgresError.new(
        {"S": "ERROR", "V": "ERROR", "C": state, "M": "server's words", **fields}
    )


@pytest.mark.parametrize(
    ("state", "kind"),
    [
        *[(state, ErrorKind.LOST) for state in ("08006", "57P01", "57P02", "57P05", "25P03", "25P04")],
        *[(state, ErrorKind.CONFLICT) for state in ("40001", "40P01")],
        *[(state, ErrorKind.TRANSIENT) for state in ("40003", "53300", "53200", "55P03", "57014")],
        ("25006", ErrorKind.READ_ONLY),
        *[
            (state, ErrorKind.DATA)
            for state in ("22003", "23505", "23514", "44000", "54000", "P0001", "38000")
        ],
        *[
            (state, ErrorKind.FATAL)
            for state in ("22000", "22P03", "26000", "42P01", "42703", "42704", "0A000", "XX000")
        ],
    ],
)
def test_a_state_allows(state: str, kind: ErrorKind) -> None:
    error = node_error(server_error(state))
    assert error.kind is kind
    assert str(error).startswith("server's words")
    assert error.permanent == (kind in (ErrorKind.DATA, ErrorKind.FATAL))


@pytest.mark.parametrize(
    ("state", "kind"),
    [
        ("53300", ErrorKind.TRANSIENT),
        ("08P01", ErrorKind.LOST),  # PgBouncer's "no more connections allowed (max_client_conn)"
        ("57P03", ErrorKind.UNREACHABLE),
        ("28P01", ErrorKind.FATAL),
        ("3D000", ErrorKind.FATAL),
        ("42501", ErrorKind.FATAL),
    ],
)
def test_only_a_server_that_is_away_is_taken_for_down_when_a_connection_is_refused(
    state: str, kind: ErrorKind
) -> None:
    error = _connect_error(server_error(state), "postgresql://h/d")
    assert (error.kind, error.authentication) == (kind, state == "28P01")


def test_one_refused_row_is_told_from_a_right_that_is_missing() -> None:
    policy = node_error(server_error("42501", R="ExecWithCheckOptions"))
    assert (policy.kind, str(policy)) == (ErrorKind.DATA, "server's words")
    # Of a table, of a sequence, of one whose policies may not be passed over; a pooler tells no function.
    for function in ("aclcheck_error", "nextval_internal", "check_enable_rls", None):
        right = node_error(server_error("42501", **{"R": function} if function else {}))
        assert right.permanent
        assert (right.kind, str(right)) == (
            ErrorKind.DENIED,
            "server's words: grant the router's role this right"
            " (`pgscatter schema check` says which it lacks)",
        )
    for state in ("42P01", "XX000", "OU001", "08000", "25006"):
        assert node_error(server_error(state, R="exec_stmt_raise")).kind is ErrorKind.DATA
    assert node_error(server_error("40001", R="exec_stmt_raise")).kind is ErrorKind.CONFLICT


@pytest.mark.parametrize(
    ("exc", "said"),
    [
        (asyncpg.InterfaceError("cannot perform operation: another operation is in progress"), LOST),
        (
            asyncpg.InternalClientError("cannot switch to state 12; another operation (2) is in progress"),
            LOST,
        ),
        (asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation"), LOST),
        (OSError("Multiple exceptions: [Errno 111] Connect call failed ('127.0.0.1', 1)"), NONE),
        (ConnectionRefusedError(111, "Connect call failed ('127.0.0.1', 1)"), "connection refused"),
        (ConnectionResetError(104, "Connection reset by peer"), "Connection reset by peer"),
        (OSError(113, "Connect call failed ('10.0.0.1', 1)"), "No route to host"),
        (socket.gaierror(-2, "Name or service not known"), "the host's name cannot be resolved"),
        (ssl.SSLError(1, "[SSL: X] x (_ssl.c:1)"), "TLS failed: the handshake broke off"),
        (TimeoutError(), "timed out"),
    ],
)
def test_neither_the_drivers_words_nor_pythons_reach_a_client(
    exc: Exception, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        assert str(node_error(exc)) == said
    logged = [vars(record)["error"] for record in caplog.records]
    assert logged == ([repr(exc)] if said in (LOST, NONE) else [])


def test_a_value_that_cannot_be_sent_is_neither_told_nor_logged(caplog: pytest.LogCaptureFixture) -> None:
    error = node_error(asyncpg.exceptions._base.DataError("invalid input for query argument $1: 'secret'"))
    assert (error.kind, "secret" in str(error) + caplog.text) == (ErrorKind.DATA, False)


@pytest.mark.parametrize("kind", ErrorKind)
def test_every_kind_of_error_has_a_cause_that_anybody_may_read(kind: ErrorKind) -> None:
    """One without would end the task that answers a search, which would then wait for its deadline."""
    assert NodeError(kind, "x").cause
