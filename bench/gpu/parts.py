"""What is checked and measured."""

import json
import re
import statistics
import sys
from dataclasses import replace
from pathlib import Path

import servers
from servers import Failed

import models
from shapes import LLAMA_15M, SHAPES

# Of each family a model that every device computes within a second. KV heads are shared where families do so.
TINY = replace(LLAMA_15M, name="tiny-llama", layers=3, heads=6, kv_heads=2, context=8192)
FAMILIES = [
    TINY,
    replace(TINY, name="tiny-mistral", family="mistral"),
    replace(TINY, name="tiny-qwen2", family="qwen2", biases=True),
    replace(TINY, name="tiny-qwen3", family="qwen3", head_norms=True),
]
# Two ways of rounding to bf16 in three layers; a wrong rotation or mask is two orders of magnitude more.
LOGPROB_DIFFERENCE_MAX = 0.1
COMPARED_TOKENS = 700
GREEDY_TOKENS = 16

# It is brought to machines with a card: stripped.
COMMAND_MIB_MAX = 60

MOVED = re.compile(r"blocks moved .*blocks=(\d+) copies_us=(\d+) exposed_us=(\d+)")
NUMBER = re.compile(r"\d+\.\d+")
LONG_PROMPT_TOKENS = 4096
# Of the card's bandwidth, of what transformers does on it, and of its matrix products.
GOALS = {("llama-8b", "decode"): 0.6, ("llama-8b", "batch"): 3, ("llama-8b", "prompt"): 0.4}
# So many streams run meanwhile, so that no router lets them wait for a prompt.
STREAMS, STREAM_TOKENS = 4, 3000
PREFILL_TOKENS = 2000


def card(run, report):
    mib = Path(run.binary).stat().st_size / 2**20
    if run.is_on_gpu:
        report.check("card", "the command's size", mib <= COMMAND_MIB_MAX, f"{mib:.0f} MiB, at most {COMMAND_MIB_MAX}")
    done = servers.run_to_end([run.binary, "gpus", "--json"])
    if done.returncode != 0:
        raise Failed(done.stderr.strip())
    found = json.loads(done.stdout)
    for gpu in found["gpus"]:
        gib = (gpu["memory_bytes"] or 0) / 2**30
        report.figure("card", gpu["name"], f"driver {found['driver_version']}, {gib:.0f} GiB, {gpu['uuid']}")
    if not found["gpus"] and run.is_on_gpu:
        raise Failed(" ".join(found["notes"]))


def families(run, report):
    """Our CPU kernels are held to transformers by the tests; here a device is held to them."""
    for shape in FAMILIES:
        model = models.directory(shape)
        asked = servers.prompt(COMPARED_TOKENS, shape.name)
        answers = []
        for device in ("cpu", run.device):
            with servers.serve(run.binary, model, device, run.logs) as served:
                scored = served.complete(asked, 0, echo=True, logprobs=1)["logprobs"]["token_logprobs"]
                answers.append((scored[1:], served.complete(asked, GREEDY_TOKENS)["text"]))
        (cpu, text), (ours, other) = answers
        difference = max(abs(a - b) for a, b in zip(cpu, ours, strict=True))
        same = "the same text" if text == other else "another text (random weights like many tokens as much)"
        report.check("families", f"{shape.family}: largest difference of {len(cpu)} logprobs, CPU kernels and "
                     f"{run.device}", difference <= LOGPROB_DIFFERENCE_MAX, f"{difference:.4f}; {same}")


def copies(run, report):
    mib = [] if run.copied_mib is None else ["--mib", str(run.copied_mib)]
    ordinal = run.device.partition(":")[2] or "0"
    done = servers.run_to_end([run.binary, "cuda-copies", "--ordinal", ordinal, *mib])
    rows = [[cell.strip() for cell in line.split("|")] for line in done.stdout.splitlines()]
    for what, blocks, rate, share in (row for row in rows if len(row) == 4 and NUMBER.fullmatch(row[2])):
        report.goal("copies", f"{what}, {blocks}", f"{rate} GB/s, {share} of a copy within the GPU", float(share),
                    at_least=0.8 if what.startswith("two processes") else None)
    errors = done.stderr.strip()[-300:]
    if done.returncode != 0 and "is wrong" not in errors:
        raise Failed(errors)
    report.check("copies", "every byte as it was", done.returncode == 0, errors or "yes")


