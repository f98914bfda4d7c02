"""What each change of a recipe brings: trains it with and without, over several seeds, each run in a process of its own.

    python benchmarks/levers.py --recipe quick --data cifar10 --lever "mimetic=--train.init mimetic" --json levers.json
    python benchmarks/levers.py --recipe quick --data cifar10 --lever "shallow stem=--model.stem_depth 0" --seeds 0 1 2
    python benchmarks/levers.py --plot docs/levers.png benchmarks/results/levers-*.json    # accuracy over seconds, of records

The recipe itself is the first row. A run counts from the start of its process to its end. Choices are made by the validation
accuracy of the best epoch; the test accuracy is the run's own, read once at its end. With `--out`, runs that are finished there are
not trained again, and one that was killed goes on. `--together 2` trains two at a time, each on its share of the processor's cores:
for runs of equal steps, whose seconds do not count.
"""

import argparse
import concurrent.futures
import hashlib
import itertools
import json
import math
import os
import pathlib
import queue
import shlex
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np
from record import write_record

from keras_vit.processes import run_command
from keras_vit.recipes.parse import load_recipe
from keras_vit.runs.folder import RunFolder

PLAIN = "as it is"  # as tables.py knows it
BACKENDS = {"torch": "PyTorch", "tensorflow": "TensorFlow", "jax": "JAX"}
DIGITS = 3  # of the seconds in a record
DIGEST = 8  # characters, of the settings in a folder's name


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", nargs="*", type=pathlib.Path, help="records that --plot draws")
    parser.add_argument("--recipe", default="quick")
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--lever", action="append", default=[], metavar="NAME=OPTIONS", help="settings on top of the recipe")
    parser.add_argument("--options", default="", help="settings of every run, the recipe's own too")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--together", type=int, default=1, metavar="N", help="runs at a time (default: 1)")
    parser.add_argument("--out", type=pathlib.Path, help="folder of the runs; default: a temporary one")
    parser.add_argument("--json", type=pathlib.Path, help="file to write, anew after each run")
    parser.add_argument("--plot", type=pathlib.Path, help="picture to draw from records")
    options = parser.parse_args()
    if options.plot:
        draw([json.loads(path.read_text(encoding="utf-8")) for path in options.records], options.plot)
        return
    levers = {PLAIN: ""} | dict(each.split("=", 1) for each in options.lever)
    runs = []
    with tempfile.TemporaryDirectory() as temporary:
        out = options.out or pathlib.Path(temporary)

        def one(job):
            seed, (name, settings) = job
            folder = out / f"{pathlib.Path(options.recipe).stem}-{seed}-{digest_of(options, settings)}"
            return {"lever": name, "settings": settings, "seed": seed, **trained(options, settings, seed, folder)}

        # Seed by seed, so that a record that is cut short compares all levers.
        with concurrent.futures.ThreadPoolExecutor(options.together, initializer=take_cores(options.together)) as pool:
            for run in pool.map(one, itertools.product(options.seeds, levers.items())):
                runs.append(run)
                print(f"{run['lever']}, seed {run['seed']}: {described(run)}", flush=True)
                if options.json:
                    columns, rows = summarised(runs)
                    write_record(options.json, recipe=options.recipe, data=options.data, columns=columns, rows=rows, runs=runs)
    for row in summarised(runs)[1]:
        print(*row, sep="  ")


def take_cores(together):
    """Returns a function that binds the calling thread, and the processes it starts, to its share of the cores (Linux)."""
    if together == 1:
        return None
    cores, shares = sorted(os.sched_getaffinity(0)), queue.SimpleQueue()
    for number in range(together):
        shares.put(cores[number::together])
    return lambda: os.sched_setaffinity(0, shares.get())


def digest_of(options, settings):
    """Of all that decides a run besides its seed."""
    backend, recipe = os.environ.get("KERAS_BACKEND"), load_recipe(options.recipe, data=options.data).to_dict()
    return hashlib.sha256(repr((backend, recipe, options.options, settings)).encode()).hexdigest()[:DIGEST]


