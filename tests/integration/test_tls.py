"""TLS to a node, and the files that its DSN names: each is checked, and named where it is at fault.

The embedded servers speak no TLS, so a proxy ends it before one.
"""

from __future__ import annotations

import asyncio
import select
import shutil
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from deploy.local import Cluster
from router.postgres.connection import ErrorKind, NodeError, open_connection
from router.postgres.dsn_files import file_complaints
from tests.integration.apps import collection, pgscatter, write_map
from tests.integration.worlds import execute

CERTIFICATES = Path(__file__).parents[1] / "tls"
_SSL_REQUEST = bytes.fromhex("0000000804d2162f")


@pytest.fixture(scope="module")
def plain() -> Iterator[Cluster]:
    with Cluster.temporary(shards=1, replicas=0, fsync=False) as running:
        asyncio.run(execute(running.nodes[0].dsn, "CREATE EXTENSION vector"))
        yield running


@contextmanager
def speaking_tls(cluster: Cluster, certificate: str, *, ask_client: bool = False) -> Iterator[int]:
    """The port of a proxy that shows `certificate`, and has clients show theirs if it is to."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATES / certificate)
    if ask_client:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(CERTIFICATES / "ca.pem")
    parts = urlsplit(cluster.nodes[0].dsn)
    threads: list[threading.Thread] = []

    def serve(plain: socket.socket) -> None:
        with plain, suppress(OSError):
            assert plain.recv(8, socket.MSG_WAITALL) == _SSL_REQUEST
            plain.sendall(b"S")
            with (
                context.wrap_socket(plain, server_side=True) as client,
                socket.create_connection((str(parts.hostname), parts.port or 5432)) as server,
            ):
                while True:
                    ready = [client] if client.pending() else select.select([client, server], [], [])[0]
                    for one, other in ((client, server), (server, client)):
                        if one in ready:
                            data = one.recv(65536)
                            if not data:
                                return
                            other.sendall(data)

    def accept() -> None:
        with suppress(OSError):
            while True:
                thread = threading.Thread(target=serve, args=[listener.accept()[0]])
                threads.append(thread)
                thread.start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        accepting = threading.Thread(target=accept)
        accepting.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            for thread in (accepting, *threads):
                thread.join(10)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A copy of the certificates, with a key that only its owner reads."""
    folder = tmp_path / "tls"
    shutil.copytree(CERTIFICATES, folder)
    (folder / "client.key").chmod(0o600)
    return folder


async def opened(port: int, query: str) -> None:
    dsn = f"postgresql://postgres:secret@localhost:{port}/postgres?{query}"
    (await open_connection(dsn, connect_timeout=5, statement_timeout=5)).terminate()


async def test_a_certificate_that_the_authority_vouches_for_is_taken(plain: Cluster, files: Path) -> None:
    with speaking_tls(plain, "server.pem", ask_client=True) as port:
        own = f"sslcert={files}/client.pem&sslkey={files}/client.key"
        await opened(port, f"sslmode=verify-full&sslrootcert={files}/ca.pem&{own}")
        await opened(port, f"sslmode=require&{own}")


@pytest.mark.parametrize(
    ("certificate", "authority", "says"),
    [
        ("expired.pem", "ca.pem", "certificate has expired"),
        ("elsewhere.pem", "ca.pem", "Hostname mismatch, certificate is not valid for 'localhost'"),
        ("server.pem", "other.pem", "unable to get local issuer certificate"),
    ],
)
async def test_a_certificate_that_is_refused_is_told_with_the_authoritys_file_and_why(
    plain: Cluster, files: Path, certificate: str, authority: str, says: str
) -> None:
    with speaking_tls(plain, certificate) as port:
        with pytest.raises(NodeError) as caught:
            await opened(port, f"sslmode=verify-full&sslrootcert={files}/{authority}")
    assert caught.value.kind is ErrorKind.FATAL
    assert f"by sslrootcert={files}/{authority}, the server's certificate is refused: {says}" in str(
        caught.value
    )
    assert "secret" not in str(caught.value)


async def test_a_clients_certificate_that_has_expired_is_named(plain: Cluster, files: Path) -> None:
    (files / "expired.pem").chmod(0o600)
    query = f"sslmode=verify-full&sslrootcert={files}/ca.pem&sslcert={files}/expired.pem"
    with speaking_tls(plain, "server.pem", ask_client=True) as port, pytest.raises(NodeError) as caught:
        await opened(port, query)
    said = f"sslcert={files}/expired.pem: the certificate has expired, on Jan  2 00:00:00 2020 GMT"
    assert (caught.value.kind, str(caught.value)) == (ErrorKind.FATAL, said)


