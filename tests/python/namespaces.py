"""A cluster whose nodes have a network of their own each, so that it can be cut in two.

Each node runs in a network namespace, joined to a bridge by a pair of virtual interfaces; a partition puts some of them
on another bridge. Packets between the sides are then lost without a word, as they are when a switch fails. Whoever asks
a node does so from within its namespace. The namespaces have no names: they end with the processes that hold them.
"""

import os
import pathlib
import shutil
import subprocess
import time

PATIENCE_S = 60
TOKEN = "the-admin-token-of-the-tests"
ROLES = ["storage", "ingest", "query"]


def unable():
    """Why there can be no such network here; None if there can."""
    missing = [tool for tool in ("ip", "unshare", "nsenter", "curl") if shutil.which(tool) is None]
    if missing:
        return f"there is no {', '.join(missing)}"
    tried = subprocess.run(["unshare", "--net", "ip", "link", "add", "probe", "type", "bridge"], capture_output=True, text=True)
    return None if tried.returncode == 0 else f"no network namespaces here: {tried.stderr.strip()}"


class Namespace:
    """A network namespace, as long as the process that holds it."""

    def __init__(self):
        self.holder = subprocess.Popen(["unshare", "--net", "sleep", "600"])
        self.path = f"/proc/{self.holder.pid}/ns/net"
        end = time.monotonic() + PATIENCE_S
        while not self.is_made():
            assert time.monotonic() < end, "the namespace does not come"
            time.sleep(0.005)
        self.run("ip", "link", "set", "lo", "up")

    def is_made(self):
        # Until `sleep` has taken the place of `unshare`, the namespace may still be this process's own.
        try:
            named = pathlib.Path(f"/proc/{self.holder.pid}/comm").read_text().strip()
            return named == "sleep" and os.readlink(self.path) != os.readlink("/proc/self/ns/net")
        except OSError:
            return False

    def command(self, *arguments):
        return ["nsenter", f"--net={self.path}", *map(str, arguments)]

    def run(self, *arguments):
        return subprocess.run(self.command(*arguments), check=True, capture_output=True, text=True, timeout=PATIENCE_S)

    def close(self):
        self.holder.kill()
        self.holder.wait(PATIENCE_S)


class Network:
    """Bridges, and namespaces that are joined to one of them each."""

    BRIDGES = 3

    def __init__(self):
        self.hub = Namespace()
        for bridge in range(self.BRIDGES):
            self.hub.run("ip", "link", "add", f"side{bridge}", "type", "bridge")
            self.hub.run("ip", "link", "set", f"side{bridge}", "up")
        self.hosts = []

    def host(self):
        """A new namespace with an address, on the first bridge."""
        host, number = Namespace(), len(self.hosts) + 1
        host.address, host.link = f"10.77.0.{number}", f"host{number}"
        self.hosts.append(host)
        self.hub.run("ip", "link", "add", host.link, "type", "veth", "peer", "name", "eth0", "netns", host.holder.pid)
        host.run("ip", "address", "add", f"{host.address}/24", "dev", "eth0")
        host.run("ip", "link", "set", "eth0", "up")
        self.hub.run("ip", "link", "set", host.link, "master", "side0", "up")
        return host

    def put(self, host, side):
        """From now on only hosts on the same side hear each other."""
        self.hub.run("ip", "link", "set", host.link, "master", f"side{side}")

    def close(self):
        for namespace in [*self.hosts, self.hub]:
            namespace.close()


class NetworkedCluster:
    """Three nodes of each role, `storage-1` to `query-3`, in a network of their own."""

    def __init__(self, folder, program, shards):
        self.network = Network()
        self.hosts, self.processes, self.logs = {}, {}, {}
        try:
            self._start(folder, program, shards)
        except BaseException:
            self.close()
            raise

    def _start(self, folder, program, shards):
        secret = folder / "secret"
        secret.write_text("the-cluster-secret-of-the-tests")
        names = [f"{role}-{number}" for role in ROLES for number in (1, 2, 3)]
        for name in names:
            self.hosts[name] = self.network.host()
        join = ",".join(f"{self.hosts[f'storage-{n}'].address}:2559" for n in (1, 2, 3))
        for name, host in self.hosts.items():
            role = name.split("-")[0]
            command = host.command(program, "serve", "--node-id", name, "--data-dir", folder / name, "--roles", role,
                                   "--listen", f"{host.address}:2558", "--rpc-listen", f"{host.address}:2559",
                                   "--join", join, "--cluster-secret-file", secret)
            if role == "storage":
                command += ["--bootstrap-expect", "3", "--shards", str(shards)]
            self.logs[name] = folder / f"{name}.log"
            environment = {k: v for k, v in os.environ.items() if not k.startswith("ALLUVIUM")} | {"ALLUVIUM_ADMIN_TOKEN": TOKEN}
            with open(self.logs[name], "w") as log:
                self.processes[name] = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=log, env=environment)
        for name in names:
            self.until(lambda a: a[0] == 200, name, "/ready")

    def partition(self, *sides):
        """Cuts the network: each side is a list of names."""
        for side, names in enumerate(sides):
            for name in names:
                self.network.put(self.hosts[name], side)

    def heal(self):
        self.partition(list(self.hosts))

    def ask(self, node, path, body=None, timeout=30):
        """(status, body) of any answer; None where there is none."""
        host = self.hosts[node]
        command = host.command("curl", "--silent", "--show-error", "--max-time", timeout, "--header", f"Authorization: Bearer {TOKEN}",
                               "--write-out", "\n%{http_code}", f"http://{host.address}:2558{path}")
        if body is not None:
            command += ["--data-binary", "@-"]
        done = subprocess.run(command, input=body, capture_output=True, text=True, timeout=timeout + PATIENCE_S)
        if done.returncode != 0:
            return None
        text, _, status = done.stdout.rpartition("\n")
        return int(status), text

    def until(self, what, *request):
        """Asks until the answer is what is waited for."""
        node, end, answer = request[0], time.monotonic() + PATIENCE_S, None
        while time.monotonic() < end:
            ended = self.processes[node].poll()
            assert ended is None, f"{node} has ended with {ended}: {self.logs[node].read_text()}"
            answer = self.ask(*request)
            if answer and what(answer):
                return answer
            # Nothing tells from outside when a cluster has healed: it is asked again and again.
            time.sleep(0.05)
        raise AssertionError(f"{request} was never answered as expected, last {answer}")

    def close(self):
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            try:
                process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                process.kill()
        self.network.close()
