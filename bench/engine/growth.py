"""How the cost of a step grows with the batch, the context and the prompt, beside what reading and
computing must take, and beside the model of cost that workers learn (`protocol/src/latency.rs`)."""

import itertools
import statistics
import sys

import models
import numpy

import ours
import peer

BATCHES = (1, 2, 4, 8, 16, 32)
BATCH_CONTEXT = 128
CONTEXTS = (128, 512, 1024, 2048, 4096, 8192, 16_384)
PROMPTS = (16, 64, 128, 256, 512)
STEPS = 24
# As much as one step may compute.
CHUNK = 512


def run(engines, shape, rounds):
    """Prints a table of a shape in bf16."""
    engine, model = engines.of(shape, "BF16"), models.file(shape, "BF16")
    contexts = [context for context in CONTEXTS if context + 4 * STEPS < engine.facts["context_tokens"]]
    mine, its, bandwidths = {}, {}, []
    for number in range(rounds):
        sides = [lambda: of_ours(engine, contexts, mine), lambda: of_peer(model, contexts, its)]
        bandwidths.append(engine.bandwidth())
        for side in sides if number % 2 == 0 else reversed(sides):
            side()
        print(f"growth, round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    print_growth(shape, engine, mine, its, statistics.median(bandwidths))


def of_ours(engine, contexts, found):
    """Adds the seconds of a step, of each kind; of decode steps the mean, as llama.cpp reports it."""
    for batch in BATCHES:
        result = engine.decode(batch, BATCH_CONTEXT, STEPS)
        add(found, ("decode", batch, BATCH_CONTEXT), result["wall_s"] / STEPS)
    for tokens in PROMPTS:
        add(found, ("prefill", tokens, 0), engine.prefill(tokens)["wall_s"])
    # Each context begins with the one before, which is then cached: each token is computed once.
    series = ours.new_series()
    for context in contexts:
        for step in engine.prefill(context, series)["steps"]:
            tokens = step["tokens"]
            before = (step["attended"] - tokens * (tokens + 1) // 2) // tokens
            if tokens == CHUNK:
                add(found, ("prefill", CHUNK, before), step["wall_s"])
        if context != BATCH_CONTEXT:
            result = engine.decode(1, context, STEPS, series)
            add(found, ("decode", 1, context), result["wall_s"] / STEPS)


def of_peer(model, contexts, found):
    for batch, result in peer.batches(model, BATCHES, BATCH_CONTEXT, STEPS).items():
        add(found, ("decode", batch, BATCH_CONTEXT), result["wall_s"] / STEPS)
    for context in contexts[1:]:
        result = peer.decode_at(model, context, STEPS)
        add(found, ("decode", 1, context), result["wall_s"] / STEPS)
    for tokens in PROMPTS:
        add(found, ("prefill", tokens, 0), peer.prefill(model, tokens)["wall_s"])


def add(found, kind, seconds):
    found.setdefault(kind, []).append(seconds)


def print_growth(shape, engine, mine, its, bandwidth):
    kv_bytes, weight_bytes = engine.facts["kv_bytes_per_token"], engine.weight_bytes()
    seconds = {kind: statistics.median(values) for kind, values in mine.items()}
    theirs = {kind: statistics.median(values) for kind, values in its.items()}
    # Far into a prompt, every fourth step tells enough.
    kinds = [kind for kind in sorted(seconds) if kind[0] == "decode" or kind[2] % (4 * CHUNK) == 0]
    models_of = {name: fitted({k: s for k, s in seconds.items() if k[0] == name})
                 for name in ("decode", "prefill")}
    print(f"How cost grows: {shape.name}, bf16, KV {kv_bytes:,} bytes per token, weights {weight_bytes / 1e6:,.1f} "
          "MB. A step of so many tokens after so many others of each sequence, median of the rounds. The floor: "
          "weights and KV read once, at the bandwidth of this run.\n")
    print("| step | tokens | after | ours, ms | its model, ms | floor, ms | llama.cpp, ms |\n|---|--:|--:|--:|--:|--:|--:|")
    for kind in kinds:
        name, tokens, before = kind
        sequences = tokens if name == "decode" else 1
        floor = (weight_bytes + sequences * before * kv_bytes) / bandwidth
        other = f"{1000 * theirs[kind]:.2f}" if kind in theirs else ""
        print(f"| {name} | {tokens} | {before:,} | {1000 * seconds[kind]:.2f} | "
              f"{1000 * predicted(models_of[name], kind):.2f} | {1000 * floor:.2f} | {other} |")
    for name, coefficients in models_of.items():
        print_model(name, coefficients, seconds)


def print_model(name, coefficients, seconds):
    errors = [abs(predicted(coefficients, kind) / took - 1) for kind, took in seconds.items() if kind[0] == name]
    step, each, attended = (1e6 * coefficient for coefficient in coefficients)
    unit = "sequence" if name == "decode" else "token"
    print(f"\nModel of {name}: {step:,.0f} us per step + {each:,.2f} us per {unit} + {attended:.5f} us per token "
          f"attended to; off by {100 * statistics.median(errors):.1f}% in the middle, {100 * max(errors):.1f}% at most.")


def features(kind):
    """What a step's duration depends on: itself, its tokens, and all that they attend to."""
    _, tokens, before = kind
    attended = tokens * (before + STEPS / 2) if kind[0] == "decode" else tokens * before + tokens * (tokens + 1) / 2
    return (1.0, tokens, attended)


def predicted(coefficients, kind):
    return sum(c * feature for c, feature in zip(coefficients, features(kind)))


def fitted(seconds):
    """Coefficients, none below zero, with the least squares of relative errors."""
    rows = numpy.array([[feature / took for feature in features(kind)] for kind, took in seconds.items()])
    best, least = (0.0, 0.0, 0.0), float("inf")
    for used in itertools.chain.from_iterable(itertools.combinations(range(3), n) for n in (1, 2, 3)):
        found, *_ = numpy.linalg.lstsq(rows[:, used], numpy.ones(len(rows)), rcond=None)
        error = float(((rows[:, used] @ found - 1) ** 2).sum())
        if (found >= 0).all() and error < least:
            best = [0.0, 0.0, 0.0]
            for place, value in zip(used, found):
                best[place] = float(value)
            least = error
    return tuple(best)
