"""`stator` as a user runs it: a process with arguments, two outputs, signals and an exit code."""

import os
import queue
import re
import signal
import subprocess
import threading
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
BINARY = Path(os.environ.get("STATOR_BINARY", "target/debug/stator"))

# Nothing here is meant to take this long; a test that waits longer has found a hang.
DEADLINE_S = 180

ADDRESS_LINE = re.compile(r"^  API   http://([0-9.]+):(\d+)/v1\b")
NAME_LINE = re.compile(r"^serving (\S+) \(")


def command(*arguments, binary=BINARY):
    """The command line. A relative binary is looked for in the repository."""
    binary = REPOSITORY / binary
    assert binary.is_file(), f"{binary} does not exist; build it or set STATOR_BINARY"
    return [str(binary), *map(str, arguments)]


def run(*arguments, environment=None):
    """Runs a command that is expected to end by itself; a server that begins to serve is killed."""
    process = start(*arguments, environment=environment)
    stdout, stderr = Lines(process.stdout), Lines(process.stderr)
    threading.Thread(target=kill_if_it_serves, args=(process, stdout), daemon=True).start()
    try:
        process.wait(timeout=DEADLINE_S)
    finally:
        process.kill()
    return Ended(process.returncode, stdout.to_end(), stderr.to_end())


def start(*arguments, binary=BINARY, environment=None):
    """The process, with pipes to read its outputs, and with more in its environment."""
    return subprocess.Popen(
        command(*arguments, binary=binary),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        env=os.environ | (environment or {}),
    )


@dataclass
class Ended:
    """How a command ended and the lines that it wrote."""

    code: int
    stdout: list
    stderr: list


def kill_if_it_serves(process, stdout):
    """Keeps a test that expects a refusal from waiting for a server's end."""
    for line in stdout.coming():
        if NAME_LINE.match(line):
            process.kill()


def check_sentence(ended, code, *parts):
    """The command must have failed with a single sentence, which has all `parts`."""
    assert (ended.code, ended.stdout) == (code, []), ended
    assert len(ended.stderr) == 1, ended
    sentence = ended.stderr[0]
    assert sentence.startswith("stator: ")
    assert [part for part in parts if part not in sentence] == [], sentence


class Lines:
    """A pipe's lines, read as they come so that the process never waits for its reader."""

    def __init__(self, pipe):
        self.seen = []
        self._news = queue.Queue()
        self._thread = threading.Thread(target=self._read, args=(pipe,), daemon=True)
        self._thread.start()

    def _read(self, pipe):
        with pipe:
            for line in pipe:
                self.seen.append(line.rstrip("\n"))
                self._news.put(line.rstrip("\n"))
        self._news.put(None)

    def coming(self):
        """The lines that nobody has taken yet, as they come, until the pipe is closed."""
        while (line := self._news.get(timeout=DEADLINE_S)) is not None:
            yield line

    def wait_for(self, pattern):
        """The match of the next line that `pattern` is found in."""
        found = next(filter(None, (re.search(pattern, line) for line in self.coming())), None)
        assert found, f"no line like {pattern!r}: {self.seen}"
        return found

    def to_end(self):
        """All lines, once the process has closed the pipe."""
        self._thread.join(timeout=DEADLINE_S)
        assert not self._thread.is_alive(), "the pipe is still open"
        return self.seen


class Server:
    """`stator serve` on a free port, ready to be asked. Use it in a `with`, which ends it."""

    def __init__(self, *arguments):
        self.process = start("serve", "--listen", "127.0.0.1:0", *arguments)
        self.stdout = Lines(self.process.stdout)
        self.stderr = Lines(self.process.stderr)
        try:
            self.model = self.stdout.wait_for(NAME_LINE)[1]
            address = self.stdout.wait_for(ADDRESS_LINE)
        except BaseException:
            self.kill()
            raise
        self.host, self.port = address[1], int(address[2])
        self.base_url = f"http://{self.host}:{self.port}/v1"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()

    def kill(self):
        """Ends the process if it still runs."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(timeout=DEADLINE_S)

    def interrupt(self):
        """What Ctrl-C does."""
        self.process.send_signal(signal.SIGINT)

    def exit_code(self):
        """The exit code, once the process has ended."""
        return self.process.wait(timeout=DEADLINE_S)
