"""Processes of a measurement: started, waited for, read and ended."""

import contextlib
import http.client
import json
import os
import socket
import subprocess
import time
from pathlib import Path

READY_DEADLINE_S = 90
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Process:
    """A process that writes into `logs/NAME.log`; ended on exit."""

    def __init__(self, name, command, logs, environment=None):
        self.log = Path(logs) / f"{name}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                list(map(str, command)),
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **(environment or {})},
            )
        self.pid = self.process.pid

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def wait_for(self, text):
        """Waits until the log has `text`; returns the rest of its line."""
        for _ in until_deadline():
            for line in self.log.read_text(errors="replace").splitlines():
                if text in line:
                    return line.split(text, 1)[1]
            self.must_run()
        raise SystemExit(f"{self.log} did not say {text!r} within {READY_DEADLINE_S} s")

    def must_run(self):
        if self.process.poll() is not None:
            raise SystemExit(f"a process ended: read {self.log}")


def cpu_s(processes):
    """CPU seconds that processes have used, all their threads, of `/proc/PID/stat`."""
    return sum(stat_ticks(process.pid) for process in processes) / TICKS_PER_S


def stat_ticks(pid):
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def rss_mib(processes):
    """Memory of processes that is resident now."""
    return sum(resident_kib(process.pid) for process in processes) / 1024


def resident_kib(pid):
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise SystemExit(f"process {pid} has ended")


def machine_cpu_s():
    """CPU seconds that the whole machine has been busy."""
    fields = list(map(int, Path("/proc/stat").read_text().splitlines()[0].split()[1:9]))
    idle = fields[3] + fields[4]
    return (sum(fields) - idle) / TICKS_PER_S


def free_port():
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as listener:
        return listener.getsockname()[1]


def wait_for_model(port, process):
    """Waits until the server on a port lists a model and answers a chat request."""
    for _ in until_deadline():
        process.must_run()
        with contextlib.suppress(OSError, http.client.HTTPException):
            status, models = ask(port, "GET", "/v1/models")
            if status == 200 and models["data"]:
                name = models["data"][0]["id"]
                message = {"role": "user", "content": "Is anyone there?"}
                body = {"model": name, "messages": [message], "max_tokens": 1}
                status, _ = ask(port, "POST", "/v1/chat/completions", body)
                if status == 200:
                    return
    raise SystemExit(f"nothing serves on port {port}: read {process.log}")


def ask(port, method, path, body=None):
    """Status and parsed answer."""
    status, text = fetch(port, method, path, body, timeout_s=10)
    return status, json.loads(text) if status == 200 else None


def fetch(port, method, path, body=None, timeout_s=600):
    """Status and text."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
    with contextlib.closing(connection):
        headers = {"content-type": "application/json"} if body else {}
        connection.request(method, path, json.dumps(body) if body else None, headers)
        response = connection.getresponse()
        return response.status, response.read().decode(errors="replace")


def until_deadline():
    """Turns, some tenths of a second apart, until a start takes too long."""
    end = time.monotonic() + READY_DEADLINE_S
    while time.monotonic() < end:
        yield
        time.sleep(0.2)
