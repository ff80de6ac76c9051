"""The worker of docs/python_worker.py: the contract for workers in other languages, tried out."""

import concurrent.futures
import contextlib
import json
import signal
import subprocess
import sys
import threading

import openai
import pytest

from cluster import Component, nats_server, wait_until
from stator_process import DEADLINE_S, REPOSITORY, Lines

MODEL = "echo"
STREAMS = 6
STREAM_TOKENS = 200


class PythonWorker:
    """A process of docs/python_worker.py; killed on exit."""

    def __init__(self, nats_url, directory, name):
        script = REPOSITORY / "docs/python_worker.py"
        command = [sys.executable, script, "--nats", nats_url, "--model", directory]
        command += ["--model-name", MODEL, "--name", name]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.stdout, self.stderr = Lines(self.process.stdout), Lines(self.process.stderr)
        self.stdout.wait_for(f"^python-worker {name} ready, serving {MODEL}$")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait(timeout=DEADLINE_S)

    def end(self):
        """What an operator does; returns the exit code and what it said of trouble."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=DEADLINE_S), self.stderr.to_end()


@pytest.fixture(scope="module")
def nats_url():
    with nats_server() as url:
        yield url


@pytest.fixture(scope="module")
def echo(nats_url):
    """The OpenAI SDK, before a gateway and a router, and no worker yet."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(Component("router", "--nats", nats_url))
        gateway = Component("gateway", "--nats", nats_url, "--listen", "127.0.0.1:0")
        stack.enter_context(gateway)
        client = openai.OpenAI(
            base_url=gateway.address("API"), api_key="any", timeout=DEADLINE_S, max_retries=0
        )
        yield stack.enter_context(client)


@pytest.fixture(scope="module")
def words(demo_directory):
    """Tokens whose texts are nothing but letters, with those texts."""
    vocabulary = json.loads((demo_directory / "tokenizer.json").read_text())["model"]["vocab"]
    plain = [text for text in vocabulary if text.isascii() and text.isalpha()]
    return sorted((vocabulary[text], text) for text in plain)


def backwards(words):
    return "".join(text for _, text in reversed(words))


def is_served(client):
    return [model.id for model in client.models.list()] == [MODEL]


def test_it_joins_answers_and_leaves(nats_url, echo, demo_directory, words):
    def check(prompt, max_tokens, expected, finish):
        ids = [token for token, _ in prompt]
        answer = echo.completions.create(model=MODEL, prompt=ids, max_tokens=max_tokens)
        assert (answer.choices[0].text, answer.choices[0].finish_reason) == (expected, finish)
        assert answer.usage.prompt_tokens == len(ids)

    with PythonWorker(nats_url, demo_directory, "python-1") as worker:
        wait_until(lambda: is_served(echo), "the gateway hears of the worker")
        check(words[:5], 100, backwards(words[:5]), "stop")
        check(words[:50], 7, backwards(words[43:50]), "length")
        chat = echo.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "Hello"}], max_tokens=1000
        )
        assert chat.usage.completion_tokens == chat.usage.prompt_tokens > 0
        assert worker.end() == (0, [])
    wait_until(lambda: not is_served(echo), "the gateway hears that it left")


def stream(client, prompt, running):
    """The text of one streamed answer. Says when it runs."""
    chunks = client.completions.create(
        model=MODEL, prompt=[token for token, _ in prompt], max_tokens=len(prompt) + 1, stream=True
    )
    text = ""
    for chunk in chunks:
        text += chunk.choices[0].text
        running.release()
    return text


@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP])
def test_one_goes_on_with_the_answers_of_another(nats_url, echo, demo_directory, words, fault):
    prompts = [words[start : start + STREAM_TOKENS] for start in range(STREAMS)]
    with (
        PythonWorker(nats_url, demo_directory, "python-1") as lost,
        PythonWorker(nats_url, demo_directory, "python-2") as kept,
        concurrent.futures.ThreadPoolExecutor(STREAMS) as pool,
    ):
        wait_until(lambda: is_served(echo), "the gateway hears of the worker")
        running = threading.Semaphore(0)
        answers = [pool.submit(stream, echo, prompt, running) for prompt in prompts]
        for _ in range(10 * STREAMS):
            assert running.acquire(timeout=DEADLINE_S)
        assert not any(answer.done() for answer in answers)
        lost.process.send_signal(fault)
        assert [answer.result(DEADLINE_S) for answer in answers] == list(map(backwards, prompts))
        assert kept.end() == (0, [])
