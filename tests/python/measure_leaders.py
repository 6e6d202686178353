#!/usr/bin/env python3
"""Times what clients see of leaders that die, hand over, and are restarted one node after the other.

    tests/python/measure_leaders.py                    50 kills, 30 hand-overs, one rolling restart of all nine nodes
    tests/python/measure_leaders.py --kills 5 --hand-overs 0 --rolling 0

It starts `alluvium cluster dev` with one shard led by each storage node. For each shard there is one client that writes
a line at a time, one that asks for a device's rows, and one that asks the same with `consistency=stale`; each waits for
its answer, waits a little, and goes on. A client that is refused (503) or cut off asks the next node at once, as client
libraries do; any other answer is an error and is counted.

    resume   from the kill until the first answer to a request that was sent after it
    gap      the longest that one request took, with its retries, from the event until all is as it was before

What is random follows `--seed`, which is printed. Ends with 1 if there was an error, or a node's log has one. The
figures are of use only while nothing else runs.
"""

import argparse
import http.client
import json
import pathlib
import random
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time

from dev_cluster import PATIENCE_S, PROGRAM, DevCluster

SHARDS = 3
WRITE_EVERY_S = 0.02
ASK_EVERY_S = 0.05
REQUEST_TIMEOUT_S = 10
# After an event the clients are watched for so long beyond it, so that its echoes are seen too.
WATCH_ON_S = 0.5


class Client(threading.Thread):
    """Sends one request after another, and takes note of when each was answered."""

    def __init__(self, kind, shard, cluster, role, path, body, every):
        super().__init__(daemon=True)
        self.kind, self.shard, self.cluster, self.path, self.body, self.every = kind, shard, cluster, path, body, every
        self.nodes = cluster.of_role(role)
        self.answers = []
        self.errors = []
        self.retries = 0
        self.ended = threading.Event()

    def run(self):
        connection, turn, number = None, self.shard, 0
        while not self.ended.wait(self.every):
            number += 1
            body = self.body(number)
            sent = time.monotonic()
            while not self.ended.is_set():
                try:
                    if connection is None:
                        host = self.cluster.nodes[self.nodes[turn % len(self.nodes)]]["http"]
                        connection = http.client.HTTPConnection(host, timeout=REQUEST_TIMEOUT_S)
                    connection.request("POST", self.path, body)
                    response = connection.getresponse()
                    text = response.read()
                    if response.status in (200, 204):
                        self.answers.append((sent, time.monotonic()))
                        break
                    if response.status != 503:
                        self.errors.append(f"{self.kind} of shard {self.shard}: {response.status} {text.decode()}")
                except (OSError, http.client.HTTPException):
                    pass
                self.retries += 1
                turn += 1
                connection.close()
                connection = None
                time.sleep(0.005)

    def resumed(self, event):
        """How long after an event the first request that was sent after it was answered; None while there is none."""
        return next((answered - event for sent, answered in list(self.answers)[-2000:] if sent > event), None)

    def gap(self, since, until):
        """The longest request that was under way in a span of time."""
        return max((answered - sent for sent, answered in self.answers if answered > since and sent < until), default=0.0)


def quantile(values, q):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]


class Figures:
    """Spans of time by name, in seconds."""

    def __init__(self):
        self.spans = {}

    def add(self, name, seconds):
        self.spans.setdefault(name, []).append(seconds)

    def summary(self):
        of = lambda v: {"runs": len(v), "median": quantile(v, 0.5), "p99": quantile(v, 0.99), "least": min(v), "longest": max(v)}
        return {name: of(values) for name, values in self.spans.items()}

    def show(self):
        print(f"{'milliseconds':58} {'runs':>5} {'least':>6} {'median':>6} {'p99':>6} {'longest':>7}")
        for name, f in self.summary().items():
            print(f"{name:58} {f['runs']:5} " + " ".join(f"{1000 * f[k]:6.0f}" for k in ("least", "median", "p99", "longest")))