def trained(options, settings, seed, folder):
    """Trains one run and returns what is known of it."""
    command = [sys.executable, "-m", "keras_vit.cli", "train", "--recipe", options.recipe, "--data", options.data]
    command += [*shlex.split(options.options), *shlex.split(settings), f"--seed={seed}"]
    marker = folder.with_name(f"{folder.name}.seconds")  # of the process, which its own summary cannot know
    if not marker.exists():
        before = time.perf_counter()
        folder.parent.mkdir(parents=True, exist_ok=True)
        with open(folder.with_name(f"{folder.name}.log"), "a", encoding="utf-8") as log:
            subprocess.run([*command, "--out", str(folder), "--resume", "auto"], stdout=log, stderr=log, check=True)
        marker.write_text(f"{time.perf_counter() - before:.{DIGITS}f}\n", encoding="utf-8")
    run = RunFolder(folder)
    summary = run.summary
    seconds = max(float(marker.read_text(encoding="utf-8")), summary["process_seconds"])  # of a killed run: without its ends
    start = summary["process_seconds"] - summary["seconds"]  # before the first epoch, and the test
    return {
        "backend": summary["backend"],
        "device": summary["device"],
        "precision": summary["precision"],
        "seconds": seconds,
        "val_accuracy": summary["val_accuracy"],
        "test_accuracy": summary["test_accuracy"],
        "parameters": summary["parameters"],
        "images_per_second": round(statistics.median(row["images_per_second"] for row in run.metrics)),
        "epochs": summary["epochs"],
        "steps_per_epoch": run.recipe.train.steps_per_epoch,
        "curve": [[round(start + row["seconds"], 1), row["val_accuracy"]] for row in run.metrics if "val_accuracy" in row],
    }


def described(run):
    return f"validation {run['val_accuracy']:.2%}, test {run['test_accuracy']:.2%}, {run['seconds']:.0f} s"


def summarised(runs):
    """Columns and rows of the table: mean and spread of each lever, and its gain over the recipe with the same seeds."""
    columns, rows = ["", "validation", "gain", "test", "seconds", "seeds"], []
    plain = {run["seed"]: run for run in runs if run["lever"] == PLAIN}
    for name in dict.fromkeys(run["lever"] for run in runs):
        own = [run for run in runs if run["lever"] == name]
        gains = [100 * (run["val_accuracy"] - plain[run["seed"]]["val_accuracy"]) for run in own]
        seconds = sorted(run["seconds"] for run in own)
        rows.append(
            [
                f"`{own[0]['settings']}`" if own[0]["settings"] else name,
                spread([100 * run["val_accuracy"] for run in own], "{:.2f}%"),
                "" if name == PLAIN else spread(gains, "{:+.2f}"),
                spread([100 * run["test_accuracy"] for run in own], "{:.2f}%"),
                f"{seconds[0]:,.0f}" if len(own) == 1 else f"{seconds[0]:,.0f} to {seconds[-1]:,.0f}",
                str(len(own)),
            ]
        )
    return columns, rows


def spread(values, form):
    """Mean ± standard deviation."""
    text = form.format(statistics.mean(values))
    return text if len(values) == 1 else f"{text} ± {statistics.stdev(values):.2f}"


def draw(records, path):
    """Validation accuracy over the seconds since the start of the process: recipes, and beside them what was changed in one.

    A line is the mean of the seeds, the band from the lowest to the highest.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = {False: [], True: []}
    for record in records:
        compares = any(run["lever"] != PLAIN for run in record["runs"])
        panels[compares] += [{**run, "name": name_of(record["recipe"], run, compares)} for run in record["runs"]]
    panels = [runs for runs in panels.values() if runs]
    figure, every = plt.subplots(1, len(panels), figsize=(7 * len(panels), 5), layout="constrained", squeeze=False)
    for axes, runs in zip(every[0], panels, strict=True):
        for name in dict.fromkeys(run["name"] for run in runs):
            curves = np.array([run["curve"] for run in runs if run["name"] == name])  # (seeds, epochs, 2)
            seconds, accuracies = curves[..., 0].mean(axis=0), 100 * curves[..., 1]
            (line,) = axes.plot(seconds, accuracies.mean(axis=0), label=name, linewidth=1.2)
            lowest, highest = accuracies.min(axis=0), accuracies.max(axis=0)
            axes.fill_between(seconds, lowest, highest, color=line.get_color(), alpha=0.15, linewidth=0)
        axes.set_xscale("log")
        low, high = axes.get_xlim()
        ticks = [tick for tick in (15, 30, 60, 120, 180, 300, 600, 1200, 1800, 3600, 7200) if low / 1.2 <= tick <= high * 1.01]
        axes.set_xticks(ticks, [f"{tick} s" if tick < 120 else f"{math.floor(tick / 60)} min" for tick in ticks])
        axes.minorticks_off()
        axes.set_xlabel("since the start of the process")
        axes.set_ylabel("validation accuracy (%)")
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)
    print(f"wrote {os.fspath(path)}")


def name_of(recipe, run, compares):
    if compares:
        return f"{recipe}, {run['lever']}"
    return f"{recipe}, {BACKENDS[run['backend']]}, {run['device'].split()[0].removesuffix('(R)')}"


if __name__ == "__main__":
    run_command(main)
