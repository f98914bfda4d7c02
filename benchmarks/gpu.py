"""Every check that needs a GPU, in one command and eight minutes.

    KERAS_BACKEND=jax python benchmarks/gpu.py --data cifar10 --json gpu-jax.json
    KERAS_BACKEND=torch python benchmarks/gpu.py --data cifar10 --seconds 240 --only speed best

parity: the installed backends on the same weights and batch. speed: training and inference beside timm, in bfloat16. deterministic:
what `train.deterministic` costs. quick, standard, best: the recipes, each trained within its share of the time.

The checks run one after the other, each in a process of its own. One that fails, or does not end within its share, is recorded so,
and the next one begins.
"""

import argparse
import json
import os
import pathlib
import shlex
import subprocess
import sys
import tempfile
import time

from levers import BACKENDS
from record import write_record

from keras_vit.processes import end_process, run_command, start_process

ROOT = pathlib.Path(__file__).parents[1]
TRAIN = "-m keras_vit.cli train --data {data} --time {seconds}s --out {out} --recipe"
CHECKS = {  # share of the time, and what follows `python`
    "parity": (0.08, "-m keras_vit.cli parity S/16 --json {out}.json"),
    "speed": (
        0.2,
        "benchmarks/throughput.py --tasks 32 S/16 --contenders 'keras_vit, {title}' --turns 2 --seconds 2 --json {out}.json",
    ),
    "deterministic": (0.08, "benchmarks/checkouts.py . . --deterministic --turns 2 --seconds 1 --json {out}.json"),
    "quick": (0.14, f"{TRAIN} quick"),
    "standard": (0.2, f"{TRAIN} standard"),
    "best": (0.3, f"{TRAIN} best"),
}
START_SECONDS = 15  # of a training's share that its time leaves free, for the end of the process


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=480, help="of all checks together (default: 480)")
    parser.add_argument("--only", nargs="+", choices=CHECKS, default=list(CHECKS), help="default: all")
    parser.add_argument("--data", default="cifar10", help="of the recipes (default: cifar10)")
    parser.add_argument("--json", type=pathlib.Path, help="file to write, anew after each check")
    options = parser.parse_args()
    whole, checks = sum(CHECKS[name][0] for name in options.only), {}
    with tempfile.TemporaryDirectory() as folder:
        for name in options.only:
            seconds = options.seconds * CHECKS[name][0] / whole
            checks[name] = check(name, seconds, options.data, pathlib.Path(folder) / name)
            print(f"{name}: {described(checks[name])}", flush=True)
            if options.json:
                write_record(options.json, checks=checks)
    return int(any(each["error"] for each in checks.values()))


def check(name, seconds, data, out):
    """Runs a check to its end, or ends it after `seconds`."""
    values = {"data": data, "out": str(out), "seconds": max(int(seconds) - START_SECONDS, 1)}
    values["title"] = BACKENDS[os.environ["KERAS_BACKEND"]]  # which keras_vit has set where the user has not
    arguments = [each.format(**values) for each in shlex.split(CHECKS[name][1])]
    before, error, output = time.perf_counter(), "", b""
    process = start_process([sys.executable, *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        output = process.communicate(timeout=seconds)[0]
    except subprocess.TimeoutExpired as stop:
        error = f"not at its end after {seconds:.0f} s; its last line: {last_line(stop.output)}"
    finally:
        end_process(process)
    if not error and process.returncode:
        error = last_line(output) or f"exit code {process.returncode}"
    found = [path for path in (out.with_suffix(".json"), out / "summary.json") if path.exists()]
    return {
        "command": " ".join(["python", *arguments]).replace(str(out.parent), "OUT"),
        "seconds": round(time.perf_counter() - before, 1),
        "error": error,
        "outcome": json.loads(found[0].read_text(encoding="utf-8")) if found else None,
    }


def last_line(output):
    return ((output or b"").decode(errors="replace").strip().splitlines() or [""])[-1]


def described(outcome):
    if outcome["error"]:
        return outcome["error"]
    accuracy = outcome["outcome"].get("test_accuracy") if isinstance(outcome["outcome"], dict) else None
    return f"{outcome['seconds']:.0f} s" if accuracy is None else f"test {accuracy:.2%}, {outcome['seconds']:.0f} s"


if __name__ == "__main__":
    run_command(main)
