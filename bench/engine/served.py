"""Measures `stator serve` beside llama-server, both serving the same weights in bf16: 8 requests at once,
128 tokens in and 32 out, each prompt new, from the same load generator (`stator loadtest`) in turns.

    target/bench-engine/bin/python bench/engine/served.py target/release/stator [--rounds N] [--small]

LLAMA_SERVER names llama.cpp's server.
"""

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "peers"))

import cases
import models
import peer
from processes import Process, ask, cpu_s, free_port, wait_for_model

AT_ONCE = 8
INPUT_TOKENS, OUTPUT_TOKENS = 128, 32
# llama-server divides its context among its slots.
SLOT_TOKENS = 512
PROMPTS_COMPARED = 16
# Reach and aim, of ours divided by llama-server's.
GOALS = {"output_tokens_per_s": (1.2, 2.0), "itl_p95_ms": (0.8, 0.5)}
FIGURES = {
    "output_tokens_per_s": "output tokens per s", "output_tokens_per_cpu_s": "output tokens per CPU s",
    "itl_p50_ms": "ITL p50, ms", "itl_p95_ms": "ITL p95, ms", "itl_p99_ms": "ITL p99, ms",
    "tpot_p50_ms": "TPOT p50, ms", "ttft_p50_ms": "TTFT p50, ms", "ttft_p95_ms": "TTFT p95, ms",
    "events_per_token": "events per token", "prompt_tokens": "prompt tokens", "cached_share": "prompt tokens cached",
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("binary")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=20, help="of each measurement")
    parser.add_argument("--small", action="store_true", help="a tiny model, to see that it runs")
    arguments = parser.parse_args()
    shape = cases.LLAMA_15M if arguments.small else cases.QWEN_05B
    Path("target").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="served-", dir="target") as logs, contextlib.ExitStack() as stack:
        servers = {"ours": stator(stack, logs, arguments.binary, models.directory(shape)),
                   "llama-server": llama(stack, logs, models.file(shape, "BF16"))}
        agree = agreement([port for _, port in servers.values()])
        figures = {name: [] for name in servers}
        for number in range(-1, arguments.rounds):
            for name in sorted(servers, reverse=number % 2 == 0):
                # Long enough for an answer of each to end.
                seconds = min(10, arguments.seconds) if number < 0 else arguments.seconds
                found = load(arguments.binary, *servers[name], seconds, number)
                if number >= 0:
                    figures[name].append(found)
                    print(f"round {number + 1}: {name} {found['output_tokens_per_s']:.1f} tok/s, ITL p95 "
                          f"{found['itl_p95_ms']:.1f} ms", file=sys.stderr, flush=True)
        print_figures(shape, figures, agree)


def stator(stack, logs, binary, model):
    """A process of ours and its port."""
    port = free_port()
    # Random weights repeat themselves as no text does, and guesses by that would come true too often.
    command = [binary, "serve", model, "--listen", f"127.0.0.1:{port}", "--threads", peer.THREADS,
               "--speculative-tokens", 0]
    process = stack.enter_context(Process("stator", command, logs))
    wait_for_model(port, process)
    return process, port


def llama(stack, logs, model):
    """llama-server and its port."""
    port = free_port()
    process = stack.enter_context(Process("llama-server", [
        peer.binary("LLAMA_SERVER"), "-m", model, "-t", peer.THREADS, "-np", AT_ONCE,
        "-c", AT_ONCE * SLOT_TOKENS, "--host", "127.0.0.1", "--port", port], logs))
    wait_for_model(port, process)
    return process, port


def agreement(ports):
    """Whether servers compute the same: their first tokens after some prompts. Random weights like many
    tokens nearly as much as the best one, so that rounding may choose another; a sentence says how often."""
    same, differences = 0, []
    for number in range(PROMPTS_COMPARED):
        firsts = [first_token(port, f"Which number comes after {number}?") for port in ports]
        same += len({token for token, _ in firsts}) == 1
        differences.append(abs(firsts[0][1] - firsts[1][1]))
    said = (f"After {PROMPTS_COMPARED} prompts both choose the same first token {same} times; its logprobs differ by "
            f"{max(differences):.3f} at most.")
    if same < PROMPTS_COMPARED / 2:
        raise SystemExit(f"the servers do not compute the same model. {said}")
    return said