def handoff(run, report):
    """Text must not depend on who computed the prompt; what the KV's way costs is the second token's."""
    if not run.nats_server:
        raise Failed("name a nats-server with --nats-server")
    # On a card, KV of a size that matters.
    on_gpu = [SHAPES[name] for name in run.shape if run.is_on_gpu]
    shape = next((shape for shape in on_gpu if shape.context >= 2 * LONG_PROMPT_TOKENS), TINY)
    model = models.directory(shape)
    prompts = [servers.prompt(LONG_PROMPT_TOKENS, f"handoff {index}") for index in range(8)]
    with servers.serve(run.binary, model, run.device, run.logs) as served:
        expected = [served.complete(asked, GREEDY_TOKENS)["text"] for asked in prompts]
    found, ratios, moved = [], [], []
    with servers.pair(run.binary, model, run.device, run.logs, run.nats_server) as (served, log):
        served.complete(servers.prompt(100, "warm up"), 4)
        with servers.busy(served, STREAMS, STREAM_TOKENS):
            for asked in prompts:
                before = len(MOVED.findall(log.read_text()))
                times, text = served.stream(asked, GREEDY_TOKENS)
                found.append(text)
                moved = MOVED.findall(log.read_text())
                if len(moved) > before:
                    steps = [later - earlier for earlier, later in zip(times, times[1:])]
                    ratios.append(steps[0] / statistics.median(steps[1:]))
    enough = len(ratios) * 2 >= len(prompts)
    report.check("handoff", "prompts that the prefill worker computed", enough, f"{len(ratios)} of {len(prompts)}")
    report.check("handoff", "same text as of one process", found == expected, f"{len(prompts)} prompts")
    if ratios:
        ratio = statistics.median(ratios)
        report.goal("handoff", f"{shape.name}: first step after {LONG_PROMPT_TOKENS} tokens' KV came, of an ordinary one",
                    f"{ratio:.2f}", ratio, at_most=1.5)
    if moved:
        us = statistics.median(int(copies_us) for _, copies_us, _ in moved)
        report.figure("handoff", "copies of a prompt", f"{us / 1000:.1f} ms")


def speed(run, report):
    limits = limits_of(run, report)
    for name in run.shape:
        speed_of(run, report, SHAPES[name], limits)


def speed_of(run, report, shape, limits):
    model = models.directory(shape)
    weight_bytes = models.tensor_bytes(model)
    for numerics in ("fixed", "fast"):
        flags = ("--numerics", numerics, "--speculative-tokens", "0", "--max-num-batched-tokens", "2048")
        with servers.serve(run.binary, model, run.device, run.logs, *flags) as served:
            alone = servers.loadtest(run.binary, served, 1, 16, 128, run.seconds)
            many = servers.loadtest(run.binary, served, run.batch, 128, 128, run.seconds)
            prompts = [served.stream(servers.prompt(PREFILL_TOKENS, f"prefill {index}"), 1)[0][0] for index in range(5)]
        title = f"{shape.name}, --numerics {numerics}"
        step_s = alone["latency_ms"]["tpot"]["p50"] / 1000
        said = f"{1 / step_s:,.1f} tok/s, {weight_bytes / step_s / 1e9:,.0f} GB/s of weights"
        share_of(report, shape, "decode", f"{title}: decode, one stream", said, weight_bytes / step_s,
                 limits and limits["bytes_per_s"])
        rate = many["rates"]["output_tokens_per_s"]
        run.rates[shape.name] = max(rate, run.rates.get(shape.name, 0))
        latency = many["latency_ms"]
        report.figure("speed", f"{title}: {run.batch} streams through the gateway, 128 in, 128 out",
                      f"{rate:,.0f} tok/s, TTFT p50 {latency['ttft']['p50']:.0f} ms, "
                      f"ITL p95 {latency['itl']['p95']:.1f} ms")
        attended = PREFILL_TOKENS * (PREFILL_TOKENS + 1) / 2 * shape.attention_multiplications
        rate = 2 * (PREFILL_TOKENS * shape.multiplications_per_token + attended) / statistics.median(prompts)
        said = f"{statistics.median(prompts) * 1000:.1f} ms, {rate / 1e12:.2f} TFLOP/s"
        share_of(report, shape, "prompt", f"{title}: prompt of {PREFILL_TOKENS:,} tokens", said, rate,
                 limits and limits["flop_per_s"])


