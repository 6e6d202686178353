#!/usr/bin/env python3
"""Kills nodes of a real cluster at random while a fleet writes, and checks every point afterwards.

    tests/python/torture.py                            5 minutes, a storage node killed with -9 every 10 s, 3 million points
    tests/python/torture.py --victims ingest,query     the same with the nodes that keep nothing
    tests/python/torture.py --victims storage,ingest,query --stop 0.3 --late 2 --duplicate 2 --offline 5
    tests/python/torture.py --storage 4 --move 4 --split 40 --replicas 1   shards move and are split meanwhile
    tests/python/torture.py --short                    half a minute, for a look

It starts `alluvium cluster dev` in a fresh folder, lets `alluvium simulate --verify` write to all ingest nodes, kills a
node every so often and starts it again, and meanwhile asks for the number of rows, which may never fall and must be
every row that was acknowledged at the end. What is random follows `--seed`, which is printed. It ends with 0 if

- the simulation ended with 0: nothing lost, invented, altered or doubled, nothing refused, no outcome unknown;
- no count of rows ever fell, and no question was answered with an error that is not `try again`;
- every node came back each time, and no log holds an error or a panic;
- the cluster stopped cleanly, and `alluvium doctor` finds no damage in any storage node's folder.

The folder is removed if all that holds, and kept, with all logs in it, if not.
"""

import argparse
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

KINDS = ["phone", "watch"]
ASK_EVERY_S = 0.5
# A question may wait for several elections; a client's patience, not the server's promise.
ANSWER_WITHIN_S = 30
READ_BACK_WITHIN_S = 300


def options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--program", default=PROGRAM, help="the alluvium to run [default: $ALLUVIUM, else %(default)s]")
    add("--seed", type=int, default=random.SystemRandom().randrange(1 << 32), help="[default: a new one]")
    add("--victims", default="storage", help="roles whose nodes are killed, with commas between [default: %(default)s]")
    add("--every", type=float, default=10, metavar="S", help="seconds from kill to kill [default: %(default)s]")
    add("--down", type=float, default=3, metavar="S", help="a node stays dead for 0 to S seconds [default: %(default)s]")
    add("--stop", type=float, default=0, metavar="SHARE", help="of the kills, so many are clean stops (SIGTERM) [default: 0]")
    add("--devices", type=int, default=10_000)
    add("--points", type=int, default=3_000_000)
    add("--rate", type=int, default=10_000, help="points per second [default: %(default)s]; with --points it sets how long it takes")
    add("--connections", type=int, default=4)
    add("--batch", type=int, default=500, help="lines per request [default: %(default)s]")
    for share in ("late", "duplicate", "offline"):
        add(f"--{share}", type=float, default=0, metavar="PCT", help="as in 'alluvium simulate'")
    add("--shards", type=int, default=6)
    add("--storage", type=int, default=3, help="storage nodes [default: %(default)s]")
    add("--replicas", type=int, default=3, help="replicas of each shard [default: %(default)s]; with 1 a dead node's rows wait for it")
    add("--move", type=float, metavar="S", help="a shard is moved to another storage node every S seconds")
    add("--split", type=float, metavar="S", help="a shard is split every S seconds")
    add("--flush-bytes", default="4MiB", help="small, so that there are many flushes and compactions [default: %(default)s]")
    add("--folder", type=pathlib.Path, help="a folder for it, which must not be there [default: one in the system's place]")
    add("--short", action="store_true", help="150,000 points at 5,000 per second, a kill every 5 s")
    given = parser.parse_args()
    if given.short:
        given.points, given.rate, given.every, given.down = 150_000, 5_000, 5, 2
    return given


class Asker(threading.Thread):
    """Asks one query node after another how many rows there are."""

    def __init__(self, cluster, rng):
        super().__init__(daemon=True)
        self.cluster, self.rng = cluster, rng
        self.ended = threading.Event()
        self.asked = self.most = 0
        self.longest = 0.0
        self.began = time.monotonic()
        self.wrong = []

    def note(self, what):
        self.wrong.append(f"at {time.monotonic() - self.began:.1f} s: {what}")

    def run(self):
        sql = " UNION ALL ".join(f"SELECT count(*) AS n FROM {kind}" for kind in KINDS)
        nodes = self.cluster.of_role("query")
        there = False
        while not self.ended.wait(ASK_EVERY_S):
            started = time.monotonic()
            while True:
                answer = self.cluster.ask(self.rng.choice(nodes), "/sql?format=json", sql, ANSWER_WITHIN_S)
                if answer and answer[0] == 200:
                    break
                missing = answer and answer[0] == 400 and not there and "not found" in answer[1]
                if answer and answer[0] != 503 and not missing:
                    self.note(f"a question was answered with {answer}")
                if missing or self.ended.is_set() or time.monotonic() > started + PATIENCE_S:
                    break
                time.sleep(0.02)
            if not answer or answer[0] != 200:
                if there and not self.ended.is_set():
                    self.note(f"no answer to a question for {PATIENCE_S} s, last {answer}")
                continue
            there = True
            self.asked += 1
            self.longest = max(self.longest, time.monotonic() - started)
            rows = sum(row["n"] for row in json.loads(answer[1]))
            if rows < self.most:
                self.note(f"{rows} rows after {self.most}")
            self.most = max(self.most, rows)

    def end(self):
        self.ended.set()
        self.join(ANSWER_WITHIN_S + PATIENCE_S)