class Measured:
    """A cluster with its clients."""

    def __init__(self, folder, given):
        self.cluster = DevCluster(folder, "--shards", SHARDS, program=given.program)
        self.program = given.program
        self.rng = random.Random(given.seed)
        self.figures = Figures()
        self.cluster.until(lambda a: a[0] == 204, "ingest-1", "/write?db=default", "".join(f"m,device_id=d{i} v=0i 1\n" for i in range(50)))
        self.clients = []
        for shard, device in self.device_of_each_shard().items():
            line = lambda number, device=device: f"m,device_id={device} v={number}i {number}".encode()
            sql = f"SELECT count(*) AS n FROM m WHERE device_id = '{device}'".encode()
            ask = lambda _number, sql=sql: sql
            self.clients += [
                Client("write", shard, self.cluster, "ingest", "/write?db=default", line, WRITE_EVERY_S),
                Client("read", shard, self.cluster, "query", "/sql?format=json", ask, ASK_EVERY_S),
                Client("stale read", shard, self.cluster, "query", "/sql?format=json&consistency=stale", ask, ASK_EVERY_S),
            ]
        for client in self.clients:
            client.start()

    def device_of_each_shard(self):
        found = {}
        for i in range(50):
            plan = json.dumps(self.cluster.sql(f"EXPLAIN SELECT v FROM m WHERE device_id = 'd{i}'"))
            shards = set(re.findall(r"shard[s=: ]+\[?(\d+)", plan))
            assert len(shards) == 1, plan
            found.setdefault(int(shards.pop()), f"d{i}")
        assert len(found) == SHARDS, found
        return found

    def leaders(self):
        answer = self.cluster.ask("query-1", "/cluster/v1/status")
        if not answer or answer[0] != 200:
            return {}
        return {shard["shard"]: shard["leader"] for shard in json.loads(answer[1])["shards"]}

    def wait_until_spread(self):
        """Returns the leaders when each storage node leads a shard again and nobody is about to hand over."""
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            leaders = self.leaders()
            if len(set(leaders.values())) == SHARDS and None not in leaders.values():
                return leaders
            time.sleep(0.1)
        raise AssertionError(f"the shards' leaders do not spread: {leaders}")

    def gaps(self, name, since, shards):
        until = time.monotonic()
        for kind in ("write", "read", "stale read"):
            self.figures.add(f"{name}: {kind}s", max(c.gap(since, until) for c in self.clients if c.kind == kind and c.shard in shards))

    def kill_a_leader(self):
        leaders = self.wait_until_spread()
        victim = self.rng.choice(sorted(set(leaders.values())))
        led = {shard for shard, leader in leaders.items() if leader == victim}
        time.sleep(self.rng.uniform(0, 0.2))
        self.cluster.kill(victim)
        event = time.monotonic()
        affected = [client for client in self.clients if client.shard in led]
        while any(client.resumed(event) is None for client in affected):
            assert time.monotonic() < event + PATIENCE_S, "it never resumes"
            time.sleep(0.01)
        time.sleep(WATCH_ON_S)
        for client in affected:
            self.figures.add(f"leader killed, its shard: until the next {client.kind}", client.resumed(event))
        self.gaps("leader killed, other shards: longest of", event, set(leaders) - led)
        back = time.monotonic()
        self.cluster.restart(victim)
        self.wait_until_spread()
        time.sleep(WATCH_ON_S)
        self.gaps("it comes back and leads again, all shards: longest of", back, set(leaders))

    def hand_over(self):
        leaders = self.wait_until_spread()
        node = self.rng.choice(sorted(set(leaders.values())))
        event = time.monotonic()
        done = subprocess.run([self.program, "cluster", "hand-over", "--url", self.cluster.url(node)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        self.wait_until_spread()
        time.sleep(WATCH_ON_S)
        self.gaps("hand-over and back, all shards: longest of", event, set(leaders))

    def rolling_restart(self):
        for node in sorted(self.cluster.nodes):
            leaders = self.wait_until_spread()
            event = time.monotonic()
            self.cluster.stop_node(node)
            self.cluster.restart(node)
            time.sleep(WATCH_ON_S)
            self.gaps(f"{self.cluster.nodes[node]['role']} node restarted, all shards: longest of", event, set(leaders))

    def idle(self, seconds):
        event = time.monotonic()
        time.sleep(seconds)
        self.gaps(f"nothing happens for {seconds} s: longest of", event, set(range(SHARDS)))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", default=PROGRAM, help="the alluvium to run [default: $ALLUVIUM, else %(default)s]")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32), help="[default: a new one]")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--hand-overs", type=int, default=30)
    parser.add_argument("--rolling", type=int, default=1, help="rolling restarts [default: %(default)s]")
    parser.add_argument("--report", type=pathlib.Path, help="write all figures to a file, as JSON")
    parser.add_argument("--keep", action="store_true", help="keep the folder with the logs")
    given = parser.parse_args()
    folder = pathlib.Path(tempfile.mkdtemp(prefix="alluvium-leaders-"))
    print(f"seed {given.seed}, in {folder}", flush=True)
    measured = Measured(folder / "cluster", given)
    wrong = []
    try:
        measured.wait_until_spread()
        measured.idle(5)
        for _ in range(given.kills):
            measured.kill_a_leader()
        for _ in range(given.hand_overs):
            measured.hand_over()
        for _ in range(given.rolling):
            measured.rolling_restart()
        for client in measured.clients:
            client.ended.set()
        for client in measured.clients:
            client.join(REQUEST_TIMEOUT_S)
            wrong += client.errors
        code = measured.cluster.stop()
        if code != 0:
            wrong.append(f"cluster dev ended with {code}")
    finally:
        measured.cluster.abandon()
    wrong += [f"{node}: {line}" for node, line in measured.cluster.trouble()]
    measured.figures.show()
    print(f"{sum(len(c.answers) for c in measured.clients)} requests, {sum(c.retries for c in measured.clients)} sent again, {len(wrong)} errors")
    for what in wrong[:20]:
        print("WRONG", re.sub(r"\s+", " ", what))
    if given.report:
        given.report.write_text(json.dumps({"seed": given.seed, "wrong": wrong, "spans": measured.figures.spans}, indent=1))
    if not given.keep and not wrong:
        shutil.rmtree(folder)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
