"""Measures how much of a KV transfer is left to see after the first token.

    python3 bench/handoff.py target/release/stator [--model DIR] [--requests N]

Sends prompts of 2,000 tokens, computed in chunks of 512 by the prefill worker, and reads from the
decode worker's log how long the copies of each took and what passed between the first token and the
last copy. Uses nothing but the standard library.
"""

import argparse
import os
import re
import statistics

from serve import Server, prompt

PROMPT_TOKENS = 2000
MOVED = re.compile(r"blocks moved .*blocks=(\d+) copies_us=(\d+) after_first_token_us=(\d+)")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("binary")
    parser.add_argument("--model", help="model directory; the bundled model if absent")
    parser.add_argument("--requests", type=int, default=20)
    arguments = parser.parse_args()
    os.environ["STATOR_LOG"] = "decode_worker=debug"
    server = Server(arguments.binary, arguments.model, log=True)
    for request in range(arguments.requests):
        server.stream(prompt(PROMPT_TOKENS, 5000 + request), 4)
    server.stop()
    moved = [tuple(map(int, match)) for match in MOVED.findall(server.process.stderr.read())]
    if len(moved) != arguments.requests:
        raise SystemExit(f"{len(moved)} of {arguments.requests} prompts were moved")
    rows = {
        "blocks": [blocks for blocks, _, _ in moved],
        "copies (us)": [copies for _, copies, _ in moved],
        "after the first token (us)": [after for _, _, after in moved],
        "share (%)": [100 * after / copies for _, copies, after in moved],
    }
    print(f"{'':28}{'min':>10}{'median':>10}{'max':>10}")
    for name, values in rows.items():
        row = (min(values), statistics.median(values), max(values))
        print(f"{name:28}" + "".join(f"{value:10,.4g}" for value in row))


if __name__ == "__main__":
    main()
