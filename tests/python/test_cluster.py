"""A whole cluster of processes on this machine, as `alluvium cluster dev` starts it: write anywhere, read anywhere, kill one."""

import os
import threading

import pytest

from dev_cluster import PATIENCE_S, DevCluster

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
