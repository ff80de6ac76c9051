"""Measures `stator serve` from outside: start, memory, time to first token, decode speed.

    python3 bench/serve.py target/release/stator [--model DIR] [--runs N]

Prints one row per figure with minimum, median and maximum over the runs. Each run starts a new
process. Uses nothing but the standard library.
"""

import argparse
import http.client
import json
import random
import re
import signal
import subprocess
import threading
import time

from figures import print_figures

READY_DEADLINE_S = 60
PROMPT_TOKENS = 1000
SEEN_TOKENS = 900
OUTPUT_TOKENS = 200


class Server:
    """A process that serves a model; ready when constructed."""

    def __init__(self, binary, model, log=None):
        began = time.perf_counter()
        command = [binary, "serve", *([model] if model else []), "--listen", "127.0.0.1:0"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        self.name = self.address = None
        while self.address is None:
            line = self.process.stdout.readline()
            if not line or time.perf_counter() - began > READY_DEADLINE_S:
                raise SystemExit(f"{binary} did not become ready")
            if match := re.match(r"serving (\S+)", line):
                self.name = match.group(1)
            if match := re.search(r"http://([\d.:]+)/v1", line):
                self.address = match.group(1)
        self.get("/health/ready")
        self.ready_s = time.perf_counter() - began

    def get(self, path):
        connection = http.client.HTTPConnection(self.address, timeout=READY_DEADLINE_S)
        connection.request("GET", path)
        status = connection.getresponse().status
        if status != 200:
            raise SystemExit(f"GET {path} answered {status}")

    def resident_mib(self):
        with open(f"/proc/{self.process.pid}/status") as status:
            return int(re.search(r"VmRSS:\s+(\d+)", status.read()).group(1)) / 1024

    def stream(self, prompt, max_tokens):
        """Streams a completion; returns seconds to the first and to the last event, and the number
        of prompt tokens that were cached."""
        body = {
            "model": self.name,
            "prompt": prompt,
            "max_tokens": max_tokens,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        connection = http.client.HTTPConnection(self.address, timeout=300)
        began = time.perf_counter()
        headers = {"content-type": "application/json"}
        connection.request("POST", "/v1/completions", json.dumps(body), headers)
        response = connection.getresponse()
        if response.status != 200:
            raise SystemExit(response.read().decode())
        response.readline()
        first = time.perf_counter() - began
        rest = response.read().decode()
        took = time.perf_counter() - began
        cached = re.findall(r'"cached_tokens": ?(\d+)', rest)
        return first, took, int(cached[-1])

    def stop(self):
        self.process.send_signal(signal.SIGINT)
        if self.process.wait(timeout=30) != 0:
            raise SystemExit("the server did not end cleanly")


def prompt(tokens, salt):
    """Token ids; another salt gives others, so that nothing of them is cached."""
    numbers = random.Random(salt)
    return [numbers.randrange(3, 250) for _ in range(tokens)]


def decode_rate(server, streams, salt):
    """Tokens per second over so many streams at once, after their first tokens."""
    results = []

    def one(index):
        results.append(server.stream(prompt(16, salt + index), OUTPUT_TOKENS))

    threads = [threading.Thread(target=one, args=(index,)) for index in range(streams)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if len(results) < streams:
        raise SystemExit("a stream failed")
    first = min(result[0] for result in results)
    last = max(result[1] for result in results)
    return streams * (OUTPUT_TOKENS - 1) / (last - first)


def measure(binary, model, run):
    """One process, all figures."""
    server = Server(binary, model)
    figures = {"ready (s)": server.ready_s, "idle RSS (MiB)": server.resident_mib()}
    server.stream(prompt(64, 1), 8)
    seen = prompt(PROMPT_TOKENS, 1000 + run)
    figures["TTFT, 1,000 new prompt tokens (ms)"] = 1000 * server.stream(seen, 1)[0]
    figures["TTFT, the same prompt again (ms)"] = 1000 * server.stream(seen, 1)[0]
    partly_seen = seen[:SEEN_TOKENS] + prompt(PROMPT_TOKENS - SEEN_TOKENS, 5000 + run)
    first, _, cached = server.stream(partly_seen, 1)
    figures["TTFT, 900 of 1,000 were seen (ms)"] = 1000 * first
    figures["  prompt tokens not computed (%)"] = 100 * cached / PROMPT_TOKENS
    figures["  TTFT in proportion to new (%)"] = (
        100_000 * first / figures["TTFT, 1,000 new prompt tokens (ms)"]
    )
    figures["decode, 1 stream (tokens/s)"] = decode_rate(server, 1, 2000)
    figures["decode, 8 streams (tokens/s)"] = decode_rate(server, 8, 3000)
    figures["RSS after that (MiB)"] = server.resident_mib()
    server.stop()
    return figures


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("binary")
    parser.add_argument("--model", help="model directory; the bundled model if absent")
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    runs = [measure(arguments.binary, arguments.model, run) for run in range(arguments.runs)]
    print_figures({figure: [run[figure] for run in runs] for figure in runs[0]})


if __name__ == "__main__":
    main()
