"""Processes of ours, and what is asked of them."""

import contextlib
import http.client
import json
import random
import re
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "engine"))
sys.path.append(str(Path(__file__).parents[1] / "peers"))

from processes import Process, free_port, until_deadline

READY_S = 300
# When everything has to have ended.
ends = float("inf")


def left_s(at_most=READY_S):
    """Seconds that are left for something. Raises `Failed` where there are none."""
    left = ends - time.monotonic()
    if left <= 0:
        raise Failed("no time is left")
    return min(left, at_most)


def run_to_end(command, timeout_s=READY_S, **more):
    """What a command said. Raises `Failed` where it takes too long."""
    try:
        return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=left_s(timeout_s), **more)
    except subprocess.TimeoutExpired as error:
        raise Failed(f"{command[0]} {command[1]} took more than {error.timeout:.0f} s") from None

# Of workers that have a card together.
POOL = ("--kv-blocks", "2048")
TOKENS = (300, 4000)


class Served:
    """What answers at an address."""

    def __init__(self, address):
        self.address = address
        for _ in until_deadline():
            # A gateway lists a model once it has heard of a worker.
            if found := self.ask("GET", "/v1/models")["data"]:
                self.model = found[0]["id"]
                return
        raise Failed("the gateway knows no model")

    def ask(self, method, path, body=None):
        """The parsed answer. Raises `Failed` for any but 200."""
        with contextlib.closing(http.client.HTTPConnection(self.address, timeout=left_s())) as connection:
            connection.request(method, path, body and json.dumps(body), {"content-type": "application/json"})
            response = connection.getresponse()
            text = response.read().decode()
        if response.status != 200:
            raise Failed(f"{path} answered {response.status}: {text[:200]}")
        return json.loads(text)

    def complete(self, prompt, max_tokens, **more):
        """A greedy completion's only choice; `prompt` is token ids."""
        return self.ask("POST", "/v1/completions", self.request(prompt, max_tokens) | more)["choices"][0]

    def stream(self, prompt, max_tokens):
        """Seconds until each event of a streamed greedy completion, and its text."""
        body = self.request(prompt, max_tokens) | {"stream": True}
        with contextlib.closing(http.client.HTTPConnection(self.address, timeout=left_s())) as connection:
            began, times, text = time.perf_counter(), [], ""
            connection.request("POST", "/v1/completions", json.dumps(body), {"content-type": "application/json"})
            response = connection.getresponse()
            if response.status != 200:
                raise Failed(f"a stream answered {response.status}: {response.read(200).decode()}")
            for line in response:
                if line.startswith(b"data: {"):
                    times.append(time.perf_counter() - began)
                    text += json.loads(line[6:])["choices"][0]["text"]
        return times, text

    def request(self, prompt, max_tokens):
        return {"model": self.model, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True}


class Failed(Exception):
    """Why a part has no result."""


@contextlib.contextmanager
def serve(binary, model, device, logs, *more):
    """`stator serve` on a device."""
    command = [binary, "serve", model, "--device", device, "--listen", "127.0.0.1:0", *more]
    name = f"serve-{Path(model).name}-{device.replace(':', '')}"
    with Process(name, command, logs) as process:
        address = said(process, r"http://([\d.:]+)/v1")
        yield Served(address)


@contextlib.contextmanager
def pair(binary, model, device, logs, nats_server):
    """A prefill and a decode worker, each a process, behind a gateway and a router; and the decode worker's log."""
    port = free_port()
    url = f"nats://127.0.0.1:{port}"
    store = Path(logs, "nats")
    worker = ["--nats", url, "--model", model, "--device", device, *POOL]
    debug = {"STATOR_LOG": "decode_worker=debug"}
    with contextlib.ExitStack() as stack:
        start = lambda name, command, environment=None: stack.enter_context(Process(name, command, logs, environment))
        nats = start("nats", [nats_server, "-a", "127.0.0.1", "-p", port, "-js", "-sd", store])
        until_open(port, nats)
        router = start("router", [binary, "router", "--nats", url])
        prefill = start("prefill-worker", [binary, "prefill-worker", *worker, "--kv-listen", "127.0.0.1:0"])
        decode = start("decode-worker", [binary, "decode-worker", *worker], debug)
        gateway = start("gateway", [binary, "gateway", "--nats", url, "--listen", "127.0.0.1:0"])
        for process in (router, prefill, decode):
            said(process, r"(\S+) ready\b")
        address = said(gateway, r"http://([\d.:]+)")
        yield Served(address), decode.log


@contextlib.contextmanager
def workers(binary, model, device, logs, nats_server, count, *more):
    """Yields something that starts another decode worker each time it is asked, up to `count`."""
    port = free_port()
    url = f"nats://127.0.0.1:{port}"
    command = [binary, "decode-worker", "--nats", url, "--model", model, "--device", device, *POOL, *more]
    with contextlib.ExitStack() as stack:
        start = lambda name, command: stack.enter_context(Process(name, command, logs))
        title = "-".join(["workers", *more])
        nats = start(f"{title}-nats", [nats_server, "-a", "127.0.0.1", "-p", port, "-js", "-sd", Path(logs, title)])
        until_open(port, nats)

        def each():
            for index in range(count):
                said(start(f"{title}-{index}", command), r"(\S+) ready\b")
                yield index

        yield each()


@contextlib.contextmanager
def busy(served, streams, tokens):
    """Streams that run beside what is done here, until it is done or they have so many tokens."""
    ending = threading.Event()

    def stream(salt):
        # Those that end early begin anew; one that is cut at the end is nobody's.
        with contextlib.suppress(OSError, http.client.HTTPException, Failed):
            while not ending.is_set():
                served.complete(prompt(50, f"stream {salt}"), tokens)

    threads = [threading.Thread(target=stream, args=(salt,), daemon=True) for salt in range(streams)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ending.set()


def until_open(port, process):
    for _ in until_deadline():
        process.must_run()
        with contextlib.suppress(OSError):
            return socket.create_connection(("127.0.0.1", port), timeout=1).close()
    raise Failed(f"nothing listens on port {port}")


def said(process, pattern):
    """The first group of what a process says."""
    end = time.monotonic() + left_s()
    while time.monotonic() < end:
        text = process.log.read_text(errors="replace")
        if match := re.search(pattern, text):
            return match[1]
        if process.process.poll() is not None:
            raise Failed(f"it ended: {' '.join(text.split())[-300:]}")
        time.sleep(0.05)
    raise Failed("it was not ready in time")


def loadtest(binary, served, concurrency, input_tokens, output_tokens, seconds):
    """The report of a closed loop."""
    command = [binary, "loadtest", f"http://{served.address}", "--concurrency", concurrency, "--input-tokens",
               input_tokens, "--output-tokens", output_tokens, "--warmup", "2s", "--duration", f"{seconds}s",
               "--json", "-"]
    done = run_to_end(command)
    if done.returncode != 0:
        raise Failed((done.stderr.strip().splitlines() or ["the load generator failed"])[-1])
    report = json.loads(done.stdout)
    if report["requests"]["ok"] != sum(report["requests"].values()):
        raise Failed(f"requests failed: {report['failures']}")
    return report


def prompt(tokens, salt):
    """Token ids; another salt gives others."""
    numbers = random.Random(salt)
    return [numbers.randrange(*TOKENS) for _ in range(tokens)]
