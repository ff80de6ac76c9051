"""What computes on GPUs: `--device cuda`. The driver, the compiler of kernels and cuBLAS are made for
tests (cuda-driver/fake): they compute on the CPU, for two GPUs of 1 GiB each."""

import asyncio
import contextlib
import http.client
import json
import subprocess
import threading
import time

import nats
import pytest

from cluster import Cluster, Nats, Starting, wait_until
from plain_http import chunks, post
from stator_process import DEADLINE_S, REPOSITORY, Server, check_sentence, run
from test_cluster import migrations_of
from test_ucx import libraries as ucx_libraries
from test_gpus import control, registrations  # noqa: F401

GPUS = REPOSITORY / "target/fake-cuda"
BLOCKS = ("--kv-blocks", "200")

# As many steps as tokens.
STEPWISE = ("--speculative-tokens", "0")

QUESTIONS = [
    "What is a KV block?",
    "What is prefill?",
    "How do I start Stator?",
    "What does the router do?",
    "Why are there two kinds of workers?",
]

# The demo model knows nothing of these: its answers are close calls.
UNKNOWN = ["The KV cache", "A prompt is", "1 2 3 4 5", "x" * 50]

# Of `[token, *PROMPT]` no worker knows the beginning.
PROMPT = list(range(5, 405))

# A refusal that takes longer has waited for something.
REFUSAL_S = 30


