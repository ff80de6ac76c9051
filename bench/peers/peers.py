"""Measures our gateway and router beside Dynamo's frontend and smg, in one interleaved run.

    make bench-peers
    target/peers/bin/python bench/peers/peers.py target/release/stator [--rounds N] [--only PART]...

Everything runs in a network namespace that has loopback and nothing else. See README.md.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import memory
import report
import systems
from loads import Load, run, write_bodies

MODEL = Path("target/peers-model")
HERE = Path(__file__).parent
IN_NAMESPACE = "STATOR_PEERS_IN_NAMESPACE"
STEP_US = {"requests": 0, "streams": 10_000}

SHORT_WORDS, LONG_WORDS = 30, 2000
REQUESTS = {16: 2000, 64: 4000, 256: 6000}
LOADS = [
    Load("short", SHORT_WORDS, 8, False, at_once, REQUESTS[at_once]) for at_once in REQUESTS
] + [
    Load("short streamed", SHORT_WORDS, 8, True, at_once, REQUESTS[at_once]) for at_once in REQUESTS
] + [
    Load("2,000 words", LONG_WORDS, 8, False, 16, 300),
    Load("one token", SHORT_WORDS, 1, False, 1, 400),
    Load("stream alone", SHORT_WORDS, 8, True, 1, 400),
] + [
    Load("streams", SHORT_WORDS, 256, True, at_once, 2 * at_once) for at_once in (16, 64, 256)
]
WARM_UP = Load("warm-up", SHORT_WORDS, 8, True, 16, 400)
PARTS = ("requests", "streams", "memory", "idle")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("binary")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", action="append", choices=PARTS, help="parts to measure; all if absent")
    parser.add_argument("--scale", type=float, default=1, help="how many of the requests to send")
    arguments = parser.parse_args()
    enter_namespace()
    prepare()
    parts = arguments.only or PARTS
    with tempfile.TemporaryDirectory(prefix="peers-", dir="target") as logs:
        setting = systems.Setting(arguments.binary, MODEL, logs)
        figures = {}
        for group in ("requests", "streams"):
            if group in parts:
                loads = [scaled(load, arguments.scale) for load in LOADS if load.step_group == group]
                measure(setting, group, loads, arguments.rounds, figures)
        report.print_table(figures, setting)
        if "memory" in parts:
            memory.after_many_requests(setting, int(100_000 * arguments.scale))
        if "idle" in parts:
            memory.idle_streams(setting, int(10_000 * arguments.scale))


def measure(setting, group, loads, rounds, figures):
    """Puts each load on each system in turn, in every round; collects what came out, per load."""
    step_us = STEP_US[group]
    starts = [systems.stator, systems.dynamo, systems.smg]
    starts = [lambda stack, start=start: start(setting, stack, step_us) for start in starts]
    if group == "streams":
        tokens = loads[0].tokens
        starts.append(lambda stack: systems.bare(setting, stack, step_us, tokens))
    else:
        starts.append(lambda stack: systems.serve(setting, stack, step_us))
    with systems.together(*starts) as running:
        warm_up(setting, running)
        for number in range(rounds):
            for load in loads:
                bodies = write_bodies(load, MODEL.name, setting.logs, number)
                turn = number % len(running)
                for system in running[turn:] + running[:turn]:
                    if system.name == "stator serve" and load.at_once > 1:
                        continue
                    measured = run(system, load, bodies)
                    figures.setdefault(load, {}).setdefault(system.name, []).append(measured)
                    print(f"round {number + 1}, {load.title()}: {system.name} "
                          f"{measured['front_cpu_s']:.2f} s", file=sys.stderr, flush=True)
                bodies.unlink()


def warm_up(setting, running):
    bodies = write_bodies(WARM_UP, MODEL.name, setting.logs, "first")
    for system in running:
        if system.name != "bare writes":
            run(system, WARM_UP, bodies)


def scaled(load, scale):
    requests = max(load.at_once, int(load.requests * scale))
    return Load(load.name, load.words, load.tokens, load.stream, load.at_once, requests)


def enter_namespace():
    """Runs this again where there is no network but loopback: some peers listen on all addresses."""
    if os.environ.get(IN_NAMESPACE):
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        return
    for tool in ("unshare", "ip", "cc"):
        if shutil.which(tool) is None:
            raise SystemExit(f"no {tool}: install util-linux, iproute2 and a C compiler")
    new = ["unshare", "--net"] + ([] if os.getuid() == 0 else ["--map-root-user"])
    environment = {**os.environ, IN_NAMESPACE: "1"}
    os.execvpe(new[0], new + [sys.executable, *sys.argv], environment)


def prepare():
    """The vocabulary and the programs in C, where they are not there yet."""
    for name in ("load", "bare"):
        source, program = HERE / f"{name}.c", Path("target/peers") / name
        if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
            subprocess.run(["cc", "-O2", "-o", program, source], check=True)
    if not (MODEL / "tokenizer.json").exists():
        subprocess.run([sys.executable, HERE / "vocabulary.py", MODEL], check=True)


if __name__ == "__main__":
    main()
