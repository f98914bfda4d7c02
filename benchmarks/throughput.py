"""Training and inference beside other projects: live processes that take turns, each alone on the machine while it runs.

    python benchmarks/throughput.py                                          # training and inference at 32 and 224 pixels
    python benchmarks/throughput.py --tasks 32 --modes train --contenders keras_vit timm
    python benchmarks/throughput.py --depth 24 --json results.json

Processes run in heats of a few, as many as fit into memory. timm is in every heat. In each turn a contender's rate is divided by
timm's rate of that turn, so that a noisy machine hits both alike; a ratio is the median over the turns. README.md beside this file
says how to install the peers; those that are not installed are left out. Float32 on a CPU, bfloat16 on a GPU.
"""

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
from pathlib import Path

from keras_vit.processes import run_command

BASELINE = "timm"
TASKS = {
    "32": {"image_size": 32, "patch_size": 4, "width": 192, "depth": 12, "num_heads": 3, "batch_size": 64},
    "224": {"image_size": 224, "patch_size": 16, "width": 384, "depth": 12, "num_heads": 6, "batch_size": 8},
    "S/16": {"image_size": 224, "patch_size": 16, "width": 384, "depth": 12, "num_heads": 6, "batch_size": 256},
    "B/16": {"image_size": 224, "patch_size": 16, "width": 768, "depth": 12, "num_heads": 12, "batch_size": 128},
}
MODES = ("train", "infer")


def parse_options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=["32", "224"], help="default: 32 224")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES), help="default: both")
    parser.add_argument("--contenders", nargs="+", help="names, or what they begin with; default: all that are installed")
    parser.add_argument("--turns", type=int, default=5, help="turns of each contender (default: 5)")
    parser.add_argument("--seconds", type=float, default=8, help="length of a turn (default: 8)")
    parser.add_argument("--heat", type=int, default=5, help="processes that live at the same time (default: 5)")
    parser.add_argument("--depth", type=int, help="blocks; default: the task's")
    parser.add_argument("--batch-size", type=int, help="default: the task's; 1 gives the latency")
    parser.add_argument("--json", type=Path, help="file to write: every turn of every contender")
    return parser.parse_args()


def main():
    options = parse_options()
    from contenders import CONTENDERS, missing
    from record import write_record
    from rich.console import Console

    from keras_vit.machine import machine
    from keras_vit.model.config import ViTConfig

    console = Console(highlight=False, soft_wrap=True, width=max(Console().width, 110))
    wanted = options.contenders or list(CONTENDERS)
    for name in wanted:
        if not any(known.startswith(name) for known in CONTENDERS):
            raise ValueError(f"--contenders: received {name!r}; allowed: {', '.join(CONTENDERS)}")
    names = [name for name in CONTENDERS if name != BASELINE and any(name.startswith(start) for start in wanted)]
    for name in [BASELINE, *names]:
        if missing(name):
            console.print(f"{name}: left out, as {', '.join(missing(name))} is not installed", markup=False)
    names = [name for name in names if not missing(name)]
    if missing(BASELINE):
        raise ValueError(f"{BASELINE}: the others are compared with it; pip install -r requirements-dev.txt")
    where = machine()
    precision = "float32" if "cores" in where["device"] else "bfloat16"
    results = []
    for task_name in options.tasks:
        task = {**TASKS[task_name], "precision": precision}
        task["depth"] = options.depth or task["depth"]
        task["batch_size"] = options.batch_size or task["batch_size"]
        config = ViTConfig(
            **{key: task[key] for key in ("image_size", "patch_size", "width", "depth", "num_heads")},
            mlp_dim=4 * task["width"],
            num_classes=10,
        )
        for mode in options.modes:
            able = [name for name in names if mode in CONTENDERS[name][0].modes]
            rows = race(able, mode, task, options, console.print)
            for row in rows:
                flops = config.training_flops if mode == "train" else config.flops
                row["utilisation"] = row["rate"] * flops / row.pop("peak_flops")
            results.append({"mode": mode, **task, "rows": rows})
            console.print(table(results[-1], where["device"]))
            if options.json:
                write_record(options.json, results=results)


def race(names, mode, task, options, report):
    """A row for each contender, the baseline first."""
    size = options.heat - 1
    heats = [names[start : start + size] for start in range(0, len(names), size)] or [[]]
    rows = {}
    for heat in heats:
        with contextlib.ExitStack() as stack:
            files = stack.enter_context(tempfile.TemporaryDirectory())
            settings = {**task, "training": mode == "train"}
            processes = {}
            for name in [BASELINE, *heat]:
                report(f"{mode}: {name} ...", markup=False)
                try:
                    processes[name] = stack.enter_context(contender(name, {**settings, "folder": f"{files}/{name}"}))
                except ValueError as error:
                    if name == BASELINE:
                        raise
                    report(f"  failed: {error}", markup=False)
            turns, peaks = {name: [] for name in processes}, []
            counts = {name: 1 for name in processes}
            for turn in range(options.turns + 1):
                for name, process in list(processes.items()):
                    try:
                        answer = ask(process, mode, counts[name], task["batch_size"])
                    except ValueError as error:
                        if name == BASELINE:
                            raise
                        report(f"  failed: {error}", markup=False)
                        del processes[name]
                        continue
                    rate = counts[name] * task["batch_size"] / answer["seconds"]
                    counts[name] = max(1, round(options.seconds * rate / task["batch_size"]))
                    if turn:  # the first one warms up and tells how many steps fill a turn
                        turns[name].append(rate)
                    process.memory = answer["memory_mb"]
                peaks.append(processes[BASELINE].ask(do="product")["flops"])
            for name, process in processes.items():
                rows.setdefault(
                    name,
                    {
                        "name": name,
                        "rate": statistics.median(turns[name]),
                        "ratio": statistics.median(a / b for a, b in zip(turns[name], turns[BASELINE], strict=True)),
                        "first_step": process.description["first"],
                        "memory_mb": process.memory,
                        "turns": turns[name],
                        "baseline_turns": turns[BASELINE],
                        "peak_flops": statistics.median(peaks),
                    },
                )
    return list(rows.values())


def contender(name, task):
    from contenders import CONTENDERS

    from keras_vit.export.runtimes import Companion

    script = Path(__file__).with_name("contenders.py")
    return Companion(name, [sys.executable, str(script), name, json.dumps(task)], CONTENDERS[name][2])


def ask(process, mode, count, batch_size):
    if mode == "train":
        return process.ask(do="train", steps=count)
    return process.ask(do="infer", batches=count, batch_size=batch_size)


def table(result, device):
    from rich.table import Table

    task = "{image_size} px, patch {patch_size}, width {width}, depth {depth}, batch {batch_size}, {precision}".format(**result)
    columns = Table("", title=f"{result['mode']}: {task}; {device}")
    for name in ("images/s", f"of {BASELINE}", "of the peak", "first step", "peak memory"):
        columns.add_column(name, justify="right")
    for row in result["rows"]:
        columns.add_row(
            row["name"],
            f"{row['rate']:,.1f}",
            f"{row['ratio']:.2f}",
            f"{row['utilisation']:.0%}",
            f"{row['first_step']:.1f} s",
            f"{row['memory_mb'] / 1000:.1f} GB",
        )
    return columns


if __name__ == "__main__":
    run_command(main)
