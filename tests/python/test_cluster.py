"""A whole cluster of processes on this machine, as `alluvium cluster dev` starts it: write anywhere, read anywhere, kill one."""

import json
import os
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request

import pytest

from conftest import PROGRAM

PATIENCE_S = 60
SHARDS = 4


class DevCluster:
    """`cluster dev` on a folder, until it is stopped."""

    def __init__(self, folder, *arguments):
        self.folder = folder
        command = [PROGRAM, "cluster", "dev", "--data-dir", str(folder), *arguments]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.said = []
        self.is_ready = threading.Event()
        self.readers = [threading.Thread(target=self._read, args=(stream,), daemon=True)
                        for stream in (self.process.stdout, self.process.stderr)]
        for reader in self.readers:
            reader.start()
        assert self.is_ready.wait(PATIENCE_S), "".join(self.said)
        self.look()

    def _read(self, stream):
        for line in stream:
            self.said.append(line)
            if line.startswith("ready in "):
                self.is_ready.set()

    def look(self):
        self.nodes = {n["id"]: n for n in json.loads((self.folder / "cluster.json").read_text())["nodes"]}

    def url(self, node):
        return "http://" + self.nodes[node]["http"]

    def kill(self, node):
        os.kill(self.nodes[node]["pid"], signal.SIGKILL)

    def restart(self, node):
        done = subprocess.run([PROGRAM, "cluster", "dev", "--data-dir", str(self.folder), "--restart", node],
                              capture_output=True, text=True, timeout=PATIENCE_S)
        assert done.returncode == 0, done.stderr
        self.look()

    def ask(self, node, path, body=None):
        """(status, body) of any answer; None where there is none."""
        request = urllib.request.Request(self.url(node) + path, data=body.encode() if body is not None else None)
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return None

    def until(self, what, *request):
        """Asks until the answer is what is waited for."""
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            answer = self.ask(*request)
            if answer and what(answer):
                return answer
            # Nothing tells from outside when a cluster has healed: it is asked again and again.
            time.sleep(0.05)
        raise AssertionError(f"{request} was never answered as expected, last {answer}")

    def count(self, node="query-1", db="default"):
        status, body = self.until(lambda a: a[0] == 200, node, f"/sql?db={db}&format=json", "SELECT count(*) AS n FROM m")
        return json.loads(body)[0]["n"]

    def status(self, node="query-1"):
        return json.loads(self.until(lambda a: a[0] == 200, node, "/cluster/v1/status")[1])

    def stop(self):
        self.process.send_signal(signal.SIGINT)
        code = self.process.wait(PATIENCE_S)
        for reader in self.readers:
            reader.join(PATIENCE_S)
        return code


@pytest.fixture
def cluster(tmp_path):
    one = DevCluster(tmp_path / "c", "--shards", str(SHARDS))
    yield one
    if one.process.poll() is None:
        one.process.send_signal(signal.SIGTERM)
        try:
            one.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            one.process.kill()


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
        again.process.kill()
