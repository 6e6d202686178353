"""A whole cluster of processes on this machine, as `alluvium cluster dev` starts it: write anywhere, read anywhere, kill one."""

import json
import os
import pathlib
import shutil
import subprocess
import threading

import pytest

from dev_cluster import PATIENCE_S, PROGRAM, DevCluster

SHARDS = 4


@pytest.fixture
def cluster(tmp_path):
    one = DevCluster(tmp_path / "c", "--shards", str(SHARDS))
    yield one
    one.abandon()


def write(cluster, node, numbers):
    """Writes points until the node says that they are kept."""
    lines = "\n".join(f"m,device_id=d{n % 50} v={n}i {n}" for n in numbers)
    cluster.until(lambda a: a[0] == 204, node, "/write?db=default", lines)


def test_three_of_each_write_anywhere_read_anywhere_lose_nothing(cluster):
    roles = sorted(n["role"] for n in cluster.nodes.values())
    assert roles == ["ingest"] * 3 + ["query"] * 3 + ["storage"] * 3
    for node in cluster.nodes.values():
        assert os.path.exists(node["log"]) and os.path.isdir(node["data_dir"])
        assert cluster.ask(node["id"], "/ready")[0] == 200

    write(cluster, "ingest-1", range(1, 101))
    for node in ["query-1", "query-3"]:
        assert cluster.count(node) == 100, node

    # The leader of a shard dies while devices write; they send again what was not answered.
    status = cluster.status()
    assert len(status["shards"]) == SHARDS and all(s["leader"] for s in status["shards"])
    victim = status["shards"][0]["leader"]
    written = threading.Event()

    def keep_writing():
        for start in range(101, 1101, 50):
            write(cluster, "ingest-2", range(start, start + 50))
        written.set()

    writer = threading.Thread(target=keep_writing)
    writer.start()
    cluster.kill(victim)
    writer.join(PATIENCE_S)
    assert written.is_set()
    assert cluster.count("query-2") == 1100

    # It stays dead until it is asked for, and then takes part again.
    assert cluster.ask(victim, "/ready") is None
    cluster.restart(victim)
    assert cluster.ask(victim, "/ready")[0] == 200
    write(cluster, "ingest-3", range(1101, 1201))
    assert cluster.count() == 1200

    assert cluster.stop() == 0
    for node in cluster.nodes.values():
        with pytest.raises(ProcessLookupError):
            os.kill(node["pid"], 0)

    # The same folder is the same cluster.
    again = DevCluster(cluster.folder)
    try:
        assert again.count("query-3") == 1200
        assert again.stop() == 0
    finally:
        again.abandon()


def test_a_rolling_restart_under_writes_is_no_error_to_clients_that_retry(cluster):
    write(cluster, "ingest-1", range(1, 101))
    ended, kept, wrong = threading.Event(), set(range(1, 101)), []

    def keep_writing():
        """Sends each body to one node after another until one says that it is kept."""
        start, turn = 101, 0
        while not ended.is_set():
            body = "\n".join(f"m,device_id=d{n % 50} v={n}i {n}" for n in range(start, start + 20))
            answer = cluster.ask(f"ingest-{turn % 3 + 1}", "/write?db=default", body)
            if answer and answer[0] == 204:
                kept.update(range(start, start + 20))
                start += 20
            else:
                turn += 1
                if answer and answer[0] != 503:
                    wrong.append(answer)

    writer = threading.Thread(target=keep_writing)
    writer.start()
    for node in sorted(cluster.nodes):
        before = len(kept)
        cluster.stop_node(node)
        cluster.restart(node)
        cluster.until(lambda _: len(kept) > before, node, "/ready")
    ended.set()
    writer.join(PATIENCE_S)
    assert not wrong, wrong[:3]
    found = [row["v"] for row in cluster.sql("SELECT v FROM m")]
    # The last body may have been kept without its writer being told.
    assert kept <= set(found) and len(found) - len(kept) in (0, 20) and len(found) == len(set(found))
    assert cluster.stop() == 0
    assert cluster.trouble() == []


