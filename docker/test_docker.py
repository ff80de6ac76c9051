"""Builds the image, starts compose.yaml, and kills decode workers under running streams.

    make docker-test                        builds the image first
    STATOR_IMAGE=stator:1 make docker-test  tests an image that is there
"""

import concurrent.futures
import json
import os
import re
import socket
import subprocess
import threading
import time
import urllib.request
from pathlib import Path

import openai
import pytest

COMPOSE_FILE = Path(__file__).with_name("compose.yaml")
PROJECT = "stator-docker-test"
# The build compiles everything once.
BUILD_DEADLINE_S = 3600
DEADLINE_S = 300
STREAMS = 8
OUTPUT_TOKENS = 600
# A stream counts as running after so many chunks.
RUNNING_CHUNKS = 10
# Some 300 tokens: worth a prefill worker's while where others decode.
PROMPT = "What does a router know about its workers, and whom does it tell? " * 20
IMAGE_MB_MAX = 200


def compose(*arguments, deadline_s=DEADLINE_S):
    """The output of a compose command, which must succeed."""
    command = ["docker", "compose", "--project-name", PROJECT, "--file", COMPOSE_FILE, *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=deadline_s)
    assert ended.returncode == 0, f"{arguments}: {ended.stdout}\n{ended.stderr}"
    return ended.stdout


def inspect(kind, name):
    """What docker knows of a container or an image."""
    command = ["docker", kind, "inspect", name]
    return json.loads(subprocess.check_output(command, text=True))[0]


def wait_until(condition):
    """Asks until it holds; fails when that takes too long."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, "it did not become so in time"
        time.sleep(0.2)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@pytest.fixture(scope="module")
def address():
    """Where the gateway of a cluster listens, once all of its containers are healthy."""
    port = os.environ["STATOR_PORT"] = str(free_port())
    os.environ["STATOR_LOG"] = "warn,decode_worker=debug"
    if "STATOR_IMAGE" not in os.environ:
        compose("build", deadline_s=BUILD_DEADLINE_S)
    try:
        compose("up", "--no-build", "--detach", "--wait")
        yield f"127.0.0.1:{port}"
    except BaseException:
        print(compose("logs", "--no-color", "--tail", "50"))
        raise
    finally:
        compose("down", "--volumes")


@pytest.fixture(scope="module")
def client(address):
    """The OpenAI SDK; without retries, which would hide failures."""
    base_url = f"http://{address}/v1"
    with openai.OpenAI(base_url=base_url, api_key="any", timeout=DEADLINE_S, max_retries=0) as client:
        yield client


def stream(client, seed, running):
    """The text of one answer, which is the same in each call with this seed. Says when it runs."""
    chunks = client.completions.create(
        model="stator-demo",
        prompt=f"Question {seed}: {PROMPT}",
        max_tokens=OUTPUT_TOKENS,
        temperature=0.8,
        seed=seed,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    text, finish = [], None
    for count, chunk in enumerate(chunks):
        text.append(chunk.choices[0].text)
        finish = chunk.choices[0].finish_reason or finish
        if count == RUNNING_CHUNKS:
            running.release()
    return "".join(text), finish


def stream_all(client, once_all_run=lambda: None):
    """The texts of STREAMS answers at once; calls back when all of them run and none has ended."""
    running = threading.Semaphore(0)
    with concurrent.futures.ThreadPoolExecutor(STREAMS) as pool:
        answers = [pool.submit(stream, client, seed, running) for seed in range(STREAMS)]
        for _ in answers:
            assert running.acquire(timeout=DEADLINE_S), [answer.done() for answer in answers]
        once_all_run()
        return [answer.result(timeout=DEADLINE_S) for answer in answers]


def migrations(address):
    """How many answers went on at another worker so far."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=DEADLINE_S) as response:
        metrics = response.read().decode()
    counts = re.findall(r"^stator_migrations_total(?:\{.*\})? (\S+)$", metrics, re.MULTILINE)
    return sum(map(float, counts))


@pytest.fixture(scope="module")
def undisturbed(client):
    answers = stream_all(client)
    assert [finish for _, finish in answers] == ["length"] * STREAMS
    assert len({text for text, _ in answers}) == STREAMS
    return answers


@pytest.mark.parametrize("worker", ["decode-worker-1", "decode-worker-2"])
def test_killing_a_decode_worker_changes_no_text(address, client, undisturbed, worker):
    before = migrations(address)
    answers = stream_all(client, lambda: compose("kill", "--signal", "KILL", worker))
    assert answers == undisturbed
    assert migrations(address) > before, "no answer ran on the worker that was killed"
    compose("up", "--no-build", "--detach", "--wait")


def test_a_crash_is_mended_by_the_restart_policy(address, client, undisturbed):
    """A process that ends by itself is started again, and serves."""
    container = compose("ps", "--quiet", "prefill-worker").strip()
    began = inspect("container", container)["State"]["StartedAt"]
    compose("exec", "prefill-worker", "bash", "-c", "kill -TERM 1")
    wait_until(lambda: inspect("container", container)["State"]["StartedAt"] != began)
    compose("up", "--no-build", "--detach", "--wait")
    assert stream_all(client) == undisturbed


def test_kv_blocks_move_between_containers(undisturbed):
    """Prompts are computed in one container and decoded in another one."""
    moved = re.findall(r"decode-worker-\S+ .*blocks moved.*", compose("logs", "--no-color"))
    assert moved, "no decode worker read blocks of the prefill worker"
    print(*moved[:3], sep="\n")


def test_containers_are_closed(address):
    """No root, no writable file system, no capability, and one port, for this machine alone."""
    published = {}
    for container in compose("ps", "--quiet").split():
        facts = inspect("container", container)
        host = facts["HostConfig"]
        assert facts["Config"]["User"] == "65532:65532", facts["Name"]
        assert host["ReadonlyRootfs"] and host["CapDrop"] == ["ALL"], facts["Name"]
        assert host["Memory"] > 0 and host["NanoCpus"] > 0, facts["Name"]
        assert host["RestartPolicy"]["Name"] == "unless-stopped", facts["Name"]
        assert facts["State"]["Health"]["Status"] == "healthy", facts["Name"]
        published.update(facts["NetworkSettings"]["Ports"] or {})
    host, port = address.split(":")
    bound = {name: ports for name, ports in published.items() if ports}
    assert bound == {"8000/tcp": [{"HostIp": host, "HostPort": port}]}


def test_the_image_is_small():
    size = inspect("image", os.environ.get("STATOR_IMAGE", "stator:local"))["Size"]
    assert size <= IMAGE_MB_MAX * 1_000_000, f"{size / 1e6:.0f} MB"
