"""The kinds of load, and how one of them is put on one system."""

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

from language import Language
from processes import cpu_s, machine_cpu_s

LOAD = Path("target/peers/load")
PATH = "/v1/chat/completions"


@dataclass(frozen=True)
class Load:
    """Chat requests, each with a prompt of its own, so many at once."""

    name: str
    words: int
    tokens: int
    stream: bool
    at_once: int
    requests: int

    @property
    def step_group(self):
        return "streams" if self.name == "streams" else "requests"

    def title(self):
        return f"{self.name}, {self.at_once} at once"


def write_bodies(load, model, directory, seed):
    """A file with a request per line. No two runs share prompts, so that no cache knows them."""
    language = Language.shared()
    file = Path(directory) / f"{load.name}-{load.at_once}-{seed}.jsonl".replace(" ", "-")
    with file.open("w", encoding="utf-8") as lines:
        for number in range(load.requests):
            text = language.text(load.words, f"{load.name} {load.at_once} {seed} {number}")
            body = {
                "model": model,
                "messages": [{"role": "user", "content": text}],
                "max_tokens": load.tokens,
                "ignore_eos": True,
                "stream": load.stream,
            }
            lines.write(json.dumps(body) + "\n")
    return file


def run(system, load, bodies):
    """Figures of one load on one system."""
    front, workers, machine = cpu_s(system.front), cpu_s(system.workers), machine_cpu_s()
    command = [LOAD, system.port, PATH, bodies, load.at_once, load.requests]
    result = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    front, workers = cpu_s(system.front) - front, cpu_s(system.workers) - workers
    if result.returncode != 0:
        raise SystemExit(f"{system.name}, {load.title()}: {result.stderr}")
    answer = json.loads(result.stdout)
    if answer["failed"] or answer["answered"] != load.requests:
        raise SystemExit(f"{system.name}, {load.title()}: {answer}")
    used = front + workers + answer["cpu_s"]
    tokens = load.requests * load.tokens
    first, latency = answer["first_ms"], answer["latency_ms"]
    return {
        "front_cpu_s": front,
        "cpu_s_per_1000_requests": 1000 * front / load.requests,
        "cpu_s_per_million_tokens": 1e6 * front / tokens,
        "worker_cpu_s_per_1000_requests": 1000 * workers / load.requests,
        "events_per_request": answer["events"] / load.requests,
        "requests_per_s": load.requests / answer["wall_s"],
        "first_p50_ms": first["p50"],
        "latency_p50_ms": latency["p50"],
        "latency_p99_ms": latency["p99"],
        "step_ms": (latency["p50"] - first["p50"]) / max(1, load.tokens - 1),
        "others_cores": (machine_cpu_s() - machine - used) / answer["wall_s"],
    }
