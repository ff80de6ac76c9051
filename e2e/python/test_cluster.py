"""Components as processes: how they find each other, what they refuse, how they leave."""

import json
import socket
import threading

import pytest
from openai import OpenAI

from cluster import Cluster, Nats, complete, free_port, wait_until
from plain_http import request, streaming
from stator_process import DEADLINE_S, check_sentence, run

PROMPT = list(range(5, 305))

ROLES = ("gateway", "router", "prefill-worker", "decode-worker")


@pytest.fixture(scope="module")
def nats():
    with Nats() as nats:
        yield nats


@pytest.fixture
def cluster(nats):
    """An empty cluster, of which no other test knows."""
    with Cluster(nats) as cluster:
        yield cluster


def with_all(cluster, *arguments):
    """A gateway that can be asked, with one of each of the others; and the others."""
    components = [cluster.begin(role) for role in ROLES[:2]]
    components += [cluster.begin(role, *arguments) for role in ROLES[2:]]
    for component in components:
        component.ready()
    wait_until(lambda: components[0].metric("stator_workers_known") == 2, "both workers are known")
    return components


@pytest.mark.parametrize(
    "order",
    [
        ("nats", "gateway", "router", "prefill-worker", "decode-worker"),
        ("decode-worker", "prefill-worker", "nats", "router", "gateway"),
        ("prefill-worker", "gateway", "decode-worker", "router", "nats"),
    ],
)
def test_components_start_in_any_order(order):
    nats = Nats()
    with Cluster(nats) as cluster:
        try:
            started = {}
            for role in order:
                started[role] = nats.start() if role == "nats" else cluster.begin(role)
            for role in ROLES:
                started[role].ready()
            gateway = started["gateway"]
            wait_until(lambda: gateway.metric("stator_workers_known") == 2, "workers are known")
            wait_until(lambda: gateway.metric("stator_routers_known") == 1, "the router is known")
            assert complete(gateway, PROMPT, 5).json["usage"]["completion_tokens"] == 5
        finally:
            nats.__exit__()


def test_prompts_are_computed_by_the_worker_that_is_faster_at_them(cluster):
    gateway = cluster.start("gateway")
    cluster.start("router")
    prefill = cluster.start("prefill-worker", "--mock-prefill-us-per-token", "10")
    decode = cluster.start("decode-worker", "--mock-prefill-us-per-token", "3000")
    wait_until(lambda: gateway.metric("stator_workers_known") == 2, "both workers are known")
    prompts = iter(range(1000))

    def decode_steps_of_an_answer():
        """None where its prompt was computed by the other worker: what that says of itself has to
        reach the router first."""
        before = [worker.metric("stator_steps_total") for worker in (prefill, decode)]
        assert complete(gateway, [next(prompts), *PROMPT], 20).status == 200
        after = [worker.metric("stator_steps_total") for worker in (prefill, decode)]
        return after[1] - before[1] if after[0] > before[0] else None

    steps = []
    wait_until(lambda: steps.append(decode_steps_of_an_answer()) or steps[-1], "a prompt comes over")
    # One per token but the first: had a block not come over, there would be more.
    assert steps[-1] == 19
    for worker in (prefill, decode):
        wait_until(lambda: is_at_rest(worker), f"{worker.role} holds nothing")


def is_at_rest(worker):
    used = worker.metric('stator_kv_blocks{state="used"}')
    return (used, worker.metric("stator_kv_leases")) == (0, 0)


def test_a_cluster_answers_as_one_process_does(cluster, server):
    """The real model, with its prompt computed in another process."""
    gateway = with_all(cluster, "--engine", "cpu", "--threads", "1")[0]

    def answer(base_url):
        with OpenAI(base_url=base_url, api_key="any", timeout=DEADLINE_S, max_retries=0) as client:
            stream = client.chat.completions.create(
                model="stator-demo",
                messages=[{"role": "user", "content": "What is a KV block? " * 20}],
                max_tokens=40,
                seed=7,
                stream=True,
            )
            return "".join(chunk.choices[0].delta.content or "" for chunk in stream)

    assert answer(gateway.address("API")) == answer(server.base_url)


