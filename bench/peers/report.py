"""The table of a run."""

import os
import platform
import re
import statistics
from pathlib import Path

import systems

MODEL_NAME = re.compile(r"^model name\s*: (.*)$", re.MULTILINE)
ROW = "| {} | {} | {} | {} | {} | {} | {} | {} | {} |"


def print_table(figures, setting):
    """One row per load and system: medians over the rounds, with the least and the most of CPU."""
    if not figures:
        return
    print_setting(figures, setting)
    print(ROW.format("Load", "System", "CPU s", "per", "ours / this", "its worker, CPU s per 1,000 requests",
                     "first token p50, ms", "latency p50 / p99, ms", "events per request"))
    print("|---|---|--:|---|--:|--:|--:|--:|--:|")
    for load, by_system in figures.items():
        for system, rounds in by_system.items():
            print(row(load, system, rounds, by_system))
    others = [measured["others_cores"] for by_system in figures.values()
              for rounds in by_system.values() for measured in rounds]
    print(f"\nMeanwhile other processes of the machine used {statistics.median(others):.2f} cores "
          f"(median; at most {max(others):.2f}).")
    print_goals(figures)


# Load, figure of ours, system it is divided by or none, the most it should be.
GOALS = [
    ("short", "cpu_s_per_1000_requests", None, 0.20),
    ("short", "cpu_s_per_1000_requests", "dynamo", 0.5),
    ("short streamed", "cpu_s_per_1000_requests", None, 0.20),
    ("short streamed", "cpu_s_per_1000_requests", "dynamo", 0.5),
    ("2,000 words", "cpu_s_per_1000_requests", "dynamo", 0.5),
    ("streams", "cpu_s_per_million_tokens", "bare writes", 2),
    ("streams", "cpu_s_per_million_tokens", "dynamo", 0.5),
    ("one token", "latency_p50_ms", None, 0.5),
    ("stream alone", "first_p50_ms", None, 1),
]
GOALS_IN_ONE_PROCESS = [("one token", "latency_p50_ms", None, 0.3), ("stream alone", "first_p50_ms", None, 1)]


def print_goals(figures):
    """What ours should reach, and what it did."""
    print("\n| Goal | at most | measured |\n|---|--:|--:|")
    for ours, goals in (("stator", GOALS), ("stator serve", GOALS_IN_ONE_PROCESS)):
        for name, figure, other, most in goals:
            for load, by_system in figures.items():
                if load.name == name and ours in by_system:
                    measured = goal_figure(by_system, ours, figure, other)
                    against = f" / {other}" if other else ""
                    words = figure.replace("_", " ")
                    print(f"| {load.title()}: {ours}{against}, {words} | {most} | {measured:.3g} |")


def goal_figure(by_system, ours, figure, other):
    own = [measured[figure] for measured in by_system[ours]]
    if other is None:
        return statistics.median(own)
    others = [measured[figure] for measured in by_system[other]]
    return statistics.median(mine / max(its, 1e-9) for mine, its in zip(own, others))


def row(load, system, rounds, by_system):
    key, unit = cpu_figure(load)
    median = lambda name: statistics.median(measured[name] for measured in rounds)
    cpu = [measured[key] for measured in rounds]
    spread = f"{statistics.median(cpu):.3g} ({min(cpu):.3g} to {max(cpu):.3g})"
    ratio = ratio_of_ours(system, by_system, key)
    return ROW.format(
        load.title(), system, spread, unit, "" if ratio is None else f"{ratio:.2f}",
        f"{median('worker_cpu_s_per_1000_requests'):.2f}", f"{median('first_p50_ms'):.2f}",
        f"{median('latency_p50_ms'):.2f} / {median('latency_p99_ms'):.2f}",
        f"{median('events_per_request'):.1f}" if load.stream else "")


def cpu_figure(load):
    if load.name == "streams":
        return "cpu_s_per_million_tokens", "million tokens"
    return "cpu_s_per_1000_requests", "1,000 requests"


def ratio_of_ours(system, by_system, key):
    """Ours divided by the other's, round by round; the median."""
    if system == "stator" or "stator" not in by_system:
        return None
    return goal_figure(by_system, "stator", key, system)


def print_setting(figures, setting):
    cpus = MODEL_NAME.search(Path("/proc/cpuinfo").read_text())
    versions = ", ".join(f"{name} {version}" for name, version in systems.versions().items())
    rounds = max(len(rounds) for by_system in figures.values() for rounds in by_system.values())
    print(f"Machine: {os.cpu_count()} CPUs ({cpus[1] if cpus else platform.machine()}), "
          f"Linux {platform.release()}. {versions}, Python {platform.python_version()}.")
    print(f"Medians of {rounds} interleaved rounds (least to most in brackets); each prompt is new. "
          "Byte-level BPE of 32,768 tokens (bench/peers/vocabulary.py).")
    for name in dict.fromkeys((load.name, load.words, load.tokens) for load in figures):
        print(f"- {name[0]}: {name[1]} words in ({prompt_tokens(setting, name[1])} tokens "
              f"without the chat template), {name[2]} tokens out")
    print("CPU is of `stator gateway` + `stator router`, of Dynamo's frontend, of smg's gateway; the workers "
          "(mocks; for smg a `stator serve`, to which it passes text without tokenizing it) are apart.\n")


def prompt_tokens(setting, words):
    from language import Language
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(Path(setting.model) / "tokenizer.json"))
    texts = [Language.shared().text(words, f"count {number}") for number in range(20)]
    return round(statistics.mean(len(tokenizer.encode(text).ids) for text in texts))