@pytest.fixture(scope="module", autouse=True)
def gpus():
    """Two GPUs, for all that is started here."""
    build = REPOSITORY / "cuda-driver/fake/build.sh"
    subprocess.run(["sh", build, GPUS], check=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LD_LIBRARY_PATH", str(GPUS))
        yield


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """The directory of compiled kernels, and of weights in 8 bits."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def cuda(gpus, cache):
    """The bundled model, served by a GPU."""
    with Server("--device", "cuda", "--cache-dir", cache, *BLOCKS) as cuda:
        yield cuda
        cuda.interrupt()
        assert cuda.exit_code() == 0
        drained = "stator: finishing running requests; Ctrl-C again ends at once"
        assert cuda.stderr.to_end() == [drained]


def ask(server, path, **fields):
    """The answer to a request that is in order."""
    answer = post(server, path, {"model": "stator-demo", "max_tokens": 40} | fields)
    assert answer.status == 200, answer.body
    return answer


def chat(server, question=QUESTIONS[0], **fields):
    messages = [{"role": "user", "content": question}]
    return ask(server, "/v1/chat/completions", messages=messages, **{"temperature": 0} | fields)


def complete(server, prompt, **fields):
    return ask(server, "/v1/completions", prompt=prompt, **{"temperature": 0} | fields)


def text_of(answer):
    (choice,) = answer.json["choices"]
    return choice["text"] if "text" in choice else choice["message"]["content"]


def fingerprint_of(server):
    return chat(server, max_tokens=1).json["system_fingerprint"]


# ---- One process ----


def test_the_fingerprint_says_what_computes(cuda):
    assert "-cuda-sm90-bf16-fixed64-mma-" in fingerprint_of(cuda)
    assert cuda.stdout.seen[1].startswith("  on    GPU 0, Fake GPU, numerics ")


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_gpu_answers_as_the_cpu_does(server, cuda, question):
    expected = chat(server, question)
    answer = chat(cuda, question)
    assert text_of(answer) == text_of(expected)
    assert answer.json["usage"] == expected.json["usage"]


@pytest.mark.parametrize("prompt", UNKNOWN)
def test_a_gpu_finds_tokens_as_likely_as_the_cpu_does(server, cuda, prompt):
    """Prompts too. Both round to bf16, logits at last, in other places: candle's tokens are as far from
    the CPU's (0.079 at most)."""
    fields = {"logprobs": 3, "echo": True, "ignore_eos": True}
    answers = [complete(which, prompt, **fields).json for which in (server, cuda)]
    ours, theirs = [answer["choices"][0]["logprobs"] for answer in answers]
    prompt_tokens = answers[0]["usage"]["prompt_tokens"]
    assert ours["tokens"][:prompt_tokens] == theirs["tokens"][:prompt_tokens]
    assert (ours["token_logprobs"][0], theirs["token_logprobs"][0]) == (None, None)
    found = zip(ours["tokens"], ours["token_logprobs"], theirs["tokens"], theirs["token_logprobs"])
    apart = []
    for token, logprob, other, other_logprob in list(found)[1:]:
        apart.append(abs(logprob - other_logprob))
        if token != other:
            break  # A close call: what follows has another beginning.
    assert max(apart) < 0.12, apart
    assert sum(apart) / len(apart) < 0.03, apart


def test_seeds_decide(cuda):
    def sampled(seed):
        return text_of(complete(cuda, UNKNOWN[0], temperature=1, top_p=0.95, seed=seed))

    texts = [sampled(seed) for seed in (1, 2, 3, 1)]
    assert texts[0] == texts[3]
    assert len(set(texts)) == 3


def test_a_gpu_draws_as_the_host_does(cuda):
    """A penalty makes it the host's choice, also one that is too small to matter."""
    fields = {"temperature": 1, "top_p": 0.9, "max_tokens": 4}
    for seed in range(20):
        drawn = [
            text_of(complete(cuda, UNKNOWN[0], seed=seed, frequency_penalty=penalty, **fields))
            for penalty in (0, 1e-6)
        ]
        assert drawn[0] == drawn[1], seed


def test_choices_are_of_their_own(cuda):
    fields = {"n": 2, "temperature": 1, "seed": 5}
    (first, second), again = [
        [choice["text"] for choice in complete(cuda, UNKNOWN[0], **fields).json["choices"]]
        for _ in range(2)
    ]
    assert [first, second] == again
    assert first != second


def test_a_schema_is_kept(cuda):
    properties = {
        "name": {"type": "string", "maxLength": 20},
        "size": {"type": "integer", "minimum": 0, "maximum": 99},
    }
    schema = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    wanted = {"name": "block", "strict": True, "schema": schema}
    answer = chat(cuda, response_format={"type": "json_schema", "json_schema": wanted})
    found = json.loads(text_of(answer))
    assert sorted(found) == ["name", "size"]
    assert 0 <= found["size"] <= 99


def test_a_stream_is_the_whole_answer(cuda):
    events = chunks(chat(cuda, stream=True).body)
    deltas = [choice["delta"] for event in events for choice in event["choices"]]
    text = "".join(delta.get("content") or "" for delta in deltas)
    assert text == text_of(chat(cuda))
    assert len([delta for delta in deltas if delta.get("content")]) > 10


def test_company_changes_nothing(cuda):
    prompts = [[token, *PROMPT[:60]] for token in range(6)]
    fields = {"ignore_eos": True, "logprobs": 1}

    def answer(prompt):
        return complete(cuda, prompt, **fields).json["choices"][0]

    alone = [answer(prompt) for prompt in prompts]
    beside, threads = {}, []
    for index, prompt in enumerate(prompts):
        together = lambda index, prompt: beside.update({index: answer(prompt)})  # noqa: E731
        threads.append(threading.Thread(target=together, args=(index, prompt), daemon=True))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert [beside[index] for index in range(len(prompts))] == alone


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("--numerics", "fast"), "-cuda-sm90-bf16-fast-"),
        (("--quantization", "int8"), "-int8.1-cuda-sm90-bf16-fixed64-"),
        (("--quantization", "fp8"), "-fp8-cuda-sm90-bf16-fixed64-"),
    ],
)
def test_other_arithmetic_answers_under_another_fingerprint(cuda, cache, arguments, part):
    device = ("--device", "cuda:1", "--cache-dir", cache, *BLOCKS)
    with Server(*device, *arguments) as other:
        answered = text_of(chat(other))
        assert answered.startswith("A KV block is a fixed-size piece of the KV cache"), answered
        fingerprint = fingerprint_of(other)
        assert part in fingerprint
        assert fingerprint != fingerprint_of(cuda)
        other.interrupt()
        assert other.exit_code() == 0


# ---- Several processes ----


@pytest.fixture
def cluster():
    with Nats() as server, Cluster(server) as cluster:
        # Where `registrations` looks.
        cluster.name = "stator"
        yield cluster


