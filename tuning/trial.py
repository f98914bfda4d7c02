"""One trial: an ordinary training run in a process of its own. `tuner.py` starts it; nobody else need.

    python tuning/trial.py JOB.json        recipe, result, and run, until, budget, latency; without a run: what the data is

The process ends when its standard input is closed, that is with the process that started it, whatever became of that.
"""

import dataclasses
import json
import os
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "experiments"))

from cli import run_command

CORES = "KERAS_VIT_CORES"  # environment variable: the cores that a trial keeps to, separated by commas
STAGES = 9  # validations of a trial whose budget is not counted in epochs
WARM_STEPS, TIMED_SECONDS = 3, 1.5  # to measure how many images a second a configuration trains
LATENCY_BATCH, LATENCY_SECONDS = 64, 1.0


def end_with_parent():
    """Ends this process once its standard input is closed."""

    def watch():
        # Not through sys.stdin, whose lock Python wants back when it ends.
        while os.read(0, 4096):
            pass
        os._exit(1)

    if not sys.stdin.isatty():
        threading.Thread(target=watch, daemon=True).start()


def scheduled(recipe, budget, images, flops_per_image=None, images_per_second=None):
    """The recipe with the length that a budget gives: {"kind": "epochs", "seconds" or "flops", "amount": ...}.

    An image costs three forward passes: one forward, two backward. A budget that is not counted in epochs is cut into
    `STAGES` equal parts, behind each of which the model is validated, so that it may be less than one pass over the data.
    """
    train, amount = recipe.train, budget["amount"]
    if budget["kind"] == "epochs":
        epochs, steps = max(1, round(amount)), None
    else:
        affordable = amount / (3 * flops_per_image) if budget["kind"] == "flops" else amount * images_per_second
        epochs, steps = STAGES, max(1, round(affordable / train.batch_size / STAGES))
    warmup = epochs * min(train.warmup_epochs / train.epochs, 0.5)
    return dataclasses.replace(
        recipe,
        train=dataclasses.replace(train, epochs=epochs, steps_per_epoch=steps, warmup_epochs=warmup, validate_every=1),
    )


def training_rate(recipe, data):
    """Images a second that the model of a recipe trains with, measured without its data pipeline."""
    import keras
    import numpy as np

    from keras_vit.model import build_vit
    from keras_vit.optimizer import make_optimizer
    from keras_vit.train import POLICIES, compile_model

    keras.utils.set_random_seed(recipe.seed)
    classes, size = len(data.class_names), recipe.train.batch_size
    model = build_vit(dataclasses.replace(recipe.model, num_classes=classes), dtype=POLICIES[recipe.train.precision])
    compile_model(model, make_optimizer(recipe.train, 1000), recipe.train.jit)
    images = np.random.default_rng(0).normal(size=(size, *recipe.model.image_shape)).astype("float32")
    targets = np.full((size, classes), 1 / classes, "float32")
    for _ in range(WARM_STEPS):
        model.train_on_batch(images, targets)
    steps, started = 0, time.perf_counter()
    while time.perf_counter() - started < TIMED_SECONDS:
        model.train_on_batch(images, targets)
        steps += 1
    return steps * size / (time.perf_counter() - started)


def latency(model, batch):
    """Milliseconds of one prediction of a batch, the median; compiled where the backend compiles."""
    import keras
    import numpy as np

    scorer = keras.Model(model.input, model.output)
    scorer.compile()
    images = np.random.default_rng(0).normal(size=(batch, *model.input.shape[1:])).astype("float32")
    for _ in range(3):
        scorer.predict_on_batch(images)
    times = []
    while sum(times) < LATENCY_SECONDS:
        before = time.perf_counter()
        scorer.predict_on_batch(images)
        times.append(time.perf_counter() - before)
    return 1000 * float(np.median(times))


def heartbeat(path):
    """A callback that touches a file every second while steps are made."""
    import keras

    class Heartbeat(keras.callbacks.Callback):
        async_safe = True
        last = 0.0

        def on_train_batch_end(self, batch, logs=None):
            if time.monotonic() - self.last > 1:
                self.last = time.monotonic()
                path.touch()

    return Heartbeat()


def facts(data):
    """What a search has to know of its data and its machine."""
    from keras_vit.machine import accelerator, machine

    where = machine()
    return {
        "data": data.name,
        "fallback": data.fallback,
        "notes": data.notes,
        "fingerprint": data.fingerprint,
        "train": len(data.train),
        "validation": len(data.validation) if data.validation is not None else 0,
        "backend": where["backend"],
        "device": where["device"],
        "accelerators": accelerator_count() if accelerator() else 0,
    }


def accelerator_count():
    import keras

    return max(1, len(keras.distribution.list_devices("gpu")))


def main():
    end_with_parent()
    if os.environ.get(CORES):
        os.sched_setaffinity(0, set(map(int, os.environ[CORES].split(","))))
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    import psutil

    from keras_vit.recipe import load_recipe
    from keras_vit.run import RunFolder, write_text
    from keras_vit.train import load_recipe_data, train

    result = Path(job["result"])
    if "run" not in job:
        write_text(result, json.dumps(facts(load_recipe_data(load_recipe(job["recipe"])))) + "\n")
        return
    run_folder = Path(job["run"])
    resume = (run_folder / "recipe.yaml").is_file()
    recipe = load_recipe(run_folder / "recipe.yaml" if resume else job["recipe"])
    data = load_recipe_data(recipe)
    if data.validation is not None:
        data = dataclasses.replace(data, test=None)  # a search chooses on validation and must not see the test images
    if not resume:
        rate = training_rate(recipe, data) if job["budget"]["kind"] == "seconds" else None
        recipe = scheduled(recipe, job["budget"], len(data.train), recipe.model.flops, rate)
    earlier = RunFolder(run_folder).metrics[-1:] if resume else []
    beat = result.with_name("alive")
    beat.touch()
    run = train(recipe, run_folder, data=data, resume=resume, until=job["until"], callbacks=[heartbeat(beat)], verbose=2)
    rows = run.metrics
    model = run.model()
    summary = run.summary if run.is_finished else {}
    outcome = {
        # At the end of the schedule, or of the part of it that has been trained: not the luckiest epoch. Without validation
        # images, in a final training, the test images tell.
        **({"val_accuracy": rows[-1]["val_accuracy"]} if data.validation is not None else {}),
        **({"test_accuracy": summary["test_accuracy"]} if data.validation is None and "test_accuracy" in summary else {}),
        "epochs": len(rows),
        "params": model.count_params(),
        "flops": model.config.flops,
        "train_seconds": rows[-1]["seconds"],
        "images_per_second": max(row["images_per_second"] for row in rows),
    }
    if job["latency"]:
        outcome["latency_ms"] = latency(model, 1)
        outcome["batch_latency_ms"] = latency(model, LATENCY_BATCH)
    # What a trial costs beyond its training: start of the process, imports, build, measurements, files.
    outcome["process_seconds"] = time.time() - psutil.Process().create_time()
    outcome["overhead_seconds"] = outcome["process_seconds"] - rows[-1]["seconds"] + (earlier[0]["seconds"] if earlier else 0.0)
    write_text(result, json.dumps(outcome) + "\n")


if __name__ == "__main__":
    run_command(main)
