"""Measures what a thousand workers that come and go cost a gateway and a router.

    python3 bench/swarm.py target/release/stator target/release/examples/swarm \\
        [--nats-server PATH] [--minutes 10] [--workers 250] [--leaves-per-minute 60]

Starts a NATS server, a router, a gateway and four processes of mock workers, kills the NATS server
twice and starts it again with the same store, and prints one row per minute: workers that must be
known, the fewest known beyond that (negative: one was evicted without cause), memory and CPU.
Uses nothing but the standard library.
"""

import argparse
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
import urllib.request

PROCESSES = 4
READY_DEADLINE_S = 120
NATS_AWAY_S = 3
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class NatsServer:
    """A server with JetStream that keeps its port and its store over restarts."""

    def __init__(self, binary, store):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.command = [binary, "-a", "127.0.0.1", "-p", str(port), "-js", "-sd", store]
        self.url = f"nats://127.0.0.1:{port}"
        self.start()

    def start(self):
        self.process = subprocess.Popen(self.command, stderr=subprocess.DEVNULL)

    def kill(self):
        self.process.kill()
        self.process.wait()


class Component:
    """A process of ours that prints where its admin server is."""

    def __init__(self, name, command, address):
        self.name = name
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        began = time.monotonic()
        self.address = None
        while self.address is None:
            line = self.process.stdout.readline()
            if not line or time.monotonic() - began > READY_DEADLINE_S:
                raise SystemExit(f"{name} did not become ready")
            if match := re.search(address + r"\s+http://([\d.:]+)", line):
                self.address = match.group(1)

    def known(self):
        """Workers that it knows."""
        with urllib.request.urlopen(f"http://{self.address}/metrics", timeout=10) as response:
            text = response.read().decode()
        return int(float(re.search(r"^stator_workers_known\S* (\S+)$", text, re.M).group(1)))


class Swarm:
    """A process of mock workers, and the last line that it printed."""

    def __init__(self, command):
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.last = {"living": 0, "settled": 0, "lives": 0}
        threading.Thread(target=self.read, daemon=True).start()

    def read(self):
        for line in self.process.stdout:
            self.last = json.loads(line)


def cpu_s(pid):
    """CPU seconds of a process so far."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def resident_mib(pid):
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status).group(1)) / 1024


class Minute:
    """What was seen within one minute."""

    def __init__(self, components):
        self.began = time.monotonic()
        self.cpu_s = {component.name: cpu_s(component.process.pid) for component in components}
        self.settled, self.spare, self.resident = 0, {}, {}

    def sample(self, components, settled):
        self.settled = max(self.settled, settled)
        for component in components:
            spare = component.known() - settled
            self.spare[component.name] = min(spare, self.spare.get(component.name, spare))
            resident = resident_mib(component.process.pid)
            self.resident[component.name] = max(resident, self.resident.get(component.name, 0))

    def row(self, number, components, lives):
        elapsed = time.monotonic() - self.began
        cells = [f"{number:6}", f"{lives:7}", f"{self.settled:8}"]
        for component in components:
            used = cpu_s(component.process.pid) - self.cpu_s[component.name]
            cells.append(f"{self.spare[component.name]:8}{100 * used / elapsed:8.1f}"
                         f"{self.resident[component.name]:8.1f}")
        return " ".join(cells)


def watch(components, swarms, nats, minutes):
    """Samples each second and prints a row per minute. NATS is killed after a third and after two
    thirds of the time. Returns the fewest spare workers of all."""
    began = time.monotonic()
    kills = [began + 60 * minutes * part / 3 for part in (1, 2)]
    print("minute   lives  settled " + " ".join(
        f"{component.name:>8}  CPU %   MiB " for component in components))
    worst = 0
    for number in range(1, minutes + 1):
        minute = Minute(components)
        while time.monotonic() < began + 60 * number:
            if kills and time.monotonic() > kills[0]:
                kills.pop(0)
                nats.kill()
                time.sleep(NATS_AWAY_S)
                nats.start()
                print(f"        (NATS was away for {NATS_AWAY_S} s)")
            for swarm in swarms:
                if swarm.process.poll() is not None:
                    raise SystemExit("a swarm ended by itself")
            minute.sample(components, sum(swarm.last["settled"] for swarm in swarms))
            time.sleep(1)
        print(minute.row(number, components, sum(swarm.last["lives"] for swarm in swarms)),
              flush=True)
        worst = min(worst, *minute.spare.values())
    return worst


def settle(components, swarms, workers):
    """Waits until all workers live and are known."""
    deadline = time.monotonic() + READY_DEADLINE_S
    while any(component.known() < 0.9 * workers for component in components) or sum(
            swarm.last["settled"] for swarm in swarms) < 0.9 * workers:
        if time.monotonic() > deadline:
            raise SystemExit(f"after {READY_DEADLINE_S} s, known: "
                             f"{[component.known() for component in components]}")
        time.sleep(0.5)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("binary")
    parser.add_argument("swarm")
    parser.add_argument("--nats-server", default=shutil.which("nats-server"))
    parser.add_argument("--minutes", type=int, default=10)
    parser.add_argument("--workers", type=int, default=250, help="per process")
    parser.add_argument("--leaves-per-minute", type=float, default=60, help="per process")
    arguments = parser.parse_args()
    processes = []
    with tempfile.TemporaryDirectory() as store:
        nats = NatsServer(arguments.nats_server, store)
        try:
            router = Component("router", [arguments.binary, "router", "--nats", nats.url], "admin")
            processes.append(router.process)
            gateway = Component("gateway", [arguments.binary, "gateway", "--nats", nats.url,
                                            "--listen", "127.0.0.1:0"], "API")
            processes.append(gateway.process)
            swarms = [Swarm([arguments.swarm, "--nats", nats.url, "--name", f"s{index}",
                             "--workers", str(arguments.workers),
                             "--leaves-per-minute", str(arguments.leaves_per_minute)])
                      for index in range(PROCESSES)]
            processes += [swarm.process for swarm in swarms]
            settle([router, gateway], swarms, PROCESSES * arguments.workers)
            worst = watch([router, gateway], swarms, nats, arguments.minutes)
            print(f"evictions without cause: {-worst}")
        finally:
            for process in processes:
                process.send_signal(signal.SIGKILL)
            nats.kill()


if __name__ == "__main__":
    main()
