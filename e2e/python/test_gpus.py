"""What Stator tells of GPUs: `stator gpus`, a worker's registration and its metrics. The driver's
library is made up (topology/tests/fake_nvml.c), and found where the system looks for libraries."""

import asyncio
import json
import subprocess
import sys

import nats
import pytest
from grpc_tools import protoc

from cluster import Component, complete, nats_server, wait_until
from plain_http import request
from stator_process import REPOSITORY, run

MOCK = ("--engine", "mock")


def driver(directory, *defines):
    """The environment of a process that finds two GPUs, and what `defines` makes of them."""
    source = REPOSITORY / "topology/tests/fake_nvml.c"
    command = ["cc", "-shared", "-fPIC", "-o", directory / "libnvidia-ml.so.1", source]
    subprocess.run([*command, *(f"-D{define}" for define in defines)], check=True)
    return {"LD_LIBRARY_PATH": str(directory)}


def without_driver(directory):
    """The environment of a process that finds no driver, even on a machine that has one."""
    (directory / "libnvidia-ml.so.1").write_text("this is no library")
    return {"LD_LIBRARY_PATH": str(directory)}


@pytest.fixture(scope="module")
def control(tmp_path_factory):
    """The messages of control.proto."""
    directory = tmp_path_factory.mktemp("control")
    proto = REPOSITORY / "protocol/proto"
    to = f"--python_out={directory}"
    assert protoc.main(["", f"-I{proto}", to, str(proto / "control.proto")]) == 0
    sys.path.insert(0, str(directory))
    import control_pb2

    yield control_pb2
    sys.path.remove(str(directory))


def registrations(url, control):
    """What workers registered, by name."""

    async def read():
        connection = await nats.connect(url)
        try:
            bucket = await connection.jetstream().key_value("stator")
            keys = [key for key in await bucket.keys() if key.startswith("workers/")]
            entries = [await bucket.get(key) for key in keys]
        finally:
            await connection.close()
        found = [control.WorkerRegistration.FromString(entry.value) for entry in entries]
        return {registration.worker_id: registration for registration in found}

    return asyncio.run(read())


def test_a_machine_without_gpus_says_so_and_that_is_no_failure(tmp_path):
    environment = without_driver(tmp_path)
    ended = run("gpus", environment=environment)
    assert (ended.code, ended.stderr) == (0, [])
    assert ended.stdout[0].startswith("no GPU: there is no NVIDIA driver here"), ended.stdout
    assert any(line.startswith("Host ") for line in ended.stdout)
    found = json.loads("\n".join(run("gpus", "--json", environment=environment).stdout))
    assert (found["gpus"], found["driver_version"]) == ([], None)
    assert found["host"]["cpus"] >= 1


def test_gpus_are_shown_to_people_and_to_programs(tmp_path):
    environment = driver(tmp_path, "MIG")
    shown = "\n".join(run("gpus", environment=environment).stdout)
    expected = (
        "NVIDIA driver 580.95.05",
        "0    NVIDIA H100 80GB HBM3  9.0      3.0 GiB of 80.0 GiB  gen 5 x16, 63 GB/s  4, 106 GB/s",
        "MIG-fake-2",
        "GPU 0  -                NVLink 106 GB/s",
    )
    assert [line for line in expected if line not in shown] == [], shown
    found = json.loads("\n".join(run("gpus", "--json", environment=environment).stdout))
    assert [gpu["uuid"] for gpu in found["gpus"]] == ["GPU-fake-0", "GPU-fake-1"]
    assert found["gpus"][0]["peers"][0]["nvlink"] == {"count": 4, "bytes_per_s": 106_248_000_000}


def test_a_lost_gpu_is_told_of(tmp_path):
    ended = run("gpus", environment=driver(tmp_path, "LOST=0"))
    assert ended.code == 0
    assert "GPU 0 fell off its bus and is left out; restart the machine" in ended.stdout
    assert any("GPU-fake-1" in line for line in ended.stdout)


def test_a_driver_that_does_not_answer_is_not_waited_for(tmp_path):
    wedge = tmp_path / "wedge"
    wedge.touch()
    ended = run("gpus", "--timeout-s", "1", environment=driver(tmp_path, f'WEDGED="{wedge}"'))
    assert (ended.code, ended.stderr) == (0, [])
    assert ended.stdout[0].startswith("no GPU: "), ended.stdout
    assert any(line.startswith("Host ") for line in ended.stdout)