def spoilt(files: Path, how: str) -> tuple[str, str]:
    """Files at fault: the query that names them, and what is said."""
    root, cert, key = (f"{files}/{name}" for name in ("ca.pem", "client.pem", "client.key"))
    if how == "a missing authority":
        return f"sslrootcert={files}/none.pem", f"sslrootcert={files}/none.pem: No such file or directory"
    if how == "an authority that is a folder":
        return f"sslrootcert={files}", f"sslrootcert={files}: Is a directory"
    if how == "no certificate":
        return f"sslrootcert={files}/README.md", f"sslrootcert={files}/README.md: it holds no certificates"
    if how == "a missing key":
        return f"sslrootcert={root}&sslcert={cert}&sslkey={key}.old", f"sslkey={key}.old: No such file"
    if how == "a key that others may read":
        Path(key).chmod(0o644)
        return (
            f"sslrootcert={root}&sslcert={cert}&sslkey={key}",
            f"sslkey={key}: others than its owner may read",
        )
    if how == "another key":
        shutil.copy(files / "server.pem", files / "another.key")
        (files / "another.key").chmod(0o600)
        return (
            f"sslrootcert={root}&sslcert={cert}&sslkey={files}/another.key",
            f"sslcert={cert}: sslkey={files}/another.key is that of another certificate",
        )
    if how in ("a locked key", "a key with another password"):
        locked = files / "locked.key"
        locked.chmod(0o600)
        given = how == "a key with another password"
        return (
            f"sslrootcert={root}&sslcert={cert}&sslkey={locked}{'&sslpassword=wrong' * given}",
            f"sslcert={cert}: sslkey={locked} is encrypted, and "
            + ("sslpassword does not open it" if given else "there is no sslpassword"),
        )
    if how == "passwords that a group may read":
        (files / "pgpass").write_text("*:*:*:*:secret\n")
        (files / "pgpass").chmod(0o640)  # which a key of root's may have
        return f"passfile={files}/pgpass", f"passfile={files}/pgpass: others than its owner may read"
    if how == "an authority that has expired":
        old = files / "expired-authority.pem"
        (files / "both.pem").write_text(old.read_text() + Path(root).read_text())
        assert not file_complaints(f"postgresql://u@h/d?sslmode=verify-full&sslrootcert={files}/both.pem")
        return f"sslrootcert={old}", f"sslrootcert={old}: what is in it has expired, on Jan  2 00:00:00 2020"
    assert how == "a missing file of passwords"
    return (
        f"passfile={files}/pgpass&sslrootcert={root}",
        f"passfile={files}/pgpass: No such file or directory",
    )


SPOILT = [
    "a missing authority",
    "an authority that is a folder",
    "no certificate",
    "a missing key",
    "a key that others may read",
    "another key",
    "an authority that has expired",
    "a locked key",
    "a key with another password",
    "passwords that a group may read",
    "a missing file of passwords",
]


@pytest.mark.parametrize("how", SPOILT)
def test_a_file_at_fault_is_named_with_what_is_wrong(files: Path, how: str) -> None:
    query, says = spoilt(files, how)
    (complaint,) = file_complaints(f"postgresql://u@h/d?sslmode=verify-full&{query}")
    assert complaint.startswith(says)


@pytest.mark.parametrize("how", ["a missing authority", "no certificate", "a missing key", "another key"])
async def test_the_reason_of_a_node_names_the_file(plain: Cluster, files: Path, how: str) -> None:
    query, says = spoilt(files, how)
    with pytest.raises(NodeError) as caught:
        await opened(plain.nodes[0].port, f"sslmode=verify-full&{query}")
    assert (caught.value.kind, str(caught.value).startswith(says)) == (ErrorKind.FATAL, True)


def test_a_map_with_a_missing_certificate_is_valid_with_a_warning_and_not_served(
    plain: Cluster, tmp_path: Path
) -> None:
    shards = {"strategy": "hash", "key": "id", "buckets": 16, "placement": {"s0": ["0-15"]}}
    path = write_map(plain, tmp_path / "map.yaml", {"docs": collection(sharding=shards)})
    text = path.read_text()
    dsn = plain.nodes[0].dsn
    assert dsn in text
    path.write_text(text.replace(dsn, f"{dsn}?sslmode=verify-full&sslrootcert={tmp_path}/none.pem"))
    said = f"shards.s0.nodes[0].dsn: sslrootcert={tmp_path}/none.pem: No such file or directory"
    lines = path.read_text().splitlines()
    line = next(number for number, one in enumerate(lines, 1) if "dsn:" in one)
    place = f"{path}:{line}:{lines[line - 1].index('dsn:') + 1}"
    validated = pgscatter("map", "validate", path)
    assert (validated.stderr, "valid; version" in validated.stdout) == (f"{place}: warning: {said}\n", True)
    served = pgscatter("serve", "--map", path, "--port", 0, check=False)
    assert (served.returncode, served.stderr) == (1, f"{place}: {said}\n")