class Operator(threading.Thread):
    """Moves shards about and splits them. What is refused is asked again later, as people do."""

    def __init__(self, given, cluster, rng):
        super().__init__(daemon=True)
        self.given, self.cluster, self.rng = given, cluster, rng
        self.ended = threading.Event()
        self.done = {"move": 0, "split": 0}
        self.refused = 0

    def command(self, what, *arguments):
        url = self.cluster.url(self.rng.choice(self.cluster.of_role("query")))
        asked = [self.given.program, "cluster", what, *map(str, arguments), "--url", url]
        try:
            code = subprocess.run(asked, capture_output=True, timeout=PATIENCE_S).returncode
        except subprocess.TimeoutExpired:
            code = None
        if code == 0:
            self.done[what] += 1
        else:
            self.refused += 1

    def run(self):
        shards = self.given.shards
        due = {what: every for what, every in (("move", self.given.move), ("split", self.given.split)) if every}
        began = time.monotonic()
        while due and not self.ended.wait(0.2):
            for what, at in due.items():
                if time.monotonic() - began < at:
                    continue
                due[what] = at + getattr(self.given, what)
                shard = self.rng.randrange(shards + self.done["split"])
                self.command(what, shard, *([self.rng.choice(self.cluster.of_role("storage"))] if what == "move" else []))

    def end(self):
        self.ended.set()
        self.join(2 * PATIENCE_S)


def torture(given, folder):
    """Gives what went wrong, in words."""
    rng = random.Random(given.seed)
    folder.mkdir(parents=True)
    (folder / "alluvium.toml").write_text(f'flush_bytes = "{given.flush_bytes}"\n')
    cluster = DevCluster(folder, "--shards", given.shards, "--storage", given.storage, "--replicas", given.replicas,
                         program=given.program)
    wrong = []
    try:
        report = folder / "report.json"
        urls = ",".join(cluster.url(node) for node in cluster.of_role("ingest"))
        simulate = [given.program, "simulate", "--url", urls, "--devices", given.devices, "--points", given.points, "--rate", given.rate,
                    "--batch", given.batch, "--connections", given.connections, "--kinds", ",".join(KINDS), "--seed", given.seed,
                    "--late", given.late, "--duplicate", given.duplicate, "--offline", given.offline, "--verify", "--report", report]
        print("+", " ".join(map(str, simulate)), flush=True)
        fleet = subprocess.Popen(list(map(str, simulate)), stdin=subprocess.DEVNULL)
        asker = Asker(cluster, random.Random(given.seed + 1))
        asker.start()
        operator = Operator(given, cluster, random.Random(given.seed + 2))
        operator.start()
        victims = [node for role in given.victims.split(",") for node in cluster.of_role(role)]
        kills = 0
        began = next_kill = time.monotonic()
        # What was written is read back in peace.
        end = began + given.points / given.rate
        while fleet.poll() is None:
            if time.monotonic() > 2 * end - began + READ_BACK_WITHIN_S:
                wrong.append("the simulation hangs")
                fleet.kill()
            if time.monotonic() > end:
                operator.ended.set()
            if time.monotonic() < next_kill + given.every or time.monotonic() > end:
                time.sleep(0.05)
                continue
            next_kill = time.monotonic()
            victim, down = rng.choice(victims), rng.uniform(0, given.down)
            clean = rng.random() < given.stop
            print(f"{time.monotonic() - began:7.1f} s  {'stop' if clean else 'kill -9'} {victim}, start it again after {down:.1f} s", flush=True)
            (cluster.stop_node if clean else cluster.kill)(victim)
            kills += 1
            time.sleep(down)
            cluster.restart(victim)
        operator.end()
        asker.end()
        wrong += asker.wrong
        if fleet.returncode != 0:
            wrong.append(f"the simulation ended with {fleet.returncode}")
        acknowledged = json.loads(report.read_text())["acknowledged"] if report.exists() else None
        print(f"{kills} kills, {operator.done['move']} moves, {operator.done['split']} splits, {operator.refused} of them refused; "
              f"{asker.asked} counts of rows, the last {asker.most}, the longest wait for one {asker.longest:.2f} s; "
              f"acknowledged {acknowledged}", flush=True)
        if kills == 0:
            wrong.append("nothing was killed: more points or fewer seconds from kill to kill")
        code = cluster.stop()
        if code != 0:
            wrong.append(f"cluster dev ended with {code}")
    except (AssertionError, OSError, subprocess.SubprocessError) as error:
        wrong.append(f"{type(error).__name__}: {error}")
    finally:
        cluster.abandon()
    wrong += [f"{node}: {line}" for node, line in cluster.trouble()]
    for node in cluster.of_role("storage"):
        doctor = subprocess.run([given.program, "doctor", cluster.nodes[node]["data_dir"]], capture_output=True, text=True)
        if doctor.returncode != 0:
            wrong.append(f"doctor of {node} ends with {doctor.returncode}: {doctor.stdout}{doctor.stderr}")
    return wrong


def main():
    given = options()
    folder = given.folder or pathlib.Path(tempfile.mkdtemp(prefix="alluvium-torture-")) / "cluster"
    print(f"seed {given.seed}, in {folder}", flush=True)
    wrong = torture(given, folder)
    for what in wrong:
        print("WRONG", re.sub(r"\s+", " ", what))
    if wrong:
        print(f"failed with --seed {given.seed}; everything is kept in {folder}")
        sys.exit(1)
    shutil.rmtree(folder if given.folder else folder.parent)
    print("nothing went wrong")


if __name__ == "__main__":
    main()
