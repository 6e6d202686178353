"""A real cluster whose network is cut: the side with most of the replicas goes on, no other side acknowledges anything."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest

import namespaces
from dev_cluster import PROGRAM

SHARDS = 2


@pytest.fixture
def cluster(tmp_path):
    why_not = namespaces.unable()
    if why_not:
        pytest.skip(f"{why_not}; cluster/tests/peers cuts the connections between nodes of one process")
    one = namespaces.NetworkedCluster(tmp_path, PROGRAM, SHARDS)
    yield one
    one.close()


def lines(numbers):
    return "".join(f"m,device_id=d{n % 20} v={n}i {n}\n" for n in numbers)


def found(cluster, node):
    """All values that a query finds, each once."""
    answer = cluster.until(lambda a: a[0] == 200, node, "/sql?format=json", "SELECT v FROM m ORDER BY v")
    values = [row["v"] for row in json.loads(answer[1])]
    assert len(values) == len(set(values)), "rows are doubled"
    return set(values)


def leaders(cluster, node):
    status = json.loads(cluster.until(lambda a: a[0] == 200, node, "/cluster/v1/status")[1])
    return [shard["leader"] for shard in status["shards"]]


def test_only_the_side_with_a_majority_writes_and_nothing_is_lost(cluster):
    kept, tried = set(), set()

    def write(node, numbers):
        """Whether the node acknowledged them."""
        tried.update(numbers)
        answer = cluster.ask(node, "/write?db=default", lines(numbers))
        if answer and answer[0] == 204:
            kept.update(numbers)
            return True
        assert answer is None or answer[0] == 503, answer
        return False

    def write_until_kept(node, numbers):
        cluster.until(lambda _: write(node, numbers), node, "/ping")

    write_until_kept("ingest-1", range(100))
    assert found(cluster, "query-1") == kept

    # A leader is cut off, with a node of each other role beside it.
    lonely = leaders(cluster, "query-2")[0]
    few = [lonely, "ingest-1", "query-1"]
    many = [name for name in cluster.hosts if name not in few]
    cluster.partition(many, few)
    write_until_kept("ingest-2", range(100, 200))
    assert found(cluster, "query-2") == kept
    assert lonely not in leaders(cluster, "query-3")
    # Whoever asks in vain waits for a few elections: all at once.
    with ThreadPoolExecutor() as pool:
        written = pool.submit(write, "ingest-1", range(200, 300))
        asked = pool.submit(cluster.ask, "query-1", "/sql?format=json", "SELECT count(*) FROM m")
        write_until_kept("ingest-3", range(300, 400))
        assert not written.result(), "a minority has acknowledged"
        assert asked.result()[0] == 503
    cluster.heal()
    write_until_kept("ingest-1", range(400, 500))
    for node in ["query-1", "query-2"]:
        assert kept <= found(cluster, node) <= tried, node

    # No side has a majority: nobody acknowledges, nobody answers, and afterwards all is as before.
    cluster.partition(*([f"{role}-{number}" for role in namespaces.ROLES] for number in (1, 2, 3)))
    with ThreadPoolExecutor() as pool:
        asked = pool.submit(cluster.ask, "query-2", "/sql?format=json", "SELECT count(*) FROM m")
        written = [pool.submit(write, f"ingest-{n}", range(400 + 100 * n, 500 + 100 * n)) for n in (1, 2, 3)]
        assert not any(one.result() for one in written), "nobody has a majority"
        assert asked.result()[0] == 503
    cluster.heal()
    for number in (1, 2, 3):
        write_until_kept(f"ingest-{number}", range(700 + 100 * number, 800 + 100 * number))
    for node in ["query-1", "query-2", "query-3"]:
        assert kept <= found(cluster, node) <= tried, node
    assert len(kept) >= 100 * 7
