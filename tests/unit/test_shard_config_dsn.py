"""DSNs: which server they mean, and that nothing shows their passwords."""

from __future__ import annotations

import pytest

from shard_config.dsn import Server, redact, server


@pytest.mark.parametrize(
    ("dsn", "expected"),
    [
        ("postgresql://u:p@Host:6543/db", Server("host", 6543, "db")),
        ("postgres://u@host", Server("host", 5432, "u")),
        ("postgresql://host/", Server("host", 5432, "")),
        ("postgresql://u:p%40%2F@[::1]:1/d%20b", Server("::1", 1, "d b")),
        ("postgresql:///db?host=/run/pg&port=5433&user=x", Server("/run/pg", 5433, "db")),
        ("postgresql://%2Frun%2Fpg/db", Server("/run/pg", 5432, "db")),
        ("postgresql://h?dbname=x", Server("h", 5432, "x")),
        ("postgresql://u:p@ss@host/db", Server("host", 5432, "db")),
        ("postgresql://h/db?sslmode=require", Server("h", 5432, "db")),
        ("postgresql://h/db?sslmode=verify-full&sslrootcert=/etc/ca.pem", Server("h", 5432, "db")),
    ],
)
def test_a_dsn_names_a_server(dsn: str, expected: Server) -> None:
    assert server(dsn) == expected


@pytest.mark.parametrize(
    "dsn",
    [
        "",
        "host=h dbname=d",
        "mysql://h/d",
        "postgresql://",
        "postgresql:///db",
        "postgresql://h1,h2/db",
        "postgresql://h:0/db",
        "postgresql://h:99999/db",
        "postgresql://h:port/db",
        "postgresql://u:p/w@h/db",
        "postgresql://[::1/db",
        "postgresql://h/db?port=x",
        "postgresql://h/db?port=70000",
    ],
)
def test_a_dsn_that_names_no_server_is_refused(dsn: str) -> None:
    with pytest.raises(ValueError, match=r"DSN|port"):
        server(dsn)


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("service=other", "service="),
        ("sslmode=maybe", "sslmode must be one of disable, allow, prefer, require, verify-ca, verify-full"),
        ("sslmode=verify-full", "sslmode=verify-full needs sslrootcert=FILE"),
        ("sslmode=verify-ca&sslcert=/etc/me.pem", "sslmode=verify-ca needs sslrootcert=FILE"),
    ],
)
def test_a_dsn_that_would_need_files_the_map_does_not_name_is_refused(query: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        server(f"postgresql://u:secret@h/db?{query}")


@pytest.mark.parametrize(
    ("dsn", "shown"),
    [
        ("postgresql://u:secret@h:5432/d", "postgresql://u:***@h:5432/d"),
        ("postgresql://u:se:cr@et@h/d", "postgresql://u:***@h/d"),
        ("postgresql://u:se/cr?et#x y@h/d", "postgresql://u:***@h/d"),
        ("postgresql://u:secret", "postgresql://u:***"),
        ("postgresql://:secret@h/d", "postgresql://:***@h/d"),
        ("postgresql://h/d?user=u&password=secret&sslmode=require", "postgresql://h/d?user=u&password=***&sslmode=require"),
        ("postgresql://h/d?sslpassword=secret", "postgresql://h/d?sslpassword=***"),
        ("host=h password='se cret' user=u", "host=h password=*** user=u"),
        ("postgresql://u@h:5432/d", "postgresql://u@h:5432/d"),
        ("postgresql://h:5432/d", "postgresql://h:5432/d"),
        ("postgresql://h:5432", "postgresql://h:5432"),
    ],
)  # fmt: skip
def test_a_dsn_is_shown_without_its_password(dsn: str, shown: str) -> None:
    assert redact(dsn) == shown