def test_a_gateway_without_workers_is_not_ready(cluster):
    gateway = cluster.start("gateway")
    assert request(gateway, "GET", "/health").status == 200
    ready = request(gateway, "GET", "/health/ready")
    assert (ready.status, ready.headers["retry-after"]) == (503, "1")


def test_without_workers_of_a_known_model_requests_are_told_to_come_again(cluster):
    gateway, _, *workers = with_all(cluster)
    assert complete(gateway, PROMPT, 1).status == 200
    for worker in workers:
        worker.kill()
    for _ in range(3):
        answer = complete(gateway, PROMPT, 1)
        assert (answer.status, answer.headers["retry-after"] is not None) == (503, True)
    # It tries them again and again, and says so once of each, for a while.
    _, lines = gateway.end()
    in_vain = [line for line in lines if "cannot give the worker a request" in line]
    assert 1 <= len(in_vain) <= len(workers), in_vain


def test_handovers_that_fail_are_counted_and_cost_no_answer(cluster):
    gateway, router = cluster.begin("gateway"), cluster.begin("router")
    # Its blocks cannot be had: nobody listens there.
    fast = ("--mock-prefill-us-per-token", "10")
    prefill = cluster.begin("prefill-worker", "--advertise-kv", "127.0.0.1:1", *fast)
    decode = cluster.begin("decode-worker", "--mock-prefill-us-per-token", "3000")
    for component in (gateway, router, prefill, decode):
        component.ready()
    wait_until(lambda: gateway.metric("stator_workers_known") == 2, "both workers are known")
    firsts = iter(range(1000))

    def has_failed():
        assert complete(gateway, [next(firsts), *range(5, 305)], 2).status == 200
        return decode.metric("stator_remote_prefills_failed_total") > 0

    wait_until(has_failed, "a handover fails")
    assert decode.metric('stator_kv_copies_total{way="tcp"}') is None


def test_every_component_shows_health_and_metrics(cluster):
    components = with_all(cluster)
    complete(components[0], PROMPT, 5)
    shown = {
        "gateway": ["stator_requests_in_flight", "stator_workers_known"],
        "router": ["stator_workers_known"],
        "prefill-worker": ["stator_kv_leases", 'stator_kv_blocks{state="free"}'],
        "decode-worker": ["stator_steps_total", 'stator_sequences{state="running"}'],
    }
    for component in components:
        assert request(component, "GET", "/health").status == 200
        assert component.is_ready()
        assert component.metric("stator_nats_connected") == 1
        assert component.metric("process_resident_memory_bytes") > 1e6
        for name in shown[component.role]:
            assert component.metric(name) is not None, name
        url = f"http://{component.host}:{component.port}"
        assert run("health", url).code == 0
    assert sum(migrations_of(components[0])) == 0
    check_sentence(run("health", f"http://127.0.0.1:{free_port()}"), 69, "does not answer")


def test_serve_joins_a_cluster(cluster):
    """Its workers answer what another gateway is asked."""
    gateway = cluster.start("gateway")
    with cluster.begin("serve", "--listen", "127.0.0.1:0", "--engine", "mock") as serve:
        serve.stdout.wait_for(r"^serving ")
        wait_until(lambda: gateway.metric("stator_workers_known") == 2, "its workers are known")
        assert complete(gateway, PROMPT, 5).json["usage"]["completion_tokens"] == 5
        assert serve.end()[0] == 0
        wait_until(lambda: gateway.metric("stator_workers_known") == 0, "they are gone")


SLOW = ("--mock-step-us", "20000")