@pytest.fixture
def begin(cluster, cache):
    """Starts workers: of each its role, its name, its device, and what happens to its GPU."""

    def begin(role, name, device, *arguments, fault=""):
        compute = ("--engine", "cpu", "--device", device, "--cache-dir", cache, *BLOCKS)
        environment = {"FAKE_CUDA_FAIL": fault}
        return cluster.begin(role, "--name", name, *compute, *arguments, environment=environment)

    return begin


def gateway_of(cluster, *workers):
    """A gateway that knows these workers, which become ready meanwhile."""
    gateway, router = cluster.begin("gateway"), cluster.begin("router")
    for component in (gateway, router, *workers):
        component.ready()
    known = len(workers)
    wait_until(lambda: gateway.metric("stator_workers_known") == known, "workers are known")
    return gateway


def copies_of(worker, way):
    return worker.metric(f'stator_kv_copies_total{{way="{way}"}}')


class Prompts:
    """Prompts that one worker computes and another answers, as a server alone would."""

    def __init__(self, gateway, alone, prefill, decode):
        self.gateway, self.alone, self.workers = gateway, alone, (prefill, decode)
        self.firsts = iter(range(1000))

    def steps_of_an_answer(self):
        """None where the router found the decode worker as good at the prompt."""
        before = [worker.metric("stator_steps_total") for worker in self.workers]
        fields = {"max_tokens": 12, "ignore_eos": True, "logprobs": 1}
        prompt = [next(self.firsts), *PROMPT]
        both = (self.gateway, self.alone)
        answer, expected = [complete(which, prompt, **fields).json for which in both]
        assert answer["choices"] == expected["choices"]
        assert answer["system_fingerprint"] == expected["system_fingerprint"]
        after = [worker.metric("stator_steps_total") for worker in self.workers]
        steps = [now - then for then, now in zip(before, after)]
        return steps if steps[0] > 0 else None

    def come_over(self):
        steps = []
        wait_until(lambda: steps.append(self.steps_of_an_answer()) or steps[-1], "a prompt comes over")
        # One per token but the first: had a block not come over, there would be more.
        assert steps[-1] == [1, 11]


def links_of_copies(url, control):  # noqa: F811
    """Over which links blocks came to a worker, as its load report has it once there are any."""

    async def read():
        connection = await nats.connect(url)
        try:
            reports = await connection.subscribe("stator.load")
            while True:
                message = await reports.next_msg(timeout=DEADLINE_S)
                report = control.LoadReport.FromString(message.data)
                if report.transfers:
                    return {control.KvLink.Name(copies.link) for copies in report.transfers}
        finally:
            await connection.close()

    return asyncio.run(read())


def test_workers_register_where_they_compute(cluster, begin, control):  # noqa: F811
    workers = [begin("prefill-worker", "p", "cuda:0"), begin("decode-worker", "d", "cuda:1")]
    workers.append(begin("decode-worker", "c", "cpu"))
    gateway_of(cluster, *workers)
    known = registrations(cluster.nats.url, control)
    devices = {name: known[name].hardware.place.device for name in known}
    assert devices == {
        "p": "11111111-1111-1111-1111-111111111111",
        "d": "22222222-2222-2222-2222-222222222222",
        "c": "cpu",
    }
    ways = {name: list(known[name].hardware.kv_ways) for name in known}
    assert ways == {"p": ["cuda", "tcp"], "d": ["cuda", "tcp"], "c": ["tcp"]}


