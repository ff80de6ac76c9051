"""The tables of a run."""

import os
import platform
import re
import statistics
from pathlib import Path

import peer

MODEL_NAME = re.compile(r"^model name\s*: (.*)$", re.MULTILINE)


def print_setting(engines, rounds):
    cpus = MODEL_NAME.search(Path("/proc/cpuinfo").read_text())
    paths = {engine.facts["kernel_path"] for engine in engines.running.values()}
    print(f"Machine: {os.cpu_count()} CPUs ({cpus[1] if cpus else platform.machine()}), "
          f"Linux {platform.release()}. Kernel path {', '.join(sorted(paths))}. llama.cpp: {peer.version()}, "
          f"{peer.THREADS} threads, its default settings. Models of bench/engine/models.py. {rounds} "
          "interleaved rounds in alternating order: median (least to most); ratios are taken round by round.\n")


def print_limits(limits):
    """What the machine can do."""
    print("| Limit, 2 threads | median (least to most) |\n|---|--:|")
    names = {"bandwidth": ("memory read, GB/s", 1e9), "of_weights": ("mapped weights read, GB/s", 1e9)}
    for key in limits[0]:
        name, unit = names.get(key, (key.replace("_", " "), 1))
        print(f"| {name} | {spread([limit[key] / unit for limit in limits])} |")
    print()


def print_cases(figures, engines, limits):
    """One row per case: tokens per second, and what was used of the limits."""
    print("| Case | ours, tok/s | llama.cpp, tok/s | ratio | ours, tok per CPU s | llama.cpp, tok per CPU s "
          "| ratio | limit | ours, share of it | llama.cpp, share of it |")
    print("|---|--:|--:|--:|--:|--:|--:|---|--:|--:|")
    for case, sides in figures.items():
        print(row(case, sides, engines, limits))
    print_goals(figures, engines, limits)


def row(case, sides, engines, limits):
    mine, its = sides.get("ours"), sides["llama.cpp"]
    if mine is None:
        reason = engines.refused.get((case.shape.name, case.type_name), "the run ended before")
        return f"| {case.title()} | not measured: {reason} | {spread(per_s(its))} |" + " |" * 7
    shares = [spread(shares_of(case, side, engines, limits), 2) for side in (mine, its)]
    cells = [case.title(), spread(per_s(mine)), spread(per_s(its)), spread(ratios(mine, its), 2),
             spread(per_cpu_s(mine)), spread(per_cpu_s(its)), spread(ratios(mine, its, per_cpu_s), 2),
             "arithmetic" if case.prompt else "bandwidth", *shares]
    return "| " + " | ".join(cells) + " |"


def print_goals(figures, engines, limits):
    print("\n| Goal | reach | aim | measured | |\n|---|--:|--:|--:|---|")
    for case, sides in figures.items():
        mine, its = sides.get("ours"), sides["llama.cpp"]
        goals = [("ratio to llama.cpp", case.ratio, lambda: ratios(mine, its)),
                 ("share of the bandwidth limit", case.share,
                  lambda: shares_of(case, mine, engines, limits))]
        for name, goal, values in goals:
            if goal is not None and mine is not None:
                reach, aim = goal
                reached = statistics.median(values())
                verdict = "aim" if reached >= aim else "reached" if reached >= reach else "**missed**"
                print(f"| {case.title()}: {name} | {reach} | {aim} | {reached:.2f} | {verdict} |")
    print()


def per_s(side):
    return [result["tokens"] / result["wall_s"] for result in side]


def per_cpu_s(side):
    return [result["tokens"] / max(result["cpu_s"], 1e-9) for result in side]


def ratios(mine, its, rate=per_s):
    return [a / b for a, b in zip(rate(mine), rate(its))]


def shares_of(case, side, engines, limits):
    """Of the bandwidth: a step reads all weights once. Of the arithmetic: what a prompt multiplies, by
    the best instructions that the CPU has for such weights."""
    engine = engines.of(case.shape, case.type_name)
    if case.prompt:
        attended = case.prompt * (case.prompt + 1) / 2
        operations = 2 * (case.prompt * case.shape.multiplications_per_token
                          + attended * case.shape.attention_multiplications)
        peaks = [peak(limit, case.type_name) for limit in limits]
        return [operations / result["wall_s"] / 1e9 / peak for result, peak in zip(side, peaks)]
    read = engine.weight_bytes() * case.steps
    return [read / result["wall_s"] / limit["bandwidth"] for result, limit in zip(side, limits)]


def peak(limit, type_name):
    """Of the instructions that such weights could use."""
    wide = ("bf16_gflop_per_s", "f32_gflop_per_s")
    names = wide if type_name in ("BF16", "F16") else ("int8_gop_per_s", *wide)
    return next((limit[name] for name in names if limit.get(name)), float("nan"))


def spread(values, digits=None):
    """Median and extremes."""
    form = (lambda value: f"{value:.{digits}f}") if digits is not None else (lambda value: f"{value:,.4g}")
    return f"{form(statistics.median(values))} ({form(min(values))} to {form(max(values))})"
