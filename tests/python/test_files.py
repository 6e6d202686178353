"""What lies on disk: readable by others, named by the manifest, checked by doctor."""

import json
import re
import shutil

import duckdb

SECOND = 1_780_000_000


def write_mixed_rows(server):
    """Rows over three days and two tables, with overwrites, missing fields, late rows and awkward names."""
    lines = []
    for i in range(3_000):
        time = (SECOND + i * 97) * 10**9 + i
        lines.append(f'phone,device_id=p-{i % 13},region=eu\\ {i % 3} battery={i % 100}.5,steps={i}i,big={2**63 + i}u,on={i % 2 == 0},note="n {i}" {time}')
        if i % 5 == 0:
            lines.append(f"phone,device_id=p-{i % 13},region=eu\\ {i % 3} battery=0.25 {time}")
        if i % 7 == 0:
            lines.append(f"Smart\\ TV,device_id=tv-{i % 4} volume={i % 30}i {time - 10**18 // 50}")
        if i == 1_500:
            status, _, body = server.request("/write", "\n".join(lines), db="home")
            assert status == 204, body
            lines = []
            server.sql("FLUSH", db="home")
    status, _, body = server.request("/write", "\n".join(lines), db="home")
    assert status == 204, body


def files_of(server):
    listed = server.run("inspect", "manifest", server.data_dir, "--format", "json")
    assert listed.returncode == 0, listed.stderr
    return json.loads(listed.stdout)


def as_comparable(rows):
    return sorted(tuple("" if v is None else repr(v) for v in row) for row in rows)


def test_duckdb_reads_the_rows_that_sql_gives(server):
    write_mixed_rows(server)
    server.sql("COMPACT", db="home")
    files = files_of(server)
    for table in ["phone", "Smart TV"]:
        paths = [file["path"] for file in files if file["database"] == "home" and file["table"] == table]
        paths = [path if path.startswith("/") else str(server.data_dir / path) for path in paths]
        assert paths, files
        of_sql = server.sql(f'SELECT * FROM "{table}"', db="home")
        columns = list(of_sql[0])
        source = "read_parquet(?, union_by_name = true, hive_partitioning = false)"
        relation = duckdb.connect().sql(f"SELECT * FROM {source}", params=[paths])
        assert sorted(relation.columns) == sorted(columns)
        wanted = ", ".join('epoch_ns("time")' if column == "time" else f'"{column}"' for column in columns)
        of_duckdb = duckdb.connect().sql(f"SELECT {wanted} FROM {source}", params=[paths]).fetchall()
        in_ns = server.sql(f'SELECT cast(time AS BIGINT) AS ns, * FROM "{table}"', db="home")
        expected = [[row["ns"] if c == "time" else row.get(c) for c in columns] for row in in_ns]
        assert len(of_duckdb) == len(of_sql)
        assert as_comparable(of_duckdb) == as_comparable(expected)
        assert sum(f["rows"] for f in files if f["database"] == "home" and f["table"] == table) == len(of_sql)
    of_sql = server.sql("SELECT DISTINCT date_trunc('day', time) AS day FROM phone", db="home")
    folders = {re.search(r"/day=([0-9-]+)/", f["path"])[1] for f in files if f["table"] == "phone"}
    assert folders == {row["day"][:10] for row in of_sql}


def test_doctor_finds_nothing_wrong_in_a_stopped_directory_and_a_flipped_bit_in_a_file(server):
    write_mixed_rows(server)
    server.sql("FLUSH", db="home")
    path = files_of(server)[0]["path"]
    path = server.data_dir / path
    assert server.stop() == 0
    healthy = server.run("doctor", server.data_dir)
    assert healthy.returncode == 0, healthy.stdout + healthy.stderr
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    damaged = server.run("doctor", server.data_dir)
    assert damaged.returncode == 1
    assert path.name in damaged.stdout + damaged.stderr


def without(part):
    """Removes a file or a folder of a directory."""
    def remove(directory):
        path = directory / part
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        return path
    return remove


def bad_slot(part):
    """Flips a bit in the second slot of a log's hard state."""
    def flip(directory):
        path = directory / part / "hard_state"
        content = bytearray(path.read_bytes())
        content[4096 + 70] ^= 1
        path.write_bytes(content)
        return path
    return flip


def test_doctor_names_what_is_missing(server, tmp_path):
    write_mixed_rows(server)
    server.sql("FLUSH", db="home")
    assert server.stop() == 0
    assert server.run("doctor", server.data_dir).returncode == 0
    damages = [
        without("identity"),
        without("meta"),
        without("shards/0"),
        without("shards/0/wal"),
        without("shards/0/replica"),
        without("shards/0/data/MANIFEST"),
        bad_slot("shards/0/wal"),
        bad_slot("meta/wal"),
    ]
    for number, damage in enumerate(damages):
        directory = tmp_path / f"copy-{number}"
        shutil.copytree(server.data_dir, directory)
        path = damage(directory)
        told = server.run("doctor", directory)
        assert told.returncode == 1 and f"damaged  {path}" in told.stdout, (path, told.stdout, told.stderr)
