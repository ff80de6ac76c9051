"""KV blocks by UCX between worker processes, over its tcp on loopback."""

import os
import signal
import sys
from pathlib import Path

import pytest

from cluster import Cluster, Component, Nats, complete, wait_until
from stator_process import check_sentence, run

PROMPT = list(range(5, 305))

# Each worker's own times make one compute prompts and the other generate.
FAST = ("--mock-prefill-us-per-token", "10")
SLOW = ("--mock-prefill-us-per-token", "3000")


def libraries():
    """The folder of UCX, where the tests' requirements put it or somebody says it is."""
    installed = [Path(path, "libucx", "lib") for path in sys.path]
    named = [Path(os.environ["STATOR_UCX_LIBRARIES"])] if "STATOR_UCX_LIBRARIES" in os.environ else []
    found = next((path for path in named + installed if (path / "libucp.so.0").exists()), None)
    assert found, "no libucp.so.0; pip install -r e2e/python/requirements.txt"
    return found


@pytest.fixture(autouse=True)
def library(monkeypatch):
    monkeypatch.setenv("LD_LIBRARY_PATH", str(libraries()))
    monkeypatch.setenv("UCX_TLS", "tcp")


@pytest.fixture(scope="module")
def nats():
    with Nats() as nats:
        yield nats


@pytest.fixture
def workers(nats):
    """A gateway, and two workers of which one computes prompts for the other."""
    with Cluster(nats) as cluster:
        started = [cluster.begin("gateway"), cluster.begin("router")]
        started.append(cluster.begin("prefill-worker", "--ucx", "on", *FAST))
        started.append(cluster.begin("decode-worker", "--ucx", "on", *SLOW))
        gateway, _, prefill, decode = [component.ready() for component in started]
        wait_until(lambda: gateway.metric("stator_workers_known") == 2, "both workers are known")
        yield gateway, prefill, decode


def agent_of(worker):
    """The id of its agent's process."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((process / "stat").read_text().rsplit(") ", 1)[1].split()[1])
            arguments = (process / "cmdline").read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if parent == worker.process.pid and b"ucx-agent" in arguments:
            return int(process.name)
    return None


class Prompts:
    """Answers to prompts of which no worker knows the beginning."""

    def __init__(self, gateway):
        self.gateway, self.first = gateway, 0

    def answer(self):
        self.first += 1
        answer = complete(self.gateway, [self.first, *PROMPT], 8)
        assert answer.status == 200, answer.body
        return answer.json["choices"][0]["text"]


def pulled(worker):
    return worker.metric("stator_kv_ucx_bytes_total")


def test_blocks_come_by_ucx_and_the_text_is_the_same(workers, nats):
    gateway, prefill, decode = workers
    prompts = Prompts(gateway)
    texts = []

    def has_come():
        texts.append(prompts.answer())
        return pulled(decode) > 0

    wait_until(has_come, "blocks come by UCX")
    assert decode.metric("stator_kv_ucx_failures_total") == 0
    with Cluster(nats) as alone:
        started = [alone.begin("gateway"), alone.begin("router"), alone.begin("decode-worker")]
        alone_gateway = [component.ready() for component in started][0]
        wait_until(lambda: alone_gateway.metric("stator_workers_known") == 1, "it is known")
        undisturbed = Prompts(alone_gateway)
        assert [undisturbed.answer() for _ in texts] == texts


@pytest.mark.parametrize("which", ["prefill", "decode"])
def test_a_worker_outlives_its_agent(workers, which):
    gateway, prefill, decode = workers
    prompts = Prompts(gateway)

    def has_come(before):
        prompts.answer()
        return pulled(decode) > before

    wait_until(lambda: has_come(0), "blocks come by UCX")
    struck = prefill if which == "prefill" else decode
    first = agent_of(struck)
    os.kill(first, signal.SIGKILL)
    for _ in range(5):
        prompts.answer()
    wait_until(lambda: agent_of(struck) not in (None, first), "there is another agent")
    assert struck.metric("stator_kv_ucx_agents_total") == 2
    before = pulled(decode)
    wait_until(lambda: has_come(before), "blocks come by UCX again")


def test_an_agent_does_not_outlive_its_worker(workers):
    _, prefill, _ = workers
    agent = agent_of(prefill)
    prefill.kill()
    wait_until(lambda: not Path(f"/proc/{agent}/exe").exists(), "the agent ends")


def test_where_it_is_not_used_the_worker_says_why(nats):
    with Component("decode-worker", "--nats", nats.url, "--engine", "mock", "--ucx", "auto") as worker:
        assert "  ucx   moves nothing: no RDMA device is here" in worker.stdout.seen
        assert not agent_of(worker)


def test_what_ucx_would_open_needs_a_trusted_network(nats, monkeypatch):
    worker = ("decode-worker", "--nats", nats.url, "--engine", "mock", "--ucx", "on")
    monkeypatch.setenv("UCX_NET_DEVICES", "eth0")
    ended = run(*worker)
    check_sentence(ended, 64, "--insecure")


def test_without_the_library_the_worker_says_so(nats, monkeypatch, tmp_path):
    (tmp_path / "libucp.so.0").write_text("")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    ended = run("decode-worker", "--nats", nats.url, "--engine", "mock", "--ucx", "on")
    check_sentence(ended, 69, "install UCX")
