"""Runs the suites of popular clients against one `stator serve` of the bundled model.

    python e2e/clients/run.py                  all of them (`make e2e`)
    python e2e/clients/run.py --quick          the ones of `make test`
    python e2e/clients/run.py --only litellm   by name
"""

import argparse
import os
import re
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "python"))

from catalogue import CLIENTS  # noqa: E402
from expected import EXPECTED_FAILURES  # noqa: E402
from install import TARGET, install  # noqa: E402
from results import Outcome, judge, table  # noqa: E402
from stator_process import Server  # noqa: E402

SUITE_DEADLINE_S = 900
UNEXPECTED = re.compile(r"\b(WARN|ERROR)\b|panicked")

# A closed port: whatever a client wants from elsewhere (price lists, telemetry) fails at once.
NOWHERE = "http://127.0.0.1:9"


def main():
    arguments = parse()
    chosen = [client for client in CLIENTS if is_chosen(client, arguments)]
    installed = [(client, *install(client)) for client in chosen]
    with Server() as server:
        outcomes = [run(server, *each) for each in installed]
        server.interrupt()
        server.exit_code()
        complaints = [line for line in server.stderr.to_end() if UNEXPECTED.search(line)]
    return report(outcomes, complaints)


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="only the clients of `make test`")
    names = [client.name for client in CLIENTS]
    parser.add_argument("--only", action="append", choices=names, help="only this client")
    return parser.parse_args()


def is_chosen(client, arguments):
    named = arguments.only is None or client.name in arguments.only
    return named and (client.quick or not arguments.quick)


def run(server, client, command, directory, version):
    """Runs one client's suite to its end."""
    outcome = Outcome(client.name, version)
    junit = TARGET / "clients" / f"{client.name}.xml"
    junit.parent.mkdir(parents=True, exist_ok=True)
    junit.unlink(missing_ok=True)
    if "--test" in command:
        reporter = ["--test-reporter=junit", f"--test-reporter-destination={junit}"]
        command = [command[0], command[1], *reporter, *command[2:]]
    else:
        command = [*command, "-q", f"--junitxml={junit}"]
    print(f"running {client.name} {version}", flush=True)
    began = time.monotonic()
    code, printed = run_command(command, directory, environment_of(server))
    outcome.seconds = time.monotonic() - began
    if junit.is_file():
        judge(outcome, junit, EXPECTED_FAILURES.get(client.name, {}))
    if code is None:
        outcome.failed.append(("the suite", f"not done in {SUITE_DEADLINE_S} s\n{printed}"))
    elif code != 0 and not (outcome.failed or outcome.expected):
        outcome.failed.append(("the suite", f"exit code {code}\n{printed}"))
    return outcome


def run_command(command, directory, environment):
    """The exit code of the command and what it printed; no code if it took too long."""
    process = subprocess.Popen(
        [str(part) for part in command],
        cwd=directory,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        printed, _ = process.communicate(timeout=SUITE_DEADLINE_S)
        return process.returncode, printed
    except subprocess.TimeoutExpired:
        process.kill()
        return None, process.communicate()[0]


def environment_of(server):
    """The environment without what would send a client elsewhere, and with our server in it."""
    foreign = ("OPENAI_", "LANGSMITH_", "LANGCHAIN_", "LITELLM_", "LOGFIRE_", "PYTEST_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    return {
        **kept,
        "STATOR_BASE_URL": server.base_url,
        "STATOR_SERVED_MODEL": server.model,
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        **dict.fromkeys(["HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"], NOWHERE),
        **dict.fromkeys(["NO_PROXY", "no_proxy"], server.host),
    }


def report(outcomes, complaints):
    """Prints what happened. The exit code is 1 when anything failed."""
    for outcome in outcomes:
        for name, text in outcome.failed:
            print(f"--- {outcome.client}: {name}\n{text.strip()}\n")
        for name, reason in outcome.skipped:
            print(f"skipped by {outcome.client}: {name}: {reason.splitlines()[0]}")
        for name in outcome.expected:
            reason = EXPECTED_FAILURES[outcome.client][name]
            print(f"expected of {outcome.client}: {name}: {reason}")
    print(*table(outcomes), sep="\n")
    for line in complaints:
        print(f"the server complained: {line}")
    return 1 if complaints or any(outcome.failed for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