def test_workers_register_their_gpus_and_show_them(tmp_path, control):
    environment = driver(tmp_path)
    with nats_server() as url:
        arguments = ("--nats", url, *MOCK, "--name", "d")
        with Component("decode-worker", *arguments, environment=environment) as worker:
            gpu = '{gpu="GPU-fake-1"}'
            assert worker.metric(f"stator_gpu_utilization_ratio{gpu}") == 0.74
            assert worker.metric(f"stator_gpu_memory_used_bytes{gpu}") == 3 << 30
            assert worker.metric(f"stator_gpu_memory_bytes{gpu}") == 80 << 30
            assert worker.metric(f"stator_gpu_temperature_celsius{gpu}") == 41
            assert worker.metric(f"stator_gpu_power_watts{gpu}") == 123.5
            assert worker.metric(f"stator_gpu_pcie_sent_bytes_per_second{gpu}") == 1e6
            assert worker.metric(f"stator_gpu_pcie_received_bytes_per_second{gpu}") == 2e6
            assert worker.metric(f"stator_gpu_nvlink_sent_bytes_total{gpu}") == 4 << 20
            assert worker.metric(f"stator_gpu_nvlink_received_bytes_total{gpu}") == 8 << 20

            hardware = registrations(url, control)["d"].hardware
            assert [gpu.uuid for gpu in hardware.gpus] == ["GPU-fake-0", "GPU-fake-1"]
            assert hardware.gpus[0].peers[0].nvlink_bytes_per_s == 106_248_000_000
            assert hardware.place.device == "cpu", "it computes there"
            assert len(hardware.place.host_id) == len(hardware.place.process_id) == 16
            assert list(hardware.kv_ways) == ["tcp"]
            code, lines = worker.end()
            drained = "stator: finishing running requests; Ctrl-C again ends at once"
            assert (code, lines) == (0, [drained])


def test_workers_without_gpus_show_none_and_say_so_once(tmp_path, control):
    environment = without_driver(tmp_path) | {"STATOR_LOG": "stator=info"}
    with nats_server() as url:
        arguments = ("--nats", url, *MOCK, "--name", "d")
        with Component("decode-worker", *arguments, environment=environment) as worker:
            assert b"stator_gpu" not in request(worker, "GET", "/metrics").body
            assert list(registrations(url, control)["d"].hardware.gpus) == []
            _, lines = worker.end()
            assert len([line for line in lines if "no GPU: " in line]) == 1, lines


def test_workers_of_one_host_learn_what_lies_between_them(tmp_path, control):
    """The reader measures its copies, and says so in its load reports."""
    with nats_server() as url:
        arguments = ("--nats", url, *MOCK, "--mock-prefill-us-per-token", "200")
        with (
            Component("prefill-worker", *arguments, "--name", "p"),
            Component("decode-worker", *arguments, "--name", "d"),
            Component("router", "--nats", url),
            Component("gateway", "--nats", url, "--listen", "127.0.0.1:0") as gateway,
        ):
            wait_until(lambda: gateway.metric("stator_workers_known") == 2, "both are known")
            known = registrations(url, control)
            places = {name: known[name].hardware.place for name in known}
            assert places["d"].host_id == places["p"].host_id
            assert places["d"].process_id != places["p"].process_id
            reports = asyncio.run(reports_with_copies(url, control, gateway))
            links = {control.KvLink.Name(copies.link): copies for copies in reports.transfers}
            assert list(links) == ["KV_LINK_HOST"]
            assert links["KV_LINK_HOST"].copies >= 1
            assert links["KV_LINK_HOST"].copy_us + links["KV_LINK_HOST"].mib_us > 0


async def reports_with_copies(url, control, gateway):
    """The first load report that tells of copies, while requests that need some are made."""
    connection = await nats.connect(url)
    try:
        reports = await connection.subscribe("stator.load")
        prompt = list(range(5, 805))
        answer = await asyncio.to_thread(complete, gateway, prompt, 4)
        assert answer.status == 200, answer.body
        while True:
            message = await reports.next_msg(timeout=60)
            report = control.LoadReport.FromString(message.data)
            if report.transfers:
                return report
    finally:
        await connection.close()
