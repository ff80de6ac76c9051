"""Measures the whole path with mock workers that take no time: what the rest of it costs.

    python3 bench/mock.py target/release/stator [--runs N] [--duration 5s]

`serve --engine mock` and `stator loadtest` share the CPUs. Prints one row per kind of request.
Uses nothing but the standard library.
"""

import argparse
import json
import re
import signal
import subprocess

from figures import print_figures

# Concurrency, input tokens, output tokens.
KINDS = ((64, 30, 8), (64, 64, 128), (64, 1000, 16))


def measure(binary, kind, duration):
    """One run with processes of its own."""
    concurrency, input_tokens, output_tokens = map(str, kind)
    command = [binary, "serve", "--engine", "mock", "--listen", "127.0.0.1:0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        address = re.search(r"http://([\d.:]+)/v1", server.stdout.readline() +
                            server.stdout.readline()).group(1)
        loadtest = [binary, "loadtest", f"http://{address}", "--concurrency", concurrency,
                    "--duration", duration, "--warmup", "1s", "--input-tokens", input_tokens,
                    "--output-tokens", output_tokens, "--pid", str(server.pid), "--json", "-"]
        result = subprocess.run(loadtest, capture_output=True, text=True)
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(timeout=30)
    if result.returncode != 0:
        raise SystemExit(result.stderr)
    report = json.loads(result.stdout)
    requests, rates = report["requests"], report["rates"]
    if requests["ok"] != sum(requests.values()):
        raise SystemExit(f"{requests}\n{result.stderr}")
    generator, served = (process["cpu_percent"] for process in report["processes"])
    return {
        "requests/s": rates["requests_per_s"],
        "tokens/s": rates["output_tokens_per_s"],
        "server CPU ms/request": 10 * served / rates["requests_per_s"],
        "server CPU %": served,
        "generator CPU %": generator,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("binary")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--duration", default="5s")
    arguments = parser.parse_args()
    for kind in KINDS:
        runs = [measure(arguments.binary, kind, arguments.duration) for _ in range(arguments.runs)]
        print("{} at once, {} tokens in, {} out".format(*kind))
        print_figures({figure: [run[figure] for run in runs] for figure in runs[0]})


if __name__ == "__main__":
    main()
