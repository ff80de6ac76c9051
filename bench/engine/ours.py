"""Our engine in a process that keeps its model loaded: `engine/examples/measure`."""

import itertools
import json
import subprocess

import models

PROGRAM = "target/release/examples/measure"
THREADS = 2
_series = itertools.count()


class Unsupported(Exception):
    """The engine cannot load a model, and says why."""


class Measure:
    """A process of the example; asked one thing at a time, and idle in between."""

    def __init__(self, model, program=PROGRAM, pool_tokens=1 << 15):
        self.model = model
        command = [program, str(model), str(THREADS), str(pool_tokens)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=subprocess.PIPE, text=True)
        first = self.process.stdout.readline()
        if not first:
            raise Unsupported(self.process.communicate()[1].strip())
        self.facts = json.loads(first)

    def decode(self, batch, context, steps, series=None):
        """Wall and CPU seconds of `steps` steps of `batch` sequences after `context` tokens each."""
        return self.ask("decode", batch=batch, context=context, steps=steps, series=series or new_series())

    def prefill(self, tokens, series=None):
        """The same of a prompt, and of its steps."""
        return self.ask("prefill", tokens=tokens, series=series or new_series())

    def bandwidth(self):
        """Bytes per second that its threads read of memory."""
        return self.ask("bandwidth")["bytes_per_s"]

    def weights_bandwidth(self):
        """The same of the mapped weights."""
        file = self.model / "model.safetensors" if self.model.is_dir() else self.model
        return self.ask("file_bandwidth", path=str(file))["bytes_per_s"]

    def arithmetic(self):
        """Billions of operations per second, by kind."""
        return self.ask("arithmetic")

    def weight_bytes(self):
        return models.tensor_bytes(self.model)

    def ask(self, command, **arguments):
        self.process.stdin.write(json.dumps({command: arguments}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        answer = json.loads(line) if line else {"error": "it has ended"}
        if "error" in answer:
            raise SystemExit(f"measure {self.model}: {command} {arguments}: {answer['error']}")
        return answer

    def stop(self):
        self.process.communicate()


class Engines:
    """One process per model, started when it is first asked for."""

    def __init__(self, program):
        self.program, self.running, self.refused = program, {}, {}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for engine in self.running.values():
            engine.stop()

    def of(self, shape, type_name):
        """The engine of a model: bf16 from its directory, others from a GGUF file. Raises `Unsupported`."""
        key = (shape.name, type_name)
        if key in self.refused:
            raise Unsupported(self.refused[key])
        if key not in self.running:
            model = models.directory(shape) if type_name == "BF16" else models.file(shape, type_name)
            try:
                self.running[key] = Measure(model, self.program)
            except Unsupported as reason:
                self.refused[key] = str(reason)
                raise
        return self.running[key]


def new_series():
    """Of prompts that no cache knows."""
    return f"series {next(_series)}"
