"""Measures how much of a KV transfer is left to see after the first token.

    python3 bench/handoff.py target/release/stator [--model DIR] [--requests N]

Sends prompts of 2,000 tokens, computed in chunks of 512 by the prefill worker, and reads from the
decode worker's log how long the copies of each took, how much of that was after the first token,
and what passed from there until decoding began. Uses nothing but the standard library.
"""

import argparse
import os
import re
import tempfile

from figures import print_figures
from serve import Server, prompt

PROMPT_TOKENS = 2000
MOVED = re.compile(
    r"blocks moved .*blocks=(\d+) copies_us=(\d+) exposed_us=(\d+) until_decode_us=(\d+)"
)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("binary")
    parser.add_argument("--model", help="model directory; the bundled model if absent")
    parser.add_argument("--requests", type=int, default=20)
    arguments = parser.parse_args()
    os.environ["STATOR_LOG"] = "decode_worker=debug"
    with tempfile.TemporaryFile("w+") as log:
        server = Server(arguments.binary, arguments.model, log)
        for request in range(arguments.requests):
            server.stream(prompt(PROMPT_TOKENS, 5000 + request), 4)
        server.stop()
        log.seek(0)
        moved = [tuple(map(int, match)) for match in MOVED.findall(log.read())]
    # The router may have others computed by the decode worker itself.
    print(f"{len(moved)} of {arguments.requests} prompts were computed by the prefill worker")
    if not moved:
        raise SystemExit(1)
    rows = {
        "blocks": [blocks for blocks, _, _, _ in moved],
        "copies (us)": [copies for _, copies, _, _ in moved],
        "  after the first token (us)": [exposed for _, _, exposed, _ in moved],
        "  share (%)": [100 * exposed / copies for _, copies, exposed, _ in moved],
        "first token to decode (us)": [until for _, _, _, until in moved],
    }
    print_figures(rows)


if __name__ == "__main__":
    main()
