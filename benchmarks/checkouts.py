"""Two checkouts of this project beside each other: training and inference at 32 px, in turns, as ratios.

    KERAS_BACKEND=jax python benchmarks/checkouts.py BEFORE AFTER --turns 4 --json checkouts.json
    KERAS_BACKEND=jax python benchmarks/checkouts.py . . --deterministic    # what `train.deterministic` costs
    KERAS_BACKEND=jax python benchmarks/checkouts.py BEFORE AFTER --recipe quick --turns 2    # with data and augmentation

Width 192, depth 12, 3 heads, patch 4, batches of 64, float32, the trainer's AdamW. Each checkout is a process of its own; while one
has its turn the other waits. A ratio is AFTER's images/s over BEFORE's in neighbouring turns; the median counts.

With `--recipe` a turn is a training run of its own of two epochs; the images/s of the second one count.
"""

import argparse
import csv
import datetime
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BATCH, WARM_STEPS = 64, 3
MEASURES = ("training", "inference")
EPOCHS = 2  # of a run with --recipe; the first one compiles


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkouts", metavar="CHECKOUT", nargs=2, type=Path, help="Folder of a clone.")
    parser.add_argument("--turns", type=int, default=4, help="Turns of each. Default: 4.")
    parser.add_argument("--seconds", type=float, default=4.0, help="Of each measure in a turn. Default: 4.")
    parser.add_argument("--deterministic", action="store_true", help="The second one uses deterministic operations.")
    parser.add_argument("--recipe", help="Runs this recipe instead.")
    parser.add_argument("--json", type=Path, help="A file for the raw output.")
    options = parser.parse_args()
    take_turn, end = recipe_turns(options) if options.recipe else worker_turns(options)
    turns = [[], []]
    for turn in range(options.turns):
        for index in (0, 1) if turn % 2 == 0 else (1, 0):  # neither is always the first
            turns[index].append(take_turn(index))
    end()
    ratios = {name: [after[name] / before[name] for before, after in zip(*turns, strict=True)] for name in turns[0][0]}
    for name, values in ratios.items():
        rates = [statistics.median(turn[name] for turn in each) for each in turns]
        print(f"{name}: {rates[0]:.1f} and {rates[1]:.1f} images/s, ratio {statistics.median(values):.3f}")
    if options.json:
        record = {
            "source": "raw",
            "command": shlex.join(["python", *sys.argv]),
            "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
            "backend": os.environ.get("KERAS_BACKEND"),
            "commits": [commit(checkout) for checkout in options.checkouts],
            "turns": turns,
            "ratios": {name: statistics.median(values) for name, values in ratios.items()},
        }
        options.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def worker_turns(options):
    """A function that gives a checkout's images/s in a turn, and one that ends the two processes."""
    settings = (), ("deterministic",) * options.deterministic
    workers = [
        start(checkout.resolve(), options.seconds, *each) for checkout, each in zip(options.checkouts, settings, strict=True)
    ]

    def take_turn(index):
        workers[index].stdin.write("go\n")
        workers[index].stdin.flush()
        return json.loads(workers[index].stdout.readline())

    return take_turn, lambda: [worker.kill() for worker in workers]


def recipe_turns(options):
    """The same for runs of a recipe: one process after the other, nothing to end."""

    def take_turn(index):
        checkout = options.checkouts[index].resolve()
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "experiments/train_cifar.py", "--recipe", options.recipe, "--out", f"{folder}/run"]
            command += ["--train.epochs", str(EPOCHS), "--train.warmup_epochs", "0"]
            environment = {**os.environ, "PYTHONPATH": str(checkout)}
            done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"error: {checkout}: {done.stderr.strip().splitlines()[-1]}")
            with open(f"{folder}/run/metrics.csv", newline="", encoding="utf-8") as file:
                return {options.recipe: float(list(csv.DictReader(file))[-1]["images_per_second"])}

    return take_turn, lambda: None


def start(checkout, seconds, *settings):
    """A process with the `keras_vit` of a checkout that has compiled its model."""
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    worker = subprocess.Popen(
        [sys.executable, __file__, "--work", str(seconds), *settings],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment, cwd=checkout,
    )  # fmt: skip
    if worker.stdout.readline().strip() != str(checkout / "keras_vit"):
        raise SystemExit(f"error: {checkout} has no keras_vit that works under this backend")
    return worker


def commit(checkout):
    done = subprocess.run(["git", "-C", str(checkout), "rev-parse", "HEAD"], capture_output=True, text=True)
    return done.stdout.strip() or None


def work(seconds, *settings):
    """Answers each line of stdin with a turn's images/s."""
    import keras_vit

    import keras  # isort: skip  # after keras_vit, which chooses the backend
    import numpy as np

    from keras_vit import machine

    try:
        from keras_vit.recipes.schema import TrainConfig
        from keras_vit.training.models import compile_model
        from keras_vit.training.optimizer import make_optimizer
    except ImportError:  # a checkout from before the packages
        from keras_vit.optimizer import make_optimizer
        from keras_vit.recipe import TrainConfig
        from keras_vit.train import compile_model

    machine.tune()
    if settings:
        machine.use_deterministic_operations()
    keras.utils.set_random_seed(0)
    shape = {"width": 192, "depth": 12, "num_heads": 3, "mlp_dim": 768}
    config = keras_vit.ViTConfig(image_size=32, patch_size=4, num_classes=10, **shape)
    model = keras_vit.build_vit(config, dtype="float32")
    compile_model(model, make_optimizer(TrainConfig(precision="float32"), 10_000), "auto")
    rng = np.random.default_rng(0)
    images = rng.normal(size=(BATCH, 32, 32, 3)).astype("float32")
    targets = np.eye(10, dtype="float32")[rng.integers(10, size=BATCH)]
    steps = (lambda: float(model.train_on_batch(images, targets)[0])), (lambda: np.asarray(model.predict_on_batch(images)))
    for _ in range(WARM_STEPS):
        for step in steps:
            step()
    print(Path(keras_vit.__file__).parent, flush=True)
    for _ in sys.stdin:
        print(json.dumps({name: rate(step, seconds) for name, step in zip(MEASURES, steps, strict=True)}), flush=True)


def rate(step, seconds):
    """Images a second of the median step."""
    times, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 2:
        before = time.perf_counter()
        step()
        times.append(time.perf_counter() - before)
    return BATCH / statistics.median(times)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        work(float(sys.argv[2]), *sys.argv[3:])
    else:
        main()