def stream_of(gateway, tokens):
    """What a streamed answer says, once it is complete; and when its first token has come."""
    body = {"model": "stator-demo", "prompt": PROMPT, "max_tokens": tokens, "ignore_eos": True}
    began, texts = threading.Event(), []

    def read():
        with streaming(gateway, "/v1/completions", body | {"seed": 1}) as response:
            while (line := response.readline()) != b"data: [DONE]\n":
                if line.startswith(b"data: "):
                    texts.append(json.loads(line[6:])["choices"][0]["text"])
                    began.set()

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    assert began.wait(DEADLINE_S)
    return thread, texts


def test_a_draining_worker_ends_what_it_has(cluster):
    gateway, _, _, worker = with_all(cluster, *SLOW)
    whole = complete(gateway, PROMPT, 60).json["choices"][0]["text"]
    thread, texts = stream_of(gateway, 60)
    worker.terminate()
    wait_until(lambda: not worker.is_ready(), "it takes nothing new")
    assert worker.exit_code() == 0
    thread.join(DEADLINE_S)
    assert "".join(texts) == whole
    assert sum(migrations_of(gateway)) == 0
    wait_until(lambda: gateway.metric("stator_workers_known") == 1, "its entry is gone")


def test_after_the_drain_timeout_others_go_on(cluster):
    gateway, _, _, worker = with_all(cluster, *SLOW, "--drain-timeout", "0")
    whole = complete(gateway, PROMPT, 100).json["choices"][0]["text"]
    cluster.start("decode-worker", *SLOW)
    wait_until(lambda: gateway.metric("stator_workers_known") == 3, "it is known")
    thread, texts = stream_of(gateway, 100)
    for component in cluster.components:
        if component.role == "decode-worker" and component.metric('stator_sequences{state="running"}'):
            component.terminate()
            assert component.exit_code() == 0
    thread.join(DEADLINE_S)
    assert "".join(texts) == whole
    assert sum(migrations_of(gateway)) == 1


def migrations_of(gateway):
    """How many there were of each cause."""
    lines = request(gateway, "GET", "/metrics").body.decode().splitlines()
    found = [line for line in lines if line.startswith("stator_migrations_total{")]
    assert found
    return [float(line.rsplit(" ", 1)[1]) for line in found]


@pytest.mark.parametrize("role", ["gateway", "router"])
def test_components_leave_when_asked(cluster, role):
    component = cluster.start(role)
    component.terminate()
    assert component.exit_code() == 0


@pytest.mark.parametrize(
    ("arguments", "code", "parts"),
    [
        (["router", "--nats", "nats://127.0.0.1:1", "--nats-connect-timeout", "1"], 69,
         ["cannot reach a NATS server at nats://127.0.0.1:1", "start one"]),
        (["router", "--nats", "http://127.0.0.1:1"], 64, ["NATS URL", "nats://host:port"]),
        (["gateway", "--nats", "nats://127.0.0.1:1", "--listen", "0.0.0.0:0"], 64,
         ["--listen 0.0.0.0:0 is not a loopback address", "--insecure"]),
        (["router", "--nats", "nats://127.0.0.1:1", "--admin", "0.0.0.0:0"], 64,
         ["--admin 0.0.0.0:0 is not a loopback address", "--insecure"]),
        (["router", "--nats", "nats://127.0.0.1:1", "--name", "a.b"], 64, ["--name a.b"]),
        (["decode-worker", "--nats", "nats://127.0.0.1:1", "--data-listen", "0.0.0.0:0"], 64,
         ["--data-listen 0.0.0.0:0 is not a loopback address", "--tls-ca", "--insecure"]),
        (["decode-worker", "--nats", "nats://127.0.0.1:1", "--data-listen", "0.0.0.0:0",
          "--insecure"], 64, ["--data-listen 0.0.0.0:0", "--advertise HOST"]),
        (["decode-worker", "--nats", "nats://127.0.0.1:1", "--advertise", "nowhere.invalid"], 64,
         ["--advertise nowhere.invalid cannot be reached by others"]),
        (["decode-worker", "--nats", "nats://127.0.0.1:1", "--model", "/nowhere"], 64,
         ["MODEL /nowhere does not exist"]),
        (["decode-worker", "--nats", "nats://127.0.0.1:1", "--tls-ca", "/nowhere"], 64,
         ["--tls-cert"]),
        (["router", "--nats", "nats://127.0.0.1:1", "--tls-ca", "/nowhere"], 64,
         ["cannot use the TLS file /nowhere"]),
    ],
)
def test_refusals(arguments, code, parts):
    check_sentence(run(*arguments), code, *parts)


