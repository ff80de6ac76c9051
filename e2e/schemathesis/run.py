"""Asks `stator serve` whatever `docs/openapi.json` allows, and what it does not: no answer may be a
failure of the server, and each must be as the description says.

    python e2e/schemathesis/run.py                       `make e2e-schemathesis`
    python e2e/schemathesis/run.py --max-examples 1000   or whatever else schemathesis takes
"""

import os
import re
import subprocess
import sys
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
sys.path.insert(0, str(HERE.parent / "python"))

from stator_process import Server  # noqa: E402

ENVIRONMENT = REPOSITORY / "target" / "schemathesis"
UNEXPECTED = re.compile(r"\b(WARN|ERROR)\b|panicked")

# A context that a few steps fill, so that requests without a limit end soon.
SERVED = ("--engine", "mock", "--kv-blocks", 32, "--client-timeout", 5)

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "unsupported_method",
    "allow_header_conformance",
)


def main():
    schemathesis = install()
    with Server(*SERVED) as server:
        code = run(schemathesis, server)
        server.interrupt()
        ended = server.exit_code()
        complaints = [line for line in server.stderr.to_end() if UNEXPECTED.search(line)]
    for line in complaints:
        print(f"the server logged: {line}")
    return code or ended or bool(complaints)


def install():
    """The command, installed as pinned."""
    pinned, stamp = HERE / "requirements.txt", ENVIRONMENT / ".installed"
    if not stamp.is_file() or stamp.read_text() != pinned.read_text():
        venv.create(ENVIRONMENT, with_pip=True, clear=True)
        pip = [ENVIRONMENT / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "--requirement", pinned], check=True)
        stamp.write_text(pinned.read_text())
    return ENVIRONMENT / "bin" / "schemathesis"


def run(schemathesis, server):
    """Schemathesis' exit code."""
    command = [
        *(schemathesis, "--config-file", HERE / "schemathesis.toml", "run"),
        *(REPOSITORY / "docs" / "openapi.json", "--url", f"http://{server.host}:{server.port}"),
        *("--checks", ",".join(CHECKS), "--phases", "examples,coverage,fuzzing"),
        *("--seed", "1", "--max-examples", "60", "--request-timeout", "60", "--no-color"),
        *sys.argv[1:],
    ]
    settings = {"SCHEMATHESIS_HOOKS": str(HERE / "hooks.py"), "STATOR_SERVED_MODEL": server.model}
    return subprocess.run(command, env=os.environ | settings, cwd=ENVIRONMENT).returncode


if __name__ == "__main__":
    sys.exit(main())