@pytest.mark.parametrize(
    ("prefill_device", "decode_device", "fault", "links", "way"),
    [
        ("cuda:0", "cuda:1", "", {"KV_LINK_PCIE"}, "cuda"),
        ("cuda:0", "cuda:0", "", {"KV_LINK_PCIE"}, "cuda"),
        # As in containers that share no IPC namespace.
        ("cuda:0", "cuda:1", "cuIpcOpenMemHandle_v2:801", {"KV_LINK_HOST"}, "tcp"),
    ],
)
def test_blocks_move_between_gpus(
    cluster, begin, cuda, control, prefill_device, decode_device, fault, links, way  # noqa: F811
):
    prefill = begin("prefill-worker", "p", prefill_device)
    decode = begin("decode-worker", "d", decode_device, *STEPWISE, fault=fault)
    prompts = Prompts(gateway_of(cluster, prefill, decode), cuda, prefill, decode)
    for _ in range(3):
        prompts.come_over()
    assert links_of_copies(cluster.nats.url, control) == links
    copied = {of: copies_of(decode, of) for of in ("cuda", "tcp", "ucx")}
    assert [of for of in copied if copied[of]] == [way]
    for worker in (prefill, decode):
        assert worker.end()[0] == 0


@pytest.fixture
def ucx(monkeypatch):
    """UCX with its module for CUDA, and what that wants; over UCX's tcp."""
    build = REPOSITORY / "cuda-driver/fake/build.sh"
    nvml = GPUS / "nvml"
    subprocess.run(["sh", build, nvml, "libnvidia-ml.so.1"], check=True)
    monkeypatch.setenv("LD_LIBRARY_PATH", f"{ucx_libraries()}:{GPUS}:{nvml}")
    monkeypatch.setenv("UCX_TLS", "tcp,cuda_copy")


@pytest.mark.usefixtures("ucx")
def test_blocks_move_between_gpus_by_ucx(cluster, begin, cuda):
    prefill = begin("prefill-worker", "p", "cuda:0", "--ucx", "on")
    # As between hosts: the pool of the other worker cannot be mapped, which it tries once.
    fault = "cuIpcOpenEventHandle:801"
    decode = begin("decode-worker", "d", "cuda:1", "--ucx", "on", *STEPWISE, fault=fault)
    prompts = Prompts(gateway_of(cluster, prefill, decode), cuda, prefill, decode)
    prompts.come_over()
    assert "  ucx   moves KV blocks" in decode.stdout.seen
    assert copies_of(decode, "ucx") is None
    for _ in range(3):
        before = decode.metric("stator_kv_ucx_bytes_total")
        prompts.come_over()
        assert decode.metric("stator_kv_ucx_bytes_total") > before
    assert copies_of(decode, "ucx") >= 3
    assert decode.metric("stator_kv_ucx_failures_total") == 0
    for worker in (prefill, decode):
        assert worker.end()[0] == 0


@pytest.mark.usefixtures("ucx")
def test_without_gpudirect_a_worker_that_is_to_use_ucx_says_so(cluster, begin):
    worker = begin("decode-worker", "d", "cuda", "--ucx", "on", fault="cuMemGetHandleForAddressRange:801")
    assert worker.exit_code() == 69
    assert "network cards do not get at this GPU's memory" in worker.stderr.to_end()[-1]


@pytest.mark.parametrize(
    ("prefill_device", "decode_device"), [("cpu", "cuda"), ("cuda", "cpu")]
)
def test_a_cpu_and_a_gpu_share_no_blocks(
    cluster, begin, cuda, server, prefill_device, decode_device
):
    prefill = begin("prefill-worker", "p", prefill_device)
    decode = begin("decode-worker", "d", decode_device)
    gateway = gateway_of(cluster, prefill, decode)
    alone = cuda if decode_device == "cuda" else server
    for first in range(3):
        answer, expected = [
            complete(which, [first, *PROMPT], max_tokens=12, ignore_eos=True)
            for which in (gateway, alone)
        ]
        assert text_of(answer) == text_of(expected)
        assert answer.json["system_fingerprint"] == expected.json["system_fingerprint"]
    assert prefill.metric("stator_steps_total") == 0


# ---- Failures ----


def check_lost(worker, device):
    """It must have ended by itself, and said of what."""
    assert worker.exit_code() == 70
    (sentence,) = [line for line in worker.stderr.to_end() if line.startswith("stator: ")]
    parts = (device, "the GPU is lost", "CUDA_ERROR_ILLEGAL_ADDRESS")
    assert [part for part in parts if part not in sentence] == [], sentence


