"""One trial: an ordinary training run in a process of its own, which `tuner.py` starts.

    python -m keras_vit.search.trial JOB.json

JOB.json holds the paths `recipe`, `result`, `run` and `data`, and `until`, `budget` and `latency`; without `run`, the process
only writes the facts of data and machine. It ends when its standard input is closed, that is with the process that started it.
"""

import dataclasses
import json
import os
import sys
import time
from pathlib import Path

import keras
import numpy as np

from keras_vit.data.dataset import DataSet, Split
from keras_vit.files import atomic_folder, write_text
from keras_vit.machine import accelerator, machine, peak_memory_mb, process_seconds, tune
from keras_vit.processes import end_with_parent, run_command
from keras_vit.recipes.choose import picture_side
from keras_vit.recipes.parse import load_recipe
from keras_vit.runs.folder import RunFolder
from keras_vit.training.loop import train
from keras_vit.training.speed import resolve_precision

CORES = "KERAS_VIT_CORES"  # environment variable: the cores that a trial keeps to, separated by commas
STAGES, VALIDATE_EVERY = 9, 5  # a trial with a budget in seconds or FLOPs has 9 equal parts, and is validated every 5
CHUNK = 4096  # images written at a time
LATENCY_BATCH, LATENCY_SECONDS = 64, 1.0


def scheduled(recipe, budget):
    """The recipe with the length of a budget, {"kind": "epochs", "seconds" or "flops", "amount": ...}.

    A budget in seconds or FLOPs is cut into `STAGES` equal parts: it may be less than one pass over the data. `train` measures
    the seconds.
    """
    train = recipe.train
    epochs = max(1, round(budget["amount"])) if budget["kind"] == "epochs" else STAGES
    length = {"epochs": epochs, "warmup_epochs": epochs * min(train.warmup_epochs / train.epochs, 0.5)}
    length |= {
        "time": None,
        "steps_per_epoch": None,
        "extensions": [],
        "validate_every": 1 if budget["kind"] == "epochs" else VALIDATE_EVERY,
    }
    recipe = dataclasses.replace(recipe, train=dataclasses.replace(train, **length))
    if budget["kind"] == "flops":
        flops = sum((last - first) * stage.model.training_flops for first, last, stage in recipe.stages()) / epochs
        steps = max(1, round(budget["amount"] / flops / train.batch_size / STAGES))
        recipe = dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, steps_per_epoch=steps))
    return recipe


def latency(model, batch):
    """The median milliseconds to predict a batch, with the backend's compiler."""
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
    """A callback that touches a file at most once a second, after a step."""

    class Heartbeat(keras.callbacks.Callback):
        async_safe = True
        last = 0.0

        def on_train_batch_end(self, batch, logs=None):
            if time.monotonic() - self.last > 1:
                self.last = time.monotonic()
                path.touch()

    return Heartbeat()


def load_once(recipe, folder):
    """The train and validation images of a recipe: the first trial decodes them into `folder`, the others map them into memory.

    If the recipe takes random parts of the pictures, each trial reads their files. Test images are left out: a search chooses on
    validation images and must not see them.
    """
    described = folder / "data.json"
    if not described.is_file():
        data = recipe.load_data()
        if any(stage.augment.resized_crop for _, _, stage in recipe.stages()):
            return dataclasses.replace(data, test=None)
        parts = {"train": data.train, "validation": data.validation}
        known = {"parts": [name for name in parts if parts[name] is not None]}
        known |= {"name": data.name, "class_names": data.class_names, "fingerprint": data.fingerprint, "notes": data.notes}
        try:
            with atomic_folder(folder) as made:
                for name, part in parts.items():
                    if part is not None:
                        images = np.lib.format.open_memmap(made / f"{name}.npy", "w+", np.uint8, (len(part), *part.shape))
                        for start in range(0, len(part), CHUNK):
                            images[start : start + CHUNK] = part.images(np.arange(start, min(start + CHUNK, len(part))))
                        images.flush()
                        np.save(made / f"{name}.labels.npy", part.labels)
                (made / described.name).write_text(json.dumps(known), encoding="utf-8")
        except OSError:
            if not described.is_file():  # else another trial was first
                raise
        return dataclasses.replace(data, test=None)

    known = json.loads(described.read_text(encoding="utf-8"))
    parts = {"validation": None, "test": None}
    for name in known.pop("parts"):
        parts[name] = Split(np.load(folder / f"{name}.npy", mmap_mode="r"), np.load(folder / f"{name}.labels.npy"))
    return DataSet(**parts, **known)


