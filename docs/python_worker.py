"""A worker in Python: joins a Stator cluster and answers with the prompt's tokens backwards.

    pip install grpcio grpcio-tools nats-py
    python docs/python_worker.py --nats nats://127.0.0.1:4222 --model models/demo --model-name echo

docs/workers.md says why it does what it does.
"""

import argparse
import asyncio
import itertools
import json
import signal
import sys
import tempfile
import time
from pathlib import Path

import grpc
import nats
from grpc_tools import protoc

PROTO = Path(__file__).resolve().parents[1] / "protocol/proto"
STEP_S, PROGRESS_S, REPORT_S, RENEW_S, TTL = 0.01, 0.2, 0.1, 5, "15s"
BLOCK_SIZE, KV_BLOCKS = 16, 1 << 16
OUTBOUND_UPDATES = 64  # where a gateway is slower than its requests, they wait

with tempfile.TemporaryDirectory() as generated:
    to = [f"--python_out={generated}", f"--grpc_python_out={generated}"]
    files = [str(PROTO / name) for name in ("control.proto", "data.proto")]
    if protoc.main(["protoc", f"-I{PROTO}", *to, *files]) != 0:
        sys.exit(f"{PROTO} does not compile")
    sys.path.insert(0, generated)
    import control_pb2 as control
    import data_pb2 as data
    import data_pb2_grpc as services


class Worker(services.WorkerServicer, services.GenerationServicer):
    def __init__(self, model, name):
        self.running, self.left, self.steps = 0, False, itertools.count(1)
        config = json.loads((model / "config.json").read_text())
        settings = json.loads((model / "tokenizer_config.json").read_text())
        self.card = data.ModelCard(
            name=name,
            context_tokens=config["max_position_embeddings"],
            vocabulary_size=config["vocab_size"],
            tokenizer_json=(model / "tokenizer.json").read_bytes(),
            chat_template=settings.get("chat_template"),
            created_s=int(time.time()),
        )

    async def GetModelCard(self, request, context):
        return self.card

    async def Session(self, messages, context):
        """One gateway's requests. A frame for each step of theirs, and at least every 250 ms."""
        updates, requests = asyncio.Queue(OUTBOUND_UPDATES), {}
        reader = asyncio.create_task(self.read(messages, updates, requests))
        await context.send_initial_metadata(())  # the gateway waits for it
        try:
            while not (reader.done() or self.left and updates.empty()):
                progress = data.Progress(steps=next(self.steps))
                try:
                    update = await asyncio.wait_for(updates.get(), PROGRESS_S)
                    yield data.StepFrame(updates=[update], progress=progress)
                except TimeoutError:
                    yield data.StepFrame(progress=progress)
        finally:  # the gateway is gone, and its requests with it
            for task in [reader, *requests.values()]:
                task.cancel()

    async def read(self, messages, updates, requests):
        async for message in messages:
            if message.HasField("generate"):
                number = message.generate.request
                requests[number] = asyncio.create_task(self.answer(message.generate, updates))
                requests[number].add_done_callback(lambda _, n=number: requests.pop(n, None))
            elif message.HasField("cancel") and message.cancel.request in requests:
                requests[message.cancel.request].cancel()

    async def answer(self, request, updates):
        """The prompt backwards; of a continued answer, what another worker has not said yet."""
        self.running += 1
        try:
            length, stop = request.stopping.max_tokens, data.FINISH_REASON_STOP
            answer = request.prompt_tokens[::-1][:length]
            for token in answer[len(request.generated_tokens) :]:
                await asyncio.sleep(STEP_S)
                tokens = [data.Token(id=token)]
                await updates.put(data.RequestUpdate(request=request.request, tokens=tokens))
            finish = data.FINISH_REASON_LENGTH if len(answer) == length else stop
            await updates.put(data.RequestUpdate(request=request.request, finish=finish))
        finally:
            self.running -= 1


class Member:
    """This life of the worker, as the cluster sees it."""

    def __init__(self, bus, cluster, registration):
        self.bus, self.cluster, self.registration = bus, cluster, registration
        life = f"{registration.worker_id}/{registration.incarnation}"
        self.entry = f"$KV.{cluster}.workers/{life}"

    async def register(self):
        """The entry expires: it is written again well before."""
        try:
            value, headers = self.registration.SerializeToString(), {"Nats-TTL": TTL}
            await self.bus.jetstream().publish(self.entry, value, headers=headers)
        except nats.errors.Error as error:  # its bucket is made by the cluster's first component
            print(f"cannot register, trying again: {error!r}", file=sys.stderr, flush=True)

    async def keep_registered(self):
        while True:
            await self.register()
            await asyncio.sleep(RENEW_S)

    async def report_load(self, worker):
        """Routers pass a worker over that they have not heard of for a third of a second."""
        while True:
            load = control.LoadReport(
                worker_id=self.registration.worker_id,
                incarnation=self.registration.incarnation,
                running_sequences=worker.running,
                free_blocks=KV_BLOCKS,
            )
            await self.bus.publish(f"{self.cluster}.load", load.SerializeToString())
            await asyncio.sleep(REPORT_S)

    async def leave(self, worker):
        """Takes nothing new, ends what it has, and is gone."""
        self.registration.draining = True
        await self.register()
        while worker.running:
            await asyncio.sleep(REPORT_S)
        await self.bus.jetstream().publish(self.entry, headers={"KV-Operation": "DEL"})
        worker.left = True


async def main(arguments):
    worker = Worker(arguments.model, arguments.model_name)
    # Gateways ping every second, for which grpcio would hang up on them.
    server = grpc.aio.server(options=[("grpc.http2.max_ping_strikes", 0)])
    services.add_WorkerServicer_to_server(worker, server)
    services.add_GenerationServicer_to_server(worker, server)
    endpoint = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()

    registration = control.WorkerRegistration(
        worker_id=arguments.name,
        incarnation=time.time_ns() // 1000,
        role=control.ROLE_DECODE,
        model=arguments.model_name,
        model_id="backwards-1",
        numerics_id="backwards-1",
        data_endpoint=endpoint,
        block_size=BLOCK_SIZE,
        kv_blocks=KV_BLOCKS,
        max_num_batched_tokens=512,
    )
    bus = await nats.connect(arguments.nats, max_reconnect_attempts=-1)
    member = Member(bus, arguments.cluster, registration)
    asked_to_end = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, asked_to_end.set)
    async with asyncio.TaskGroup() as group:
        tasks = [member.keep_registered(), member.report_load(worker)]
        tasks = [group.create_task(task) for task in tasks]
        print(f"python-worker {arguments.name} ready, serving {arguments.model_name}", flush=True)
        print(f"  data  {endpoint}", flush=True)
        await asked_to_end.wait()
        tasks[0].cancel()
        await member.leave(worker)
        tasks[1].cancel()
    await server.stop(grace=1)
    await bus.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nats", default="nats://127.0.0.1:4222")
    parser.add_argument("--cluster", default="stator")
    parser.add_argument("--model", type=Path, required=True, help="where its tokenizer.json lies")
    parser.add_argument("--model-name", default="echo")
    parser.add_argument("--name", default="python-1")
    asyncio.run(main(parser.parse_args()))