class Streams:
    """Streamed answers of `TOKENS` tokens, each to a prompt of its own, beside each other."""

    TOKENS = 60

    def __init__(self, gateway):
        self.gateway, self.threads, self.texts = gateway, [], {}

    def begin(self):
        first = len(self.threads)
        self.threads.append(threading.Thread(target=self._read, args=(first,), daemon=True))
        self.threads[-1].start()

    def prompt(self, first):
        return {"prompt": [first, *PROMPT[:60]], "max_tokens": self.TOKENS, "ignore_eos": True}

    def _read(self, first):
        events = chunks(complete(self.gateway, **self.prompt(first), stream=True).body)
        texts = [choice["text"] for event in events for choice in event["choices"]]
        self.texts[first] = "".join(texts)

    def whole(self):
        """All texts, once all have ended."""
        for thread in self.threads:
            thread.join(DEADLINE_S)
        return [self.texts.get(first) for first in range(len(self.threads))]


def test_a_stream_goes_on_where_a_gpu_is_lost(cluster, begin, cuda):
    fault = "cuGraphLaunch:700:20"
    struck = begin("decode-worker", "struck", "cuda:1", *STEPWISE, fault=fault)
    gateway = gateway_of(cluster, struck, begin("decode-worker", "other", "cuda:0", *STEPWISE))
    streams = Streams(gateway)

    def is_lost():
        if len(streams.threads) < 8:
            streams.begin()
        return struck.process.poll() is not None

    wait_until(is_lost, "the GPU is lost")
    check_lost(struck, "CUDA device 1")
    texts = streams.whole()
    assert texts == [text_of(complete(cuda, **streams.prompt(first))) for first in range(len(texts))]
    assert sum(migrations_of(gateway)) >= 1
    wait_until(lambda: gateway.metric("stator_workers_known") == 1, "its entry is gone")


def test_prompts_are_computed_where_a_gpu_is_left(cluster, begin, cuda):
    struck = begin("prefill-worker", "p", "cuda:1", fault="execution:700:2500")
    gateway = gateway_of(cluster, struck, begin("decode-worker", "d", "cuda:0"))
    firsts = iter(range(1000))

    def is_lost():
        prompt = [next(firsts), *PROMPT]
        fields = {"max_tokens": 4, "ignore_eos": True}
        assert text_of(complete(gateway, prompt, **fields)) == text_of(complete(cuda, prompt, **fields))
        return struck.process.poll() is not None

    wait_until(is_lost, "the GPU is lost")
    check_lost(struck, "CUDA device 1")


