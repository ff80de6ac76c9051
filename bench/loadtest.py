"""Measures how many streamed events `stator loadtest` takes in per second.

    python3 bench/loadtest.py target/release/stator target/release/examples/trivial_server

The server does nothing but stream (loadtest/examples/trivial_server.rs) and shares the CPUs with
the load generator. Prints one row per number of events that the server puts into one write. Uses
nothing but the standard library.
"""

import argparse
import json
import re
import statistics
import subprocess

CONCURRENCY = 16
OUTPUT_TOKENS = 256
EVENTS_PER_WRITE = (1, 8)


def measure(binary, trivial_server, events_per_write, duration):
    """One run with processes of its own; events per second, and CPU seconds of both sides."""
    command = [trivial_server, "127.0.0.1:0", str(events_per_write)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        address = re.search(r"listening on (\S+)", server.stdout.readline()).group(1)
        loadtest = [binary, "loadtest", f"http://{address}", "--concurrency", str(CONCURRENCY),
                    "--duration", duration, "--warmup", "1s", "--output-tokens", str(OUTPUT_TOKENS),
                    "--pid", str(server.pid), "--json", "-"]
        result = subprocess.run(loadtest, capture_output=True, text=True)
    finally:
        server.kill()
        server.wait()
    if result.returncode != 0:
        raise SystemExit(result.stderr)
    report = json.loads(result.stdout)
    requests = report["requests"]
    if requests["ok"] != sum(requests.values()):
        raise SystemExit(result.stderr)
    generator, served = (process["cpu_percent"] for process in report["processes"])
    return report["rates"]["events_per_s"], generator, served


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("binary")
    parser.add_argument("trivial_server")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--duration", default="5s")
    arguments = parser.parse_args()
    print(f"{'streamed events/s':26}{'min':>10}{'median':>10}{'max':>10}"
          f"{'generator CPU %':>18}{'server CPU %':>15}")
    for events_per_write in EVENTS_PER_WRITE:
        runs = [measure(arguments.binary, arguments.trivial_server, events_per_write,
                        arguments.duration) for _ in range(arguments.runs)]
        events, generator, served = zip(*runs)
        row = (min(events), statistics.median(events), max(events))
        print(f"{f'{events_per_write} per write':26}" + "".join(f"{value:10,.0f}" for value in row)
              + f"{statistics.median(generator):18.0f}{statistics.median(served):15.0f}")


if __name__ == "__main__":
    main()
