"""Clients of other databases write as they always do, unmodified, and every point is there."""

import gzip
import json
import subprocess

import influxdb
import influxdb_client
import influxdb_client.client.write_api
import pytest
import questdb.ingress
from influxdb.exceptions import InfluxDBClientError
from influxdb_client.rest import ApiException

SECOND = 1_780_000_000


def test_influxdb_1_client_writes_points_and_lists_databases(server):
    client = influxdb.InfluxDBClient(host="127.0.0.1", port=server.port, database="home")
    assert client.ping()
    client.create_database("home")
    assert {"name": "home"} in client.get_list_database()
    points = [
        {
            "measurement": "phone",
            "tags": {"device_id": f"p-{i}", "model": "a b,c=d"},
            "time": SECOND + i,
            "fields": {"battery": 71.5 + i, "steps": i, "screen": i % 2 == 0, "note": 'say "hi"\nand \\ go'},
        }
        for i in range(50)
    ]
    assert client.write_points(points, time_precision="s", batch_size=20)
    rows = server.sql("SELECT * FROM phone ORDER BY time", db="home")
    assert len(rows) == 50
    assert rows[3] == {
        "time": "2026-05-28T20:26:43Z",
        "device_id": "p-3",
        "model": "a b,c=d",
        "battery": 74.5,
        "steps": 3,
        "screen": False,
        # This client itself writes a newline as a backslash and an n.
        "note": 'say "hi"\\nand \\ go',
    }
    assert {"name": "phone"} in client.get_list_measurements()


def test_influxdb_1_client_hears_of_a_type_conflict_and_the_good_lines_stay(server):
    client = influxdb.InfluxDBClient(host="127.0.0.1", port=server.port, database="home")
    client.write(["phone,device_id=p v=1.5 1"], {"db": "home"}, protocol="line")
    with pytest.raises(InfluxDBClientError) as refused:
        client.write(["phone,device_id=p v=2i 2", "phone,device_id=p v=2.5 3"], {"db": "home"}, protocol="line")
    assert refused.value.code == 400
    assert "partial write: field type conflict" in str(refused.value) and "dropped=1" in str(refused.value)
    assert [row["v"] for row in server.sql("SELECT v FROM phone ORDER BY time", db="home")] == [1.5, 2.5]


@pytest.mark.parametrize("enable_gzip", [False, True])
def test_influxdb_2_client_writes_in_batches_and_is_told_it_is_healthy(server, enable_gzip):
    with influxdb_client.InfluxDBClient(url=server.url, token="any", org="o", enable_gzip=enable_gzip) as client:
        assert client.ping()
        assert client.health().status == "pass"
        with client.write_api() as batching:
            for i in range(2_500):
                point = influxdb_client.Point("watch").tag("device_id", f"w-{i % 7}").field("heart_rate", 60 + i % 40)
                batching.write(bucket="home", record=point.time(SECOND * 10**9 + i))
    found = server.sql("SELECT count(*) AS n, sum(heart_rate) AS beats FROM watch", db="home")
    assert found == [{"n": 2_500, "beats": sum(60 + i % 40 for i in range(2_500))}]


def test_influxdb_2_client_hears_which_line_is_wrong(server):
    with influxdb_client.InfluxDBClient(url=server.url, token="any", org="o") as client:
        write = client.write_api(write_options=influxdb_client.client.write_api.SYNCHRONOUS)
        with pytest.raises(ApiException) as refused:
            write.write(bucket="home", record="watch,device_id=w v=1\nwatch,device_id=w v=\n")
    assert refused.value.status == 400
    answer = json.loads(refused.value.body)
    assert answer["error"] == "partial write of line protocol occurred"
    assert [line["line_number"] for line in answer["data"]] == [2]
    assert len(server.sql("SELECT * FROM watch", db="home")) == 1


def test_questdb_client_writes_rows(server):
    with questdb.ingress.Sender.from_conf(f"http::addr=127.0.0.1:{server.port};") as sender:
        for i in range(100):
            at = questdb.ingress.TimestampNanos(SECOND * 10**9 + i)
            sender.row("car", symbols={"device_id": f"c-{i % 3}"}, columns={"speed": i * 1.5, "gear": i, "lights": True}, at=at)
    found = server.sql("SELECT count(*) AS n, max(speed) AS fastest, max(gear) AS gear FROM car")
    assert found == [{"n": 100, "fastest": 148.5, "gear": 99}]


def test_curl_writes_to_each_endpoint_and_reads_every_format(server, tmp_path):
    def curl(*arguments):
        done = subprocess.run(["curl", "--silent", "--show-error", *arguments], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    status = ("--output", tmp_path / "body", "--write-out", "%{http_code}")
    lines = tmp_path / "lines.gz"
    lines.write_bytes(gzip.compress(b"tv,device_id=t3 on=true 3\n") + gzip.compress(b"tv,device_id=t4 on=false 4\n"))
    assert curl(*status, f"{server.url}/write?db=home", "--data-binary", "tv,device_id=t1 on=true 1") == "204"
    assert curl(*status, f"{server.url}/api/v2/write?bucket=home&org=o&precision=ns", "--data-binary", "tv,device_id=t2 on=t 2") == "204"
    v3 = f"{server.url}/api/v3/write_lp?db=home&precision=nanosecond"
    assert curl(*status, v3, "--header", "Content-Encoding: gzip", "--data-binary", f"@{lines}") == "204"
    ask = f"{server.url}/sql?db=home&format="
    query = ("--data", "SELECT time, device_id, \"on\" FROM tv ORDER BY time")
    assert curl(ask + "csv", *query).splitlines() == [
        "time,device_id,on",
        "1970-01-01T00:00:00.000000001Z,t1,true",
        "1970-01-01T00:00:00.000000002Z,t2,true",
        "1970-01-01T00:00:00.000000003Z,t3,true",
        "1970-01-01T00:00:00.000000004Z,t4,false",
    ]
    assert [row["device_id"] for row in json.loads(curl(ask + "json", *query))] == ["t1", "t2", "t3", "t4"]
    assert [json.loads(line)["on"] for line in curl(ask + "jsonl", *query).splitlines()] == [True, True, True, False]
    assert "alluvium_" in curl(f"{server.url}/metrics")