def test_a_gpu_that_is_lost_ends_the_server(cache):
    device = ("--device", "cuda", "--cache-dir", cache, *BLOCKS, *STEPWISE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FAKE_CUDA_FAIL", "cuGraphLaunch:700:20")
        struck = Server(*device)
    with struck:
        body = {"model": "stator-demo", "prompt": PROMPT, "max_tokens": 60, "ignore_eos": True}
        answer = post(struck, "/v1/completions", body | {"stream": True})
        *begun, last = chunks(answer.body)
        assert begun, "some tokens came"
        assert last["error"]["code"] == "shutting_down", last
        check_lost(struck, "CUDA device 0")


@pytest.mark.parametrize("role", ["prefill-worker", "decode-worker"])
def test_a_gpu_that_is_lost_before_its_worker_is_ready_ends_it(cluster, begin, role):
    """While it warms up, about; a worker that nobody hears of any more would be in vain."""
    check_lost(begin(role, "struck", "cuda:0", fault="execution:700:1500"), "CUDA device 0")


# ---- An end while something is computed ----


def keep_busy(gateway, worker):
    """Gives a worker more than it can do in a while; what becomes of the answers is not looked at."""
    fields = {"model": "stator-demo", "max_tokens": 600, "ignore_eos": True}

    def read(first):
        with contextlib.suppress(OSError, http.client.HTTPException):
            post(gateway, "/v1/completions", fields | {"prompt": [first, *PROMPT]})

    for first in range(6):
        threading.Thread(target=read, args=(first,), daemon=True).start()
    running = 'stator_sequences{state="running"}'
    wait_until(lambda: Starting.metric(worker, running), "it computes")


@pytest.mark.parametrize("again", [False, True])
def test_a_server_that_computes_ends_when_asked(cache, again):
    arguments = () if again else ("--grace-period-s", "0")
    with Server("--device", "cuda", "--cache-dir", cache, *BLOCKS, *arguments) as busy:
        keep_busy(busy, busy)
        busy.interrupt()
        if again:
            busy.stderr.wait_for("Ctrl-C again ends at once")
            busy.interrupt()
        assert busy.exit_code() == (130 if again else 0), busy.stderr.to_end()


def test_a_worker_that_computes_ends_when_asked(cluster, begin):
    worker = begin("decode-worker", "d", "cuda", "--drain-timeout", "0")
    keep_busy(gateway_of(cluster, worker), worker)
    worker.terminate()
    assert worker.exit_code() == 0, worker.stderr.to_end()


# ---- Refusals ----


def check_refused(cache, arguments, environment, *parts):
    began = time.monotonic()
    arguments = ("serve", "--listen", "127.0.0.1:0", "--cache-dir", cache, *arguments)
    ended = run(*arguments, environment=environment)
    assert time.monotonic() - began < REFUSAL_S
    check_sentence(ended, 69, *parts)


@pytest.mark.parametrize(
    ("libraries", "parts"),
    [
        (["libcuda.so.1"], ["there is no NVIDIA driver here", "install it"]),
        (
            ["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"],
            ["NVIDIA's run-time compiler is not found", "libnvrtc.so.13", "nvidia-cuda-nvrtc"],
        ),
        (
            ["libcublas.so.13", "libcublas.so.12", "libcublas.so"],
            ["no cuBLAS", "libcublas.so.13", "nvidia-cublas"],
        ),
    ],
)
def test_a_missing_library_is_named(cache, tmp_path, libraries, parts):
    for library in libraries:
        (tmp_path / library).write_text("this is no library")
    environment = {"LD_LIBRARY_PATH": f"{tmp_path}:{GPUS}"}
    parts = ("CUDA device 0", *parts, "--device cpu")
    check_refused(cache, ("--device", "cuda", *BLOCKS), environment, *parts)


@pytest.mark.parametrize(
    ("arguments", "environment", "parts"),
    [
        (("--device", "cuda:7"), {}, ["CUDA device 7", "there is no GPU 7", "the driver shows 2"]),
        (("--kv-blocks", "60000"), {}, ["CUDA device 0", "does not fit", "--kv-blocks"]),
        # One worker's pool fits, and two do not.
        (("--kv-blocks", "15000"), {}, ["CUDA device 0", "does not fit", "--kv-blocks"]),
        (
            (*BLOCKS, "--max-num-batched-tokens", "60000"),
            {},
            ["CUDA device 0", "no room for steps of 60000 tokens", "--max-num-batched-tokens"],
        ),
        ((), {"FAKE_NVRTC_FAIL": "1"}, ["CUDA device 0", "does not compile for sm_90"]),
        (BLOCKS, {"FAKE_CUDA_FAIL": "cuMemAlloc_v2:2"}, ["CUDA device 0", "no memory left"]),
        (BLOCKS, {"FAKE_CUDA_FAIL": "cuLaunchKernel:719"}, ["CUDA device 0", "the GPU is lost"]),
    ],
)
def test_what_cannot_be_says_so(tmp_path, arguments, environment, parts):
    device = () if "--device" in arguments else ("--device", "cuda")
    check_refused(tmp_path, (*device, *arguments), environment, *parts)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("--engine", "mock"), ["leave --device out"]),
        (("--max-num-batched-tokens", "65536"), ["at most 65472 tokens", "--max-num-batched-tokens"]),
        (("--block-size", "1"), ["a multiple of 4 tokens", "--block-size 16"]),
        (("--kv-blocks", "4000000000"), ["--kv-blocks"]),
    ],
)
def test_what_does_not_go_with_a_gpu_is_refused(arguments, parts):
    ended = run("serve", "--device", "cuda", *arguments)
    assert (ended.code, ended.stdout) == (64, [])
    assert [part for part in parts if part not in "\n".join(ended.stderr)] == [], ended
