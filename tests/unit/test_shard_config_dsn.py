"""DSNs: which server they mean, and that nothing shows their passwords."""

from __future__ import annotations

import pytest

from shard_config.dsn import Server, complaints, redact, server


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


@pytest.mark.parametrize("hosts", ["h1,h2", "h1:1,h2:2", "h1:1,h2", "[::1]:1,h2:2"])
def test_a_dsn_of_several_hosts_is_told_from_a_malformed_one(hosts: str) -> None:
    (said,) = complaints(f"postgresql://u:secret@{hosts}/db")
    assert said == "a DSN with several hosts; a node is one server, so list each as a node"
    assert "several" not in complaints("postgresql://u:se,cret@h:port/db")[0]


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


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://u:p@h:5432/d",
        "postgresql://u:p%40%23@h/d?sslmode=require",
        "postgresql://u@h/d?sslmode=verify-full&sslrootcert=/ca.pem&sslcert=/c.pem&sslkey=/c.key&sslpassword=x",
        "postgresql://h/d?user=u&passfile=/run/pgpass",
        "postgresql://h/d?sslmode=require&sslnegotiation=direct&ssl_min_protocol_version=TLSv1.2",
        "postgresql:///d?host=/run/postgresql&user=u&target_session_attrs=any",
    ],
)
def test_what_a_dsn_may_say(dsn: str) -> None:
    assert complaints(dsn) == []


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("sslmod=require", "unknown parameter sslmod; did you mean sslmode?"),
        ("search_path=app", "unknown parameter search_path; settings of sessions belong to the role"),
        ("application_name=x", "application_name has no effect here: pgscatter names its sessions itself"),
        ("connect_timeout=3", "connect_timeout has no effect here: `pgscatter serve --connect-timeout`"),
        ("options=-c%20work_mem%3D1GB", "options has no effect here: settings of sessions belong"),
        ("keepalives_idle=5", "keepalives_idle has no effect here"),
        ("channel_binding=require", "channel_binding has no effect here: the driver has none"),
        ("hostaddr=10.0.0.1", "hostaddr has no effect here: give the address as the host"),
        ("target_session_attrs=primary", "target_session_attrs would refuse the node whenever"),
        ("sslnegotiation=fast", "sslnegotiation must be one of postgres, direct"),
        ("sslnegotiation=direct", "sslnegotiation=direct needs sslmode=require, verify-ca or verify-full"),
        ("sslrootcert=/ca.pem", "sslrootcert has no effect under sslmode=prefer; right would be"),
        ("sslmode=disable&sslcert=/c.pem", "sslcert has no effect under sslmode=disable"),
        ("sslmode=require&sslkey=/k.pem", "sslkey and sslpassword have no effect without sslcert=FILE"),
        ("sslmode=verify-full&sslrootcert=system", "sslrootcert=system is not known to the driver"),
        ("ssl_min_protocol_version=SSLv3", "ssl_min_protocol_version must be one of TLSv1, TLSv1.1, TLSv1.2"),
        (
            "ssl_min_protocol_version=TLSv1.3&ssl_max_protocol_version=TLSv1.2",
            "ssl_min_protocol_version is above ssl_max_protocol_version",
        ),
        ("sslmode=require&sslmode=disable", "sslmode stands twice: leave one out"),
        ("sslmode=", "sslmode has no value: leave it out"),
        ("sslmode", "sslmode has no value: leave it out"),
        ("user=other", "user stands before the ? already: leave it out behind it"),
        ("port=5433", "port stands before the ? already"),
        ("dbname=other", "dbname stands before the ? already"),
        ("passfile=/x&password=secret", "password makes passfile void: leave one out"),
        ("service=other", "service="),
    ],
)  # fmt: skip
def test_a_parameter_that_would_not_do_what_it_says_is_a_fault(query: str, says: str) -> None:
    found = complaints(f"postgresql://u:secret@h:5432/d?{query}")
    assert any(complaint.startswith(says) for complaint in found) or says in "; ".join(found), found
    assert not any("secret" in complaint for complaint in found)


@pytest.mark.parametrize(
    ("dsn", "says"),
    [
        ("postgresql://u:p@ss@h/d", "an @ or # in a user or password must be percent-encoded"),
        ("postgresql://u:pass@h/d#x", "an @ or # in a user or password must be percent-encoded"),
        ("postgresql:///d?host=/run/pg&sslmode=require", "sslmode has no effect: a Unix socket has no TLS"),
        ("postgresql:///d?host=/run/pg&sslcert=/c", "sslcert has no effect: a Unix socket has no TLS"),
        ("postgresql://h/d?hunter2=1", "unknown parameter behind the ?;"),
        ("mysql://h/d", "expected a DSN such as postgresql://"),
    ],
)
def test_a_dsn_that_the_driver_would_read_otherwise_is_a_fault(dsn: str, says: str) -> None:
    assert says in "; ".join(complaints(dsn))


def test_every_fault_of_a_dsn_is_told_at_once() -> None:
    assert len(complaints("postgresql://h/d?application_name=x&sslmod=require&connect_timeout=1")) == 3
