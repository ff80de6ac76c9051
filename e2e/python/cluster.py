"""A cluster as a user starts it: `nats-server` and the components of `stator`, each a process."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from stator_process import DEADLINE_S, Lines, start


def wait_until(condition, what):
    """Asks until it holds; fails when that takes too long."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"in vain: {what}"
        time.sleep(0.05)


def nats_binary():
    """The server that came with the tests' requirements, or another one on the PATH."""
    beside_python = Path(sys.executable).with_name("nats-server")
    found = os.environ.get("STATOR_NATS_SERVER") or shutil.which(beside_python) or shutil.which("nats-server")
    assert found, "no nats-server; pip install -r e2e/python/requirements.txt"
    return found


@contextlib.contextmanager
def nats_server(*arguments):
    """A NATS server with JetStream on a free port; its URL."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with tempfile.TemporaryDirectory() as store:
        command = [nats_binary(), "-js", "-sd", store, "-a", "127.0.0.1", "-p", str(port)]
        process = subprocess.Popen([*command, *arguments], stderr=subprocess.DEVNULL)
        try:
            yield f"nats://127.0.0.1:{port}"
        finally:
            process.kill()
            process.wait(timeout=DEADLINE_S)


class Component:
    """`stator gateway`, `router`, `prefill-worker` or `decode-worker`, ready; killed on exit."""

    def __init__(self, command, *arguments):
        self.process = start(command, *arguments)
        self.stdout, self.stderr = Lines(self.process.stdout), Lines(self.process.stderr)
        try:
            self.name = self.stdout.wait_for(rf"^{command} (\S+) ready\b")[1]
        except BaseException:
            self.kill()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()

    def address(self, what):
        """The address that it printed as its `API`, `data`, `kv` or `admin`."""
        return self.stdout.wait_for(rf"^  {what} +(\S+)$")[1]

    def kill(self):
        """Ends the process if it still runs."""
        self.process.kill()
        self.process.wait(timeout=DEADLINE_S)

    def end(self):
        """What an operator does; returns the exit code and what it said of trouble."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=DEADLINE_S), self.stderr.to_end()
