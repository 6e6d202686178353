"""A node that is killed keeps what it acknowledged; two nodes never share a directory."""

import json
import threading

from conftest import Server


def test_kill_9_while_writing_loses_no_acknowledged_row(server):
    acknowledged = set()
    attempted = set()
    enough = threading.Event()

    def write(writer):
        number = 0
        while True:
            batch = range(number, number + 20)
            number += 20
            body = "".join(f"phone,device_id=w{writer} n={i}i {i + 1}\n" for i in batch)
            attempted.update((f"w{writer}", i) for i in batch)
            try:
                status, _, _ = server.request("/api/v3/write_lp", body, db="home", precision="ns")
            except OSError:
                return
            if status == 204:
                acknowledged.update((f"w{writer}", i) for i in batch)
                if len(acknowledged) >= 20_000:
                    enough.set()

    for kills in range(2):
        enough.clear()
        acknowledged_before = len(acknowledged)
        writers = [threading.Thread(target=write, args=(f"{kills}{i}",)) for i in range(4)]
        for writer in writers:
            writer.start()
        # Killed in the middle of writing, not after it: the writers go on until the connection breaks.
        assert enough.wait(60)
        server.kill()
        for writer in writers:
            writer.join(60)
        assert len(acknowledged) > acknowledged_before
        server.start()
        rows = server.sql("SELECT device_id, n, cast(time AS BIGINT) AS ns FROM phone", db="home")
        found = [(row["device_id"], row["n"]) for row in rows]
        assert len(found) == len(set(found)), "rows are doubled"
        assert acknowledged <= set(found), "acknowledged rows are lost"
        assert set(found) <= attempted, "rows are invented"
        assert all(row["ns"] == row["n"] + 1 for row in rows), "rows are altered"


def test_a_second_server_on_the_same_directory_is_refused(server):
    second = server.run("serve", "--data-dir", server.data_dir, "--listen", "127.0.0.1:0")
    assert second.returncode == 1
    assert "in use by another process" in second.stderr
    server.request("/write", "phone,device_id=p v=1 1", db="home")
    assert len(server.sql("SELECT * FROM phone", db="home")) == 1


def test_node_json_names_the_node_while_it_runs(tmp_path):
    server = Server(tmp_path / "data")
    node = json.loads((tmp_path / "data" / "node.json").read_text())
    assert node["http"] == f"127.0.0.1:{server.port}"
    assert node["pid"] == server.process.pid
    assert node["node_id"] and node["rpc"] is None
    assert server.stop() == 0
    assert not (tmp_path / "data" / "node.json").exists()
