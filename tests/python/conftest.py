"""A real alluvium on a free port for each test that asks for one.

The program is the one named by the environment variable ALLUVIUM. Nothing here sleeps: a server is ready when it says so.
"""

import json
import os
import re
import signal
import subprocess
import threading
import urllib.error
import urllib.parse
import urllib.request

import pytest

PROGRAM = os.environ.get("ALLUVIUM", "target/debug/alluvium")
READY = re.compile(r"ready.*?(http://[0-9.]+:([0-9]+))")
PATIENCE_S = 60


class Server:
    """One node on one data directory; may be killed and started again."""

    def __init__(self, data_dir, *arguments, program=PROGRAM):
        self.data_dir = data_dir
        self.command = [program, "serve", "--data-dir", str(data_dir), "--listen", "127.0.0.1:0", *map(str, arguments or ("--shards", 2))]
        self.process = None
        self.start()

    def start(self):
        self.process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        self.said = []
        self.is_ready = threading.Event()
        self.listener = threading.Thread(target=self._listen, args=(self.process.stderr,), daemon=True)
        self.listener.start()
        ready = self.is_ready.wait(PATIENCE_S) and self.url
        assert ready, "the server did not become ready:\n" + "".join(self.said)

    def _listen(self, stderr):
        self.url = None
        for line in stderr:
            self.said.append(line)
            found = READY.search(line)
            if found and not self.url:
                self.url, self.port = found[1], int(found[2])
                self.is_ready.set()
        self.is_ready.set()

    def kill(self):
        self.process.kill()
        self.process.wait(PATIENCE_S)
        self.listener.join(PATIENCE_S)

    def stop(self):
        """Asks it to end and gives its exit code."""
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(PATIENCE_S)
        self.listener.join(PATIENCE_S)
        return code

    def request(self, path, body=None, headers=None, **parameters):
        """Gives (status, headers, body) of any answer, errors too."""
        query = "?" + urllib.parse.urlencode(parameters) if parameters else ""
        body = body.encode() if isinstance(body, str) else body
        request = urllib.request.Request(self.url + path + query, data=body, headers=headers or {})
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
                return answer.status, answer.headers, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.headers, error.read()

    def sql(self, sql, db="default"):
        """The rows as dictionaries of the JSON answer."""
        status, _, body = self.request("/sql", sql, db=db, format="json")
        assert status == 200, body.decode()
        return json.loads(body)

    def run(self, *arguments, **options):
        """Runs a command of the program."""
        return subprocess.run([PROGRAM, *map(str, arguments)], capture_output=True, text=True, timeout=PATIENCE_S, **options)


@pytest.fixture
def server(tmp_path):
    server = Server(tmp_path / "data")
    yield server
    if server.process.poll() is None:
        assert server.stop() == 0, "".join(server.said)
