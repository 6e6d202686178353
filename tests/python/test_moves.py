"""Shards that move and become two while devices write: nothing is lost, and the system tables tell the truth of it."""

import subprocess
import threading

import pytest

from dev_cluster import PATIENCE_S, DevCluster


@pytest.fixture
def cluster(tmp_path):
    one = DevCluster(tmp_path / "c", "--storage", "4", "--shards", "2")
    yield one
    one.abandon()


class Writer(threading.Thread):
    """Sends one body after another, each until a node says that it is kept."""

    def __init__(self, cluster):
        super().__init__(daemon=True)
        self.cluster, self.ended, self.kept, self.wrong = cluster, threading.Event(), 0, []

    def run(self):
        turn = 0
        while not self.ended.is_set():
            body = "\n".join(f"m,device_id=d{n % 97} v={n}i {n + 1}" for n in range(self.kept, self.kept + 20))
            answer = self.cluster.ask(f"ingest-{turn % 3 + 1}", "/write?db=default", body)
            if answer and answer[0] == 204:
                self.kept += 20
            else:
                turn += 1
                if answer and answer[0] != 503:
                    self.wrong.append(answer)

    def go_on(self):
        """Waits until more was kept after this call."""
        before = self.kept
        self.cluster.wait("writes go on", lambda: self.kept >= before + 40)


class Reader(threading.Thread):
    """Counts again and again: every answer has all that was kept before it was asked for."""

    def __init__(self, cluster, writer):
        super().__init__(daemon=True)
        self.cluster, self.writer, self.asked, self.wrong = cluster, writer, 0, []

    def run(self):
        while not self.writer.ended.is_set():
            kept = self.writer.kept
            answer = self.cluster.ask(f"query-{self.asked % 3 + 1}", "/sql?format=csv", "SELECT count(*), count(DISTINCT v) FROM m", 30)
            self.asked += 1
            if not answer or answer[0] != 200:
                self.wrong.append(answer)
                continue
            rows, different = map(int, answer[1].split()[-1].split(","))
            if rows != different or rows < kept:
                self.wrong.append((kept, rows, different))


def operate(cluster, *command):
    url = cluster.url("query-2")
    done = subprocess.run([cluster.program, "cluster", *command, "--url", url], capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_splits_and_moves_under_load_lose_nothing_and_can_be_watched(cluster):
    writer = Writer(cluster)
    writer.start()
    writer.go_on()
    reader = Reader(cluster, writer)
    reader.start()

    assert "shard 0 has given a part to shard 2" in operate(cluster, "split", "0", "--wait")
    writer.go_on()
    assert "shard 1 has given a part to shard 3" in operate(cluster, "split", "1", "--at", str((1 << 64) - (1 << 62)), "--wait")
    writer.go_on()

    shards = cluster.sql("SELECT shard_id, hash_start, hash_end FROM system.shards ORDER BY hash_start")
    assert [s["shard_id"] for s in shards] == [0, 2, 1, 3]
    assert (shards[0]["hash_start"], shards[-1]["hash_end"]) == (0, (1 << 64) - 1)
    assert all(a["hash_end"] + 1 == b["hash_start"] for a, b in zip(shards, shards[1:]))
    assert shards[3]["hash_start"] == (1 << 64) - (1 << 62)

    # A new half goes to a node that does not hold it, with its history.
    held = next(s for s in cluster.status()["shards"] if s["shard"] == 2)["placed"]
    to = next(name for name in cluster.of_role("storage") if name not in held)
    operate(cluster, "move", "2", to)
    cluster.wait("the shard has moved", lambda: all(
        to in s["replicas"] and set(s["replicas"]) == set(s["placed"]) for s in cluster.status()["shards"] if s["shard"] == 2))
    cluster.wait("the move is done", lambda: not cluster.sql("SELECT * FROM system.moves WHERE state = 'running'"))
    writer.go_on()
    writer.ended.set()
    for thread in (writer, reader):
        thread.join(PATIENCE_S)
    assert reader.asked > 2 and not reader.wrong, reader.wrong[:3]
    assert not writer.wrong, writer.wrong[:3]

    splits = cluster.sql("SELECT shard_id, new_shard_id, state, finished >= started AS timely FROM system.moves WHERE kind = 'split' ORDER BY 1")
    assert splits == [{"shard_id": n, "new_shard_id": n + 2, "state": "done", "timely": True} for n in (0, 1)]
    moved = cluster.sql("SELECT to_nodes FROM system.moves WHERE kind = 'move' AND shard_id = 2")
    assert any(to in line["to_nodes"].split(",") for line in moved)

    def whole():
        rows = cluster.sql("SELECT count(*) AS n, count(DISTINCT v) AS different FROM m")[0]
        # The last body may have been kept without its writer being told.
        return rows["n"] == rows["different"] and rows["n"] - writer.kept in (0, 20)

    assert whole()
    cluster.until(lambda a: a[0] == 200, "query-1", "/sql", "COMPACT")
    assert whole()
    rows = cluster.sql("SELECT sum(rows) AS n FROM system.files")[0]["n"]
    assert rows == cluster.count("query-3"), "after COMPACT each row stands once, in the shard that owns it"
    assert all(f["n"] > 0 for f in cluster.sql("SELECT shard_id, sum(rows) AS n FROM system.files GROUP BY 1"))
    devices = cluster.sql("SELECT count(*) AS devices, sum(rows) AS n FROM system.devices")[0]
    assert devices == {"devices": 97, "n": rows}

    # What cannot be split says so.
    for wrong, says in [(["9"], "no shard 9"), (["0", "--at", "0"], "cannot be split")]:
        refused = subprocess.run([cluster.program, "cluster", "split", *wrong, "--url", cluster.url("query-1")],
                                 capture_output=True, text=True, timeout=PATIENCE_S)
        assert refused.returncode == 1 and says in refused.stderr, refused.stderr

    # The same folder is the same cluster, halves included.
    assert cluster.stop() == 0
    assert cluster.trouble() == []
    again = DevCluster(cluster.folder)
    try:
        assert again.count("query-3") == rows
        assert len(again.sql("SELECT * FROM system.shards")) == 4
        assert again.stop() == 0
    finally:
        again.abandon()
