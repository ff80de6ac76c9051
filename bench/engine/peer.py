"""llama.cpp's programs, which whoever measures has built: README.md says how."""

import json
import os
import subprocess
import threading
import time
from pathlib import Path

THREADS = 2
SAMPLE_INTERVAL_S = 0.05
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
PROGRAMS = {
    "LLAMA_BENCH": "llama-bench",
    "LLAMA_BATCHED_BENCH": "llama-batched-bench",
    "LLAMA_SERVER": "llama-server",
    "LLAMA_QUANTIZE": "llama-quantize",
}


def binary(variable):
    """The program that an environment variable names."""
    path = os.environ.get(variable)
    if not path:
        raise SystemExit(f"{variable} is not set; build llama.cpp as bench/engine/README.md says, "
                         f"and let it name {PROGRAMS[variable]}")
    if not os.access(path, os.X_OK) or Path(path).is_dir():
        raise SystemExit(f"{variable} names {path}, which is no program; let it name {PROGRAMS[variable]}")
    return path


def decode(model, batch, context, steps):
    """Wall and CPU seconds of `steps` tokens for each of `batch` sequences after `context` others. For
    one sequence after nothing by llama-bench, otherwise by llama-batched-bench."""
    if batch == 1 and context <= 1:
        return single(model, "-p", 0, "-n", steps)
    return batches(model, [batch], context, steps)[batch]


def prefill(model, tokens):
    """The same for a prompt."""
    return single(model, "-p", tokens, "-n", 0)


def decode_at(model, context, steps):
    """The same for the tokens of one sequence after so many, by llama-bench."""
    return single(model, "-p", 0, "-n", steps, "-d", context)


def single(model, *test):
    command = [binary("LLAMA_BENCH"), "-m", model, "-t", THREADS, *test, "-r", 1, "-o", "jsonl"]
    run = watched(command)
    (ended, result), = run.results
    wall_s = sum(result["samples_ns"]) / 1e9
    return {"tokens": result["n_prompt"] + result["n_gen"], "wall_s": wall_s,
            "cpu_s": run.cpu_between(ended - wall_s, ended)}


def batches(model, sizes, context, steps):
    """`{size: the same}` for batches of several sizes."""
    room = max(sizes) * (context + steps)
    command = [binary("LLAMA_BATCHED_BENCH"), "-m", model, "-t", THREADS, "-c", room, "-npp", context,
               "-ntg", steps, "-npl", ",".join(map(str, sizes)), "--output-format", "jsonl"]
    run = watched(command)
    return {result["pl"]: {"tokens": result["pl"] * result["tg"], "wall_s": result["t_tg"],
                           "cpu_s": run.cpu_between(ended - result["t_tg"], ended)}
            for ended, result in run.results}


def version(variable="LLAMA_BATCHED_BENCH"):
    """What a program is, for the record."""
    shown = subprocess.run([binary(variable), "--version"], capture_output=True, text=True)
    lines = (shown.stdout + shown.stderr).splitlines()
    return ", ".join(line.strip() for line in lines if line.startswith(("version", "built with")))


class Run:
    """What a process has written, and how much CPU it had used at any time."""

    def __init__(self):
        # When it came, and what it says.
        self.results = []
        # Time, CPU seconds.
        self.used = []

    def cpu_between(self, begin, end):
        return self.cpu_at(end) - self.cpu_at(begin)

    def cpu_at(self, moment):
        """Interpolated."""
        before = max((sample for sample in self.used if sample[0] <= moment), default=self.used[0])
        after = min((sample for sample in self.used if sample[0] > moment), default=self.used[-1])
        if after[0] <= before[0]:
            return before[1]
        share = min(1.0, max(0.0, (moment - before[0]) / (after[0] - before[0])))
        return before[1] + share * (after[1] - before[1])


def watched(command):
    """Runs a program that writes JSON objects, a line each, beside other lines."""
    command = list(map(str, command))
    run = Run()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    messages = []
    readers = [threading.Thread(target=sample, args=(process.pid, run.used)),
               threading.Thread(target=lambda: messages.extend(process.stderr))]
    for reader in readers:
        reader.start()
    others = []
    for line in process.stdout:
        if line.startswith("{"):
            run.results.append((time.monotonic(), json.loads(line)))
        else:
            others.append(line)
    readers[1].join()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    run.used.append((time.monotonic(), usage.ru_utime + usage.ru_stime))
    readers[0].join()
    run.used.sort()
    if process.returncode != 0 or not run.results:
        raise SystemExit(f"{' '.join(command)} gave no result:\n{''.join((others + messages)[-20:])}")
    return run


def sample(pid, used):
    """Reads the CPU time of a process until it has ended."""
    while (ticks := ticks_of(pid)) is not None:
        used.append((time.monotonic(), ticks / TICKS_PER_S))
        time.sleep(SAMPLE_INTERVAL_S)


def ticks_of(pid):
    """None once it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else int(fields[11]) + int(fields[12])