def facts(recipe):
    """Everything that a search needs to know about its data and its machine; `precision` is resolved once for all trials."""
    tune()
    data = recipe.load_data()
    recipe = recipe.for_data(data)
    batch_size = min(recipe.train.batch_size, len(data.train))  # trials have batch sizes of their own
    resolved = resolve_precision(dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, batch_size=batch_size)), data)
    where = machine()
    return {
        "data": data.name,
        "fallback": data.fallback,
        "notes": data.notes,
        "fingerprint": data.fingerprint,
        "class_names": data.class_names,
        "multi_label": data.multi_label,
        "train": len(data.train),
        "picture_side": picture_side(data),
        "validation": len(data.validation) if data.validation is not None else 0,
        "backend": where["backend"],
        "device": where["device"],
        "accelerators": accelerator_count() if accelerator() else 0,
        "precision": resolved.recipe.train.precision,
        "precision_reason": resolved.reason,
    }


def accelerator_count():
    if keras.backend.backend() == "torch":
        import torch

        return max(1, torch.cuda.device_count())
    if keras.backend.backend() == "jax":
        import jax

        return jax.local_device_count()
    import tensorflow

    return len(tensorflow.config.list_physical_devices("GPU"))


def main():
    end_with_parent()
    if os.environ.get(CORES):
        os.sched_setaffinity(0, set(map(int, os.environ[CORES].split(","))))
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    result = Path(job["result"])
    if "run" not in job:
        write_text(result, json.dumps(facts(load_recipe(job["recipe"]))) + "\n")
        return
    run_folder = Path(job["run"])
    resume = (run_folder / "recipe.yaml").is_file()
    recipe = load_recipe(run_folder / "recipe.yaml" if resume else job["recipe"])
    data = load_once(recipe, Path(job["data"])) if job["data"] else recipe.load_data()
    if os.environ["KERAS_BACKEND"] != "tensorflow":
        # Otherwise Keras imports TensorFlow, if installed, only to seed it, which takes seconds.
        sys.modules.setdefault("tensorflow", None)
    if not resume:
        model = dataclasses.replace(recipe.model, num_classes=len(data.class_names))
        recipe = scheduled(dataclasses.replace(recipe, model=model), job["budget"])
    beat = result.with_name("alive")
    beat.touch()
    earlier = RunFolder(run_folder).metrics[-1:] if resume else []
    run = train(
        recipe,
        run_folder,
        data=data,
        resume=resume,
        until=job["until"],
        seconds=job["budget"]["amount"] if job["budget"]["kind"] == "seconds" else None,
        pictures=job["data"] is None,
        callbacks=[heartbeat(beat)],
        verbose=2,
    )
    rows = run.metrics
    summary, quality = run.summary if run.is_finished else {}, run.recipe.train.monitor
    outcome = {
        # At the end of the schedule, or of its part so far: not in the luckiest epoch. A final training has no validation images
        # and reads the test images.
        **({f"val_{quality}": rows[-1][f"val_{quality}"]} if data.validation is not None else {}),
        **({f"test_{quality}": summary[f"test_{quality}"]} if data.validation is None and f"test_{quality}" in summary else {}),
        "epochs": len(rows),
        "params": run.recipe.model.num_params,
        "flops": run.recipe.model.flops,
        "train_seconds": rows[-1]["seconds"],
        "images_per_second": max(row["images_per_second"] for row in rows),
        "memory_mb": peak_memory_mb(),
    }
    if job["latency"]:
        model = run.model()
        outcome["latency_ms"] = latency(model, 1)
        outcome["batch_latency_ms"] = latency(model, LATENCY_BATCH)
    # A trial's overhead: start of the process, imports, build, measurements, files.
    outcome["process_seconds"] = process_seconds()
    outcome["overhead_seconds"] = outcome["process_seconds"] - rows[-1]["seconds"] + (earlier[0]["seconds"] if earlier else 0.0)
    write_text(result, json.dumps(outcome) + "\n")


if __name__ == "__main__":
    run_command(main)
