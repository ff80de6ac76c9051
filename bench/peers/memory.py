"""How much memory our gateway takes: after many requests, and with many idle streams."""

import contextlib
import json
import resource
import subprocess
import sys
from pathlib import Path

from loads import LOAD, PATH, Load, run, write_bodies
from processes import rss_mib
import systems

BATCH_REQUESTS = 5000
AT_ONCE = 64
IDLE_STEP_US = 4_000_000
# So that all prompts are computed in a few steps, and few sequences wait for them.
BATCHED_TOKENS = 300_000
STREAMS_PER_WORKER = 1000


def after_many_requests(setting, requests):
    """Prints the resident memory of gateway and router in the course of so many requests."""
    batch = max(AT_ONCE, min(BATCH_REQUESTS, requests // 20))
    with systems.together(lambda stack: systems.stator(setting, stack, 0)) as (stator,):
        router, gateway = stator.front
        rows = [(0, rss_mib([gateway]), rss_mib([router]))]
        for number in range(requests // batch):
            load = Load("memory", 30, 8, number % 2 == 1, AT_ONCE, batch)
            bodies = write_bodies(load, Path(setting.model).name, setting.logs, number)
            run(stator, load, bodies)
            bodies.unlink()
            rows.append((batch * (number + 1), rss_mib([gateway]), rss_mib([router])))
    print(f"\nResident memory, {requests} short requests, {AT_ONCE} at once, every other batch streamed. "
          f"A process that loads the tokenizer alone grows by {tokenizer_mib(setting):.1f} MiB.\n")
    print("| requests | gateway, MiB | router, MiB |\n|--:|--:|--:|")
    for requests_so_far, gateway_mib, router_mib in rows[:: max(1, len(rows) // 10)]:
        print(f"| {requests_so_far} | {gateway_mib:.1f} | {router_mib:.1f} |")
    half = rows[len(rows) // 2 :]
    for place, name in ((1, "gateway"), (2, "router")):
        slope = slope_per_request([(row[0], row[place]) for row in half]) * 100_000
        print(f"\nSlope of the {name} over the last half: {slope:+.2f} MiB per 100,000 requests.")


def slope_per_request(points):
    """Least squares."""
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    above = sum((x - mean_x) * (y - mean_y) for x, y in points)
    return above / max(1e-9, sum((x - mean_x) ** 2 for x, _ in points))


LOAD_TOKENIZER = """
import sys
from tokenizers import Tokenizer
def kib():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS"))
before = kib()
tokenizer = Tokenizer.from_file(sys.argv[1])
tokenizer.encode("some text")
print((kib() - before) / 1024)
"""


def tokenizer_mib(setting):
    command = [sys.executable, "-c", LOAD_TOKENIZER, str(Path(setting.model) / "tokenizer.json")]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def idle_streams(setting, streams):
    """Prints what each of many streams takes whose worker makes a token every few seconds."""
    allow_files(streams + 1000)
    workers = -(-streams // STREAMS_PER_WORKER)
    setting.sequences = 2 * STREAMS_PER_WORKER
    options = ("--max-num-batched-tokens", BATCHED_TOKENS)
    start = lambda stack: systems.stator(
        setting, stack, IDLE_STEP_US, *options, requests_max=streams, workers=workers)
    load = Load("idle", 30, 1000, True, streams, streams)
    bodies = write_bodies(load, Path(setting.model).name, setting.logs, "idle")
    with systems.together(start) as (stator,):
        router, gateway = stator.front
        before = rss_mib([gateway]), rss_mib([router])
        with hold(stator.port, load, bodies) as holder:
            held = json.loads(holder.stdout.readline())
            after = rss_mib([gateway]), rss_mib([router])
    begun = held["first_tokens"]
    # A worker refuses what comes within one step beyond its queue.
    if begun < 0.95 * load.at_once:
        raise SystemExit(f"only {begun} streams began: {held}")
    each_bytes = 1024 * 1024 * (after[0] - before[0]) / begun
    print(f"\n{begun} streams over one gateway and {workers} workers, a token every "
          f"{IDLE_STEP_US / 1e6:.0f} s: gateway {before[0]:.1f} -> {after[0]:.1f} MiB, **{each_bytes:,.0f} "
          f"bytes per stream**; router {before[1]:.1f} -> {after[1]:.1f} MiB.")


@contextlib.contextmanager
def hold(port, load, bodies):
    """A load generator that opens streams and keeps them; its connections end with it."""
    command = [LOAD, port, PATH, bodies, load.at_once, load.requests, "hold"]
    holder = subprocess.Popen(list(map(str, command)), stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE, text=True)
    try:
        yield holder
    finally:
        holder.communicate()


def allow_files(files):
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < files:
        raise SystemExit(f"{files} open files are needed and {hard} allowed: ulimit -Hn {files}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
