"""Checks and measures the command on one card, and prints one table: README.md.

    python3 bench/gpu/check.py target/release/stator [--device cuda:0] [--nats-server PROGRAM]

Exit code 1: something was wrong, or did not run.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "engine"))

try:
    import parts
except ModuleNotFoundError as error:
    raise SystemExit(f"this needs {error.name}: pip install {error.name}") from None
import servers
from report import Report
from shapes import SHAPES


# Cards are lent for minutes.
WHOLE_S_MAX = 540


def let_libraries_be_found():
    """CUDA's libraries may lie where pip puts them, and nobody else looks."""
    found = [library for folder in sys.path for library in Path(folder).glob("nvidia/*/lib")]
    paths = [os.environ.get("LD_LIBRARY_PATH", ""), *map(str, found)]
    os.environ["LD_LIBRARY_PATH"] = ":".join(filter(None, paths))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("binary", type=os.path.abspath)
    parser.add_argument("--device", default="cuda:0", help="as `stator serve` takes it; candle-cpu needs no GPU")
    parser.add_argument("--nats-server", help="for workers in processes of their own", type=os.path.abspath)
    parser.add_argument("--shape", choices=SHAPES, nargs="+", help="whose speed is measured")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--copied-mib", type=int, help="of each pool between which blocks are copied")
    parser.add_argument("--seconds", type=int, default=10, help="of each load")
    parser.add_argument("--only", choices=[part.__name__ for part in parts.ALL], nargs="+", help="these parts")
    run = parser.parse_args()
    for program in filter(None, (run.binary, run.nats_server)):
        if not (os.path.isfile(program) and os.access(program, os.X_OK)):
            parser.error(f"{program} is no program")
    run.is_on_gpu = "cuda" in run.device
    # Tokens per second of many streams, by shape.
    run.rates = {}
    run.shape = run.shape or (["llama-1b", "llama-8b"] if run.is_on_gpu else ["llama-15m"])
    # As the driver's tools count, whose figures are read by the same number.
    os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    let_libraries_be_found()
    report = Report()
    servers.ends = time.monotonic() + (WHOLE_S_MAX if run.is_on_gpu and not run.only else 24 * 3600)
    whole = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as logs:
        for part in parts.ALL:
            if run.only and part.__name__ not in run.only:
                continue
            run.logs = Path(logs, part.__name__)
            run.logs.mkdir()
            began = time.monotonic()
            try:
                servers.left_s()
                part(run, report)
            # One part that fails must not hide the others' results.
            except (Exception, SystemExit) as error:
                report.not_run(part.__name__, f"{type(error).__name__}: {error}")
            print(f"{part.__name__} took {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    took_s = time.monotonic() - whole
    if run.only or not run.is_on_gpu:
        report.figure("time", "these parts", f"{took_s:.0f} s")
    else:
        report.check("time", "everything", took_s <= WHOLE_S_MAX, f"{took_s:.0f} s, at most {WHOLE_S_MAX}")
    report.print()
    raise SystemExit(not report.is_sound)


if __name__ == "__main__":
    main()