def share_of(report, shape, goal, what, said, rate, limit):
    """A rate, and of what the card does, where that is known."""
    if limit is None:
        return report.figure("speed", what, said)
    share = rate / limit
    report.goal("speed", what, f"{said}, {share:.3f} of the card's", share, at_least=GOALS.get((shape.name, goal)))


def limits_of(run, report):
    """What the card does by torch: bytes of a copy, read and written, and bf16 products; none without."""
    if not run.is_on_gpu:
        return None
    try:
        limits = torch_program(run, "limits", [])
    except Failed as error:
        return report.not_run("speed: the card's own figures", error)
    report.figure("speed", "the card's own, by torch", f"{limits['bytes_per_s'] / 1e9:,.0f} GB/s read and written, "
                  f"{limits['flop_per_s'] / 1e12:,.0f} TFLOP/s in bf16")
    return limits


def baseline(run, report):
    for name in run.shape:
        found = torch_program(run, "generate", [str(models.directory(SHAPES[name])), str(run.batch)])
        for batch, rate in found.items():
            report.figure("baseline", f"transformers, {name}: {batch} sequences, 128 in, 128 out", f"{rate:,.1f} tok/s")
        if ours := run.rates.get(name):
            ratio = ours / found[str(run.batch)]
            report.goal("baseline", f"{name}: {run.batch} streams of the command, of transformers' {run.batch}",
                        f"{ratio:.1f}", ratio, at_least=GOALS.get((name, "batch")))


def torch_program(run, what, arguments):
    program = Path(__file__).with_name("on_torch.py")
    device = run.device if run.is_on_gpu else "cpu"
    done = servers.run_to_end([sys.executable, program, what, device, *arguments])
    if done.returncode != 0:
        raise Failed((done.stderr.strip().splitlines() or ["torch failed"])[-1])
    return json.loads(done.stdout)


def weights(run, report):
    """What a second worker process takes of the card, with weights of its own and with shared ones."""
    if not run.is_on_gpu:
        raise Failed("weights are shared on GPUs")
    name = run.shape[0]
    model = models.directory(SHAPES[name])
    weight_bytes = models.tensor_bytes(model)
    added = {}
    for title, flags in (("its own", []), ("shared", ["--share-weights"])):
        with servers.workers(run.binary, model, run.device, run.logs, run.nats_server, 2, *flags) as each:
            used = [used_bytes(run) for _ in each]
        added[title] = used[1] - used[0]
        report.figure("weights", f"{name}: a second worker process, weights {title}",
                      f"{added[title] / 1e9:.2f} GB of the card, {added[title] / weight_bytes:.2f} of the weights")
    saved = (added["its own"] - added["shared"]) / weight_bytes
    report.goal("weights", f"{name}: what sharing saves of the weights", f"{saved:.2f}", saved, at_least=0.95)


def used_bytes(run):
    done = servers.run_to_end([run.binary, "gpus", "--json"], check=True)
    gpu = json.loads(done.stdout)["gpus"][int(run.device.partition(":")[2] or 0)]
    return gpu["memory_used_bytes"]


# The process that keeps weights holds the card for a while: last.
ALL = (card, families, copies, handoff, speed, baseline, weights)
