#!/usr/bin/env python3
"""Times questions through a query node of `cluster dev` against the one-process server, on the same rows.

    tests/python/measure_queries.py                    3 million points, 60 runs of each question on each

The same fleet writes the same bytes to both; both flush and compact. Then each question is asked of the one and of the
other in turn, over one connection each, and the answers must be equal. The figures are medians, with quartiles; they are
of use only while nothing else runs.
"""

import argparse
import http.client
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

from conftest import Server
from dev_cluster import PROGRAM, DevCluster

QUESTIONS = {
    "GROUP BY 5 regions x 2 systems": "SELECT region, os, count(*) AS n, avg(battery_pct) AS b, max(time) AS t FROM phone GROUP BY region, os ORDER BY 1, 2",
    "GROUP BY minute": "SELECT date_bin(INTERVAL '1 minute', time) AS m, count(*) AS n, min(battery_pct) AS b FROM phone GROUP BY m ORDER BY m",
    "GROUP BY device, the ten with most": "SELECT device_id, count(*) AS n, max(battery_pct) AS b FROM phone GROUP BY device_id ORDER BY n DESC, device_id LIMIT 10",
    "count(*)": "SELECT count(*) AS n FROM watch",
    "one device, last ten points": "SELECT time, battery_pct FROM phone WHERE device_id = '{device}' ORDER BY time DESC LIMIT 10",
    "one device, GROUP BY hour": "SELECT date_bin(INTERVAL '1 hour', time) AS h, count(*) AS n FROM phone WHERE device_id = '{device}' GROUP BY h ORDER BY h",
    "one device, latest": "SELECT * FROM latest(phone) WHERE device_id = '{device}'",
}


def ask(connection, sql):
    """(milliseconds, rows) of an answer that was read whole."""
    started = time.perf_counter()
    connection.request("POST", "/sql?format=json", sql.encode())
    response = connection.getresponse()
    text = response.read()
    took = 1000 * (time.perf_counter() - started)
    assert response.status == 200, text.decode()
    return took, json.loads(text)


def alike(a, b):
    """Sums of floats depend on the order in which they are added."""
    if isinstance(a, float) and isinstance(b, float):
        return abs(a - b) <= 1e-9 * max(abs(a), abs(b), 1)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(alike, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(alike(a[k], b[k]) for k in a)
    return a == b


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--program", default=PROGRAM, help="the alluvium to run [default: $ALLUVIUM, else %(default)s]")
    parser.add_argument("--points", type=int, default=3_000_000)
    parser.add_argument("--devices", type=int, default=10_000)
    parser.add_argument("--runs", type=int, default=60)
    parser.add_argument("--shards", type=int, default=6)
    parser.add_argument("--report", type=pathlib.Path, help="write all times to a file, as JSON")
    given = parser.parse_args()
    folder = pathlib.Path(tempfile.mkdtemp(prefix="alluvium-queries-"))
    os.environ["ALLUVIUM"] = given.program
    alone = Server(folder / "alone", "--shards", given.shards, program=given.program)
    cluster = DevCluster(folder / "cluster", "--shards", given.shards, program=given.program)
    try:
        for urls in (alone.url, ",".join(cluster.url(node) for node in cluster.of_role("ingest"))):
            subprocess.run([given.program, "simulate", "--url", urls, "--devices", str(given.devices), "--points", str(given.points)], check=True)
        connections = {name: http.client.HTTPConnection(url.removeprefix("http://"), timeout=120)
                       for name, url in (("alone", alone.url), ("cluster", cluster.url("query-1")))}
        for connection in connections.values():
            for command in ("FLUSH", "COMPACT"):
                connection.request("POST", "/sql", command.encode())
                answer = connection.getresponse()
                assert (answer.status, answer.read()) and answer.status == 200
        devices = [row["device_id"] for row in ask(connections["alone"], "SELECT DISTINCT device_id FROM phone ORDER BY device_id LIMIT 200")[1]]
        times = {}
        print(f"{'milliseconds: median (quartiles)':36} {'one process':>24} {'query node':>24} {'ratio':>6} {'more':>7}")
        for name, sql in QUESTIONS.items():
            took = {"alone": [], "cluster": []}
            for run in range(-5, given.runs):
                of_run = sql.format(device=devices[run % len(devices)])
                order = list(took) if run % 2 else list(took)[::-1]
                answers = {}
                for where in order:
                    milliseconds, answers[where] = ask(connections[where], of_run)
                    if run >= 0:
                        took[where].append(milliseconds)
                assert alike(answers["alone"], answers["cluster"]), of_run
            times[name] = took
            quartiles = {where: statistics.quantiles(t, n=4) for where, t in took.items()}
            shown = [f"{q[1]:8.2f} ({q[0]:.2f} - {q[2]:.2f})" for q in quartiles.values()]
            one, other = quartiles["alone"][1], quartiles["cluster"][1]
            print(f"{name:36} {shown[0]:>24} {shown[1]:>24} {other / one:6.2f} {other - one:7.2f}", flush=True)
        if given.report:
            given.report.write_text(json.dumps(times))
        assert cluster.stop() == 0 and alone.stop() == 0
    finally:
        cluster.abandon()
        alone.process.kill()
    shutil.rmtree(folder)


if __name__ == "__main__":
    sys.exit(main())