def first_token(port, text):
    """The token and its logprob."""
    status, models_there = ask(port, "GET", "/v1/models")
    body = {"model": models_there["data"][0]["id"], "messages": [{"role": "user", "content": text}],
            "max_tokens": 1, "temperature": 0, "logprobs": True, "top_logprobs": 1}
    status, answer = ask(port, "POST", "/v1/chat/completions", body)
    if status != 200:
        raise SystemExit(f"the server on port {port} answered {status}")
    token = answer["choices"][0]["logprobs"]["content"][0]
    return token["token"], token["logprob"]


def load(binary, process, port, seconds, seed):
    """Figures of a closed loop; the prompts of another seed are others. llama-server closes connections that
    a client keeps while the next request is on its way, so that each request has its own, on both sides."""
    command = [binary, "loadtest", f"http://127.0.0.1:{port}", "--concurrency", AT_ONCE, "--input-tokens",
               INPUT_TOKENS, "--output-tokens", OUTPUT_TOKENS, "--warmup", "2s", "--duration", f"{seconds}s",
               "--new-connections", "--seed", seed + 1000, "--json", "-"]
    used = cpu_s([process])
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    used = cpu_s([process]) - used
    if done.returncode != 0:
        raise SystemExit(f"{done.stderr}\nthe server's log is {process.log}")
    return figures_of(json.loads(done.stdout), used, process)


def figures_of(report, used_cpu_s, process):
    if report["requests"]["ok"] != sum(report["requests"].values()):
        raise SystemExit(f"requests failed: {report['requests']} {report['failures']}; read {process.log}")
    rates, latency, tokens = report["rates"], report["latency_ms"], report["tokens"]
    elapsed_s = report["configuration"]["warmup_s"] + report["elapsed_s"]
    return {
        "output_tokens_per_s": rates["output_tokens_per_s"],
        # The warm-up's share is taken as if it went at the same pace.
        "output_tokens_per_cpu_s": rates["output_tokens_per_s"] * elapsed_s / used_cpu_s,
        "itl_p50_ms": latency["itl"]["p50"], "itl_p95_ms": latency["itl"]["p95"],
        "itl_p99_ms": latency["itl"]["p99"], "tpot_p50_ms": latency["tpot"]["p50"],
        "ttft_p50_ms": latency["ttft"]["p50"], "ttft_p95_ms": latency["ttft"]["p95"],
        "events_per_token": rates["events_per_s"] / rates["output_tokens_per_s"],
        "prompt_tokens": tokens["mean_prompt_tokens"],
        "cached_share": tokens["cached_prompt_tokens"] / max(1, tokens["prompt_tokens"]),
    }


def print_figures(shape, figures, agree):
    mine, its = figures["ours"], figures["llama-server"]
    print(f"{shape.name} in bf16, {AT_ONCE} requests at once, {INPUT_TOKENS} tokens in, {OUTPUT_TOKENS} out, greedy; "
          f"llama.cpp: {peer.version('LLAMA_SERVER')}, -np {AT_ONCE} -t {peer.THREADS}. "
          f"{len(mine)} rounds in alternating order: median (least to most); ratios are taken round by round. "
          f"{agree}\n")
    print("| Figure | ours | llama-server | ratio | reach | aim |\n|---|--:|--:|--:|--:|--:|")
    for key, name in FIGURES.items():
        ratios = [a[key] / b[key] for a, b in zip(mine, its) if b[key]]
        reach, aim = GOALS.get(key, ("", ""))
        columns = [spread([found[key] for found in side]) for side in (mine, its)]
        print(f"| {name} | {columns[0]} | {columns[1]} | {spread(ratios) if ratios else ''} | {reach} | {aim} |")


def spread(values):
    return f"{statistics.median(values):,.3g} ({min(values):,.3g} to {max(values):,.3g})"


if __name__ == "__main__":
    main()
