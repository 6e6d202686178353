"""What nodes say of themselves, as Prometheus' own linter judges it (Debian's package prometheus)."""

import shutil
import subprocess

import pytest

from dev_cluster import DevCluster

pytestmark = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")


def lint(node, text):
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True)
    assert done.returncode == 0, f"{node}: {done.stdout}{done.stderr}"


def test_a_node_of_every_role_passes_the_linter(server):
    server.request("/write", "phone,device_id=p v=1 1\nphone wrong 1", db="home")
    server.sql("SELECT * FROM phone", db="home")
    server.sql("FLUSH", db="home")
    lint("server", server.request("/metrics")[2].decode())


def test_nodes_of_one_role_each_pass_the_linter(tmp_path):
    cluster = DevCluster(tmp_path / "c", "--ingest", 1, "--storage", 1, "--query", 1, "--replicas", 1)
    try:
        cluster.until(lambda a: a[0] == 204, "ingest-1", "/write?db=default", "m,device_id=a v=1 1")
        assert cluster.count() == 1
        for node in cluster.nodes:
            status, text = cluster.ask(node, "/metrics")
            assert status == 200 and "alluvium_build_info" in text
            lint(node, text)
    finally:
        cluster.abandon()
