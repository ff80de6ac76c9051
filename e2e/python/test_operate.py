"""What docs/operate.md says of NATS: components need no more than the permissions it names."""

import contextlib
import json
import re
import socket
import subprocess
import urllib.request

from cluster import Component, nats_binary, wait_until
from stator_process import DEADLINE_S, REPOSITORY


def documented_permissions(password):
    """The configuration of a NATS server as the page has it."""
    page = (REPOSITORY / "docs/operate.md").read_text()
    configuration = re.search(r"```\n(authorization .*?)```", page, re.DOTALL)[1]
    assert '"…"' in configuration
    return configuration.replace('"…"', f'"{password}"')


@contextlib.contextmanager
def confined_nats(directory):
    """A NATS server with the page's permissions; its URL, and where it logs."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    settings, log = directory / "nats.conf", directory / "nats.log"
    jetstream = f'jetstream {{ store_dir: "{directory}" }}\n'
    settings.write_text(jetstream + documented_permissions("secret"))
    command = [nats_binary(), "-c", settings, "-l", log, "-a", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command)
    try:
        yield f"nats://127.0.0.1:{port}", log
    finally:
        process.kill()
        process.wait(timeout=DEADLINE_S)


def ask(address, path, body=None):
    """What the API answers."""
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(address + path, body and json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=DEADLINE_S) as response:
        return json.load(response)


def test_documented_permissions_are_enough(tmp_path):
    password = tmp_path / "password"
    password.write_text("secret\n")
    commands = (
        ["router"],
        ["router"],
        ["prefill-worker", "--engine", "mock"],
        ["decode-worker", "--engine", "mock"],
        ["gateway", "--listen", "127.0.0.1:0"],
    )
    with contextlib.ExitStack() as stack:
        url, log = stack.enter_context(confined_nats(tmp_path))
        login = ("--nats", url, "--nats-user", "stator", "--nats-password-file", password)
        components = [stack.enter_context(Component(*command, *login)) for command in commands]
        address = components[-1].address("API")
        wait_until(lambda: ask(address, "/models")["data"], "the gateway hears of the workers")
        # Enough for KV events, and for routers to tell each other.
        for number in range(20):
            body = {"model": "stator-demo", "prompt": f"{number} " * 50, "max_tokens": 4}
            assert ask(address, "/completions", body)["usage"]["completion_tokens"] == 4
        for component in reversed(components):
            code, lines = component.end()
            assert (code, [line for line in lines if "WARN" in line or "ERROR" in line]) == (0, [])
    assert [line for line in log.read_text().splitlines() if "iolation" in line] == []