def test_an_empty_disk_under_an_old_name_is_a_new_replica(cluster):
    for node in ("ingest-1", "ingest-2"):
        start = 1 if node == "ingest-1" else 5001
        for first in range(start, start + 5000, 500):
            write(cluster, node, range(first, first + 500))
    cluster.until(lambda a: a[0] == 200, "query-1", "/sql", "FLUSH")
    before = {node["name"]: node["id"] for node in cluster.status()["nodes"]}
    cluster.stop_node("storage-2")
    shutil.rmtree(cluster.nodes["storage-2"]["data_dir"])
    cluster.restart("storage-2")

    def is_whole():
        """Whether the node of the new disk, and not the old one, has every shard."""
        nodes = [node for node in cluster.status()["nodes"] if node["name"] == "storage-2" and node["state"] == "active"]
        return [n["id"] != before["storage-2"] for n in nodes] == [True] and \
            cluster.applied("storage-2") == cluster.applied("storage-1") == cluster.applied("storage-3") != {}

    def rows_in_files():
        inspected = subprocess.run([PROGRAM, "inspect", "manifest", cluster.nodes["storage-2"]["data_dir"], "--format", "json"],
                                   capture_output=True, text=True, timeout=PATIENCE_S)
        # While a file comes in, a manifest may be between two states.
        return sum(file["rows"] for file in json.loads(inspected.stdout)) if inspected.returncode == 0 else 0

    cluster.wait("the new replicas have everything", is_whole)
    cluster.wait("its files are there", lambda: rows_in_files() == 10_000)
    assert cluster.count() == 10_000
    write(cluster, "ingest-3", range(10_001, 10_101))
    assert cluster.count("query-3") == 10_100
    assert cluster.stop() == 0
    assert cluster.trouble() == []


def test_a_shard_that_lost_its_majority_for_ever_goes_on_with_what_is_left(tmp_path):
    cluster = DevCluster(tmp_path / "c", "--storage", 5, "--ingest", 1, "--query", 1, "--shards", 5)
    try:
        write(cluster, "ingest-1", range(1, 1001))
        applied = lambda node: set(cluster.applied(node).items())
        furthest = lambda: {shard: max(index for node in cluster.of_role("storage") for s, index in applied(node) if s == shard)
                            for node in cluster.of_role("storage") for shard, _ in applied(node)}
        cluster.wait("every replica has everything", lambda: all(
            furthest()[shard] == index for node in cluster.of_role("storage") for shard, index in applied(node)))
        recover = [PROGRAM, "cluster", "recover", "--url", cluster.url("ingest-1")]
        refused = subprocess.run([*recover, "--accept-loss", "0"], capture_output=True, text=True, timeout=PATIENCE_S)
        assert refused.returncode == 1 and "nothing of it is lost" in refused.stderr
        assert subprocess.run([*recover, "0"], capture_output=True, timeout=PATIENCE_S).returncode == 2

        dead = {"storage-1", "storage-2"}
        halves = [s["shard"] for s in cluster.status()["shards"] if len(dead.intersection(s["placed"])) == 2]
        assert halves
        for node in dead:
            cluster.kill(node)
        told = subprocess.run([PROGRAM, "cluster", "status", "--url", cluster.url("ingest-1"), "--format", "jsonl"],
                              capture_output=True, text=True, timeout=PATIENCE_S)
        assert told.returncode == 1 and "shards cannot be written or read" in told.stderr, told.stdout + told.stderr
        rows = [json.loads(line) for line in told.stdout.splitlines()]
        assert {row["node"]: row["leads"] for row in rows if row.get("state") == "does not answer"} == dict.fromkeys(dead, 0)
        states = {row["shard"]: row["state"] for row in rows if "shard" in row}
        assert all("has no majority" in states[shard] for shard in halves), states
        for shard in halves:
            done = subprocess.run([*recover, "--accept-loss", str(shard)], capture_output=True, text=True, timeout=PATIENCE_S)
            assert done.returncode == 0, done.stderr
            assert "storage-1" in done.stdout and "storage-2" in done.stdout and "of routing hashes" in done.stdout, done.stdout
        assert cluster.count() == 1000
        write(cluster, "ingest-1", range(1001, 1101))
        assert cluster.count() == 1100
        cluster.wait("every shard has three replicas again", lambda: all(
            len(s["placed"]) == 3 and sorted(s["placed"]) == sorted(s["replicas"]) and not dead.intersection(s["placed"])
            for s in cluster.status()["shards"]))
        # One that was given up and comes back is refused, and taken in as another node once its folder is empty.
        restart = [PROGRAM, "cluster", "dev", "--data-dir", str(cluster.folder), "--restart", "storage-1"]
        refused = subprocess.run(restart, capture_output=True, text=True, timeout=PATIENCE_S)
        assert refused.returncode == 1, refused
        node = cluster.nodes["storage-1"]
        assert "has given up the node whose data directory this is" in pathlib.Path(node["log"]).read_text()
        assert cluster.count() == 1100
        shutil.rmtree(node["data_dir"])
        cluster.restart("storage-1")
        assert cluster.count() == 1100
    finally:
        cluster.abandon()