def test_a_server_that_wants_credentials():
    config = 'authorization { user: "u", password: "right" }'
    with Nats(config=config) as nats, Cluster(nats) as cluster:
        check_sentence(run("router", "--nats", nats.url), 69, "refuses these credentials")
        url = nats.url.replace("//", "//u:right@")
        check_sentence(
            run("router", "--nats", url.replace("right", "wrong")), 69, "refuses these credentials"
        )
        nats.url = url
        cluster.start("router")


def test_a_server_without_jetstream():
    with Nats(jetstream=False) as nats:
        check_sentence(run("router", "--nats", nats.url), 69, "no JetStream", "-js")


def test_an_old_server():
    """A server that says what Debian 12's says of itself."""
    information = {"server_id": "X", "version": "2.9.10", "max_payload": 1048576, "headers": True}

    def serve(listener):
        while True:
            connection, _ = listener.accept()
            connection.sendall(b"INFO " + json.dumps(information).encode() + b"\r\n")
            threading.Thread(target=pong, args=(connection,), daemon=True).start()

    def pong(connection):
        while data := connection.recv(4096):
            if b"PING" in data:
                connection.sendall(b"PONG\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, args=(listener,), daemon=True).start()
        url = f"nats://127.0.0.1:{listener.getsockname()[1]}"
        check_sentence(run("router", "--nats", url), 69, "is version 2.9.10", "2.11")


def test_workers_that_do_not_go_together(cluster, demo_directory, tmp_path):
    cluster.start("decode-worker", "--name", "first")
    here = ("--nats", cluster.nats.url, "--cluster", cluster.name)
    worker = ("prefill-worker", *here, "--engine", "mock")
    check_sentence(
        run(*worker, "--block-size", "32"), 64, "worker first", "blocks of 16 tokens", "--block-size"
    )
    # The same words with another template are another model.
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / file).write_bytes((demo_directory / file).read_bytes())
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0].content }}")
    other = (*worker, "--model", tmp_path, "--model-name", "stator-demo")
    check_sentence(run(*other), 64, "worker first", "another model", "--model-name")


def test_of_two_that_come_at_once_one_stays(cluster):
    workers = [cluster.begin("decode-worker", "--block-size", size) for size in ("16", "32")]
    wait_until(lambda: any(w.process.poll() is not None for w in workers), "one of them leaves")
    gone, here = sorted(workers, key=lambda worker: worker.process.poll() is None)
    assert gone.exit_code() == 64
    assert "--block-size" in gone.stderr.to_end()[0]
    assert here.ready().is_ready()


def test_a_worker_that_gateways_cannot_reach_is_named(cluster):
    gateway = cluster.start("gateway")
    nowhere = f"127.0.0.1:{free_port()}"
    cluster.start("decode-worker", "--name", "hidden", "--advertise", nowhere)
    said = gateway.stderr.wait_for("cannot fetch the worker's model card").string
    assert [part for part in ("hidden", nowhere, "--advertise") if part not in said] == []
    assert not gateway.is_ready()


def test_a_taken_port():
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        for role, flag in (("gateway", "--listen"), ("router", "--admin")):
            ended = run(role, "--nats", "nats://127.0.0.1:1", flag, address)
            check_sentence(ended, 69, address, f"choose another {flag}")
