"""`alluvium cluster dev` on a folder: three of each kind of node as processes of this machine.

For tests (`test_cluster.py`) and for the long runs (`torture.py`, `measure.py`).
"""

import http.client
import json
import os
import pathlib
import re
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request

PROGRAM = os.environ.get("ALLUVIUM", "target/debug/alluvium")
PATIENCE_S = 60
# What no node may ever say: its own word for trouble that is nobody's doing, and Rust's for a mistake of ours.
TROUBLE = re.compile(r"\bERROR\b|panicked at|\"level\":\"ERROR\"")
COLOURS = re.compile(r"\x1b\[[0-9;]*m")


class DevCluster:
    """`cluster dev` on a folder, until it is stopped."""

    def __init__(self, folder, *arguments, program=PROGRAM):
        self.folder = pathlib.Path(folder)
        self.program = program
        command = [program, "cluster", "dev", "--data-dir", str(folder), *map(str, arguments)]
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

    def of_role(self, role):
        return sorted(name for name, node in self.nodes.items() if node["role"] == role)

    def kill(self, node):
        os.kill(self.nodes[node]["pid"], signal.SIGKILL)

    def stop_node(self, node):
        """Tells one node to end, as Kubernetes would, and waits until it has."""
        told = sum(f"{node} has stopped" in line for line in list(self.said))
        os.kill(self.nodes[node]["pid"], signal.SIGTERM)
        end = time.monotonic() + PATIENCE_S
        while sum(f"{node} has stopped" in line for line in list(self.said)) == told:
            assert time.monotonic() < end, f"{node} does not stop"
            time.sleep(0.01)

    def restart(self, node):
        done = subprocess.run([self.program, "cluster", "dev", "--data-dir", str(self.folder), "--restart", node],
                              capture_output=True, text=True, timeout=PATIENCE_S)
        assert done.returncode == 0, done.stderr
        self.look()

    def ask(self, node, path, body=None, timeout=10):
        """(status, body) of any answer; None where there is none."""
        request = urllib.request.Request(self.url(node) + path, data=body.encode() if body is not None else None)
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except (urllib.error.URLError, ConnectionError, TimeoutError, http.client.HTTPException):
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

    def sql(self, sql, node="query-1", db="default"):
        """The rows of a query, asked until it is answered."""
        return json.loads(self.until(lambda a: a[0] == 200, node, f"/sql?db={db}&format=json", sql)[1])

    def count(self, node="query-1", db="default"):
        return self.sql("SELECT count(*) AS n FROM m", node, db)[0]["n"]

    def status(self, node="query-1"):
        return json.loads(self.until(lambda a: a[0] == 200, node, "/cluster/v1/status")[1])

    def applied(self, node):
        """The last entry that each of a node's replicas has applied, by shard."""
        answer = self.ask(node, "/metrics")
        lines = answer[1].splitlines() if answer else []
        return {line.split(" ")[0]: float(line.split(" ")[1]) for line in lines if line.startswith("alluvium_shard_applied_index{")}

    def wait(self, what, holds):
        """Looks again and again until something holds."""
        end = time.monotonic() + PATIENCE_S
        while not holds():
            assert time.monotonic() < end, f"waited in vain: {what}"
            time.sleep(0.05)

    def trouble(self):
        """What nodes have said that none may say: (node, line)."""
        found = []
        for name, node in self.nodes.items():
            with open(node["log"], errors="replace") as log:
                found += [(name, COLOURS.sub("", line).rstrip()) for line in log if TROUBLE.search(COLOURS.sub("", line))]
        return found

    def stop(self):
        self.process.send_signal(signal.SIGINT)
        code = self.process.wait(PATIENCE_S)
        for reader in self.readers:
            reader.join(PATIENCE_S)
        return code

    def abandon(self):
        """Ends it however it is."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
