"""Measures our engine beside llama.cpp, in one interleaved run, and against what the machine can do.

    make bench-engine
    target/bench-engine/bin/python bench/engine/compare.py [--rounds N] [--only TEXT]... [--small]

LLAMA_BENCH, LLAMA_BATCHED_BENCH, LLAMA_SERVER and LLAMA_QUANTIZE name llama.cpp's programs. See README.md.
"""

import argparse
import sys

import cases
import growth
import models
import ours
import peer
import table


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--growth-rounds", type=int, default=3, help="0: not how cost grows")
    parser.add_argument("--only", action="append", metavar="TEXT", help="cases whose title has it")
    parser.add_argument("--small", action="store_true", help="a tiny model, to see that it runs")
    parser.add_argument("--measure", default=ours.PROGRAM, help="the engine's example")
    arguments = parser.parse_args()
    every = cases.SMALL_CASES if arguments.small else cases.CASES
    wanted = [case for case in every
              if not arguments.only or any(text in case.title() for text in arguments.only)]
    for variable in peer.PROGRAMS:
        peer.binary(variable)
    for case in wanted:
        models.file(case.shape, case.type_name)
    with ours.Engines(arguments.measure) as engines:
        limits, figures = [], {case: {} for case in wanted}
        try:
            measure(engines, arguments.rounds, limits, figures)
        finally:
            # What was measured until something failed is worth seeing too.
            print_tables(engines, limits, figures)
        if arguments.growth_rounds:
            shape = cases.LLAMA_15M if arguments.small else cases.QWEN_05B
            growth.run(engines, shape, arguments.growth_rounds)


def measure(engines, rounds, limits, figures):
    """Adds what the machine can do, once per round, and each case's figures, `{side: one per round}`. In
    every other round the sides go in the other order."""
    for number in range(rounds):
        limits.append(limits_of(engines, figures))
        for place, (case, sides) in enumerate(figures.items()):
            turns = [("ours", lambda: of_ours(engines, case)), ("llama.cpp", lambda: of_peer(case))]
            for side, run in turns if (number + place) % 2 == 0 else reversed(turns):
                result = run()
                if result is not None:
                    sides.setdefault(side, []).append(result)
                    rate = result["tokens"] / result["wall_s"]
                    say(f"round {number + 1}, {case.title()}: {side} {rate:.1f} tok/s")


def print_tables(engines, limits, figures):
    figures = {case: sides for case, sides in figures.items() if "llama.cpp" in sides}
    if limits and figures:
        table.print_setting(engines, len(limits))
        table.print_limits(limits)
        table.print_cases(figures, engines, limits)


def limits_of(engines, wanted):
    """Bytes per second of memory and of a model's pages, and operations per second."""
    for case in wanted:
        try:
            engine = engines.of(case.shape, case.type_name)
        except ours.Unsupported:
            continue
        bandwidth, of_weights = engine.bandwidth(), engine.weights_bandwidth()
        say(f"memory {bandwidth / 1e9:.1f} GB/s, mapped weights {of_weights / 1e9:.1f} GB/s")
        return {"bandwidth": bandwidth, "of_weights": of_weights, **engine.arithmetic()}
    raise SystemExit("our engine can load none of the models")


def of_ours(engines, case):
    """None where the engine cannot load the model; the table then says why."""
    try:
        return case.ours(engines.of(case.shape, case.type_name))
    except ours.Unsupported as reason:
        say(f"{case.title()}: {reason}")
        return None


def of_peer(case):
    return case.peers(models.file(case.shape, case.type_name))


def say(text):
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
