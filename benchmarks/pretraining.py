"""What do images without labels bring where few have one? Pre-training, then fine-tuning, beside training from scratch.

    KERAS_BACKEND=torch python benchmarks/pretraining.py [--recipe standard] [--time 1h] [--labels 1000] [--seeds 0 1 2]
        [--json pretraining.json]

For each seed, on CIFAR-10 and with the model of a recipe: `pretrain` on the 45,000 training images without their labels, then
`finetune` on the labelled ones (each class in proportion, by the seed). Then `scratch` on the labelled ones alone, in as many
seconds as those two processes have taken together, start, compilation and test included; and in a quarter of that, as a training
on few images may overfit. Each run is a process of its own, one after the other. No validation label is used: a training ends as
planned, and the model of its last epoch is tested.

--tune tests on the validation images instead, for choices; the test images are then not read.
"""

import argparse
import copy
import dataclasses
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import yaml

from keras_vit.checks import UNITS, read_quantity
from keras_vit.processes import run_command

# Settings on top of the recipes. `train.time` makes as many steps of the epochs as fit.
PRETRAIN = {"train": {"epochs": 20, "warmup_epochs": 1}}
LABELLED = {  # of both trainings on the labelled images
    "augment": {
        **{"flip": True, "crop": 4, "randaugment_layers": 1, "randaugment_magnitude": 4},
        **{"cutmix": 1.0, "mix_probability": 0.5, "mix_until": 1.0, "label_smoothing": 0.1},
    },
    "train": {"epochs": 20, "batch_size": 128, "warmup_epochs": 1},
}
FINETUNE = {"train": {"learning_rate": 2e-3}, "finetune": {"layer_decay": 0.75}}
SCRATCH = {"train": {"learning_rate": 3e-3}}
SHARE = 0.8  # of the time that goes into pre-training
NAMES = ("process_seconds", "seconds", "images_per_second", "epochs", "precision", "val_loss", "val_accuracy", "test_accuracy")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="standard", help="whose model is trained (default: standard)")
    parser.add_argument("--time", default="1h", help="of pre-training and fine-tuning together, such as 10m (default: 1h)")
    parser.add_argument("--share", type=float, default=SHARE, help=f"of it for pre-training (default: {SHARE})")
    parser.add_argument("--labels", type=int, default=1000, help="labelled images (default: 1000)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default: 0 1 2")
    parser.add_argument("--set", action="append", default=[], metavar="RUN.SETTING=VALUE", help="as in finetune.train.ema=0.99")
    parser.add_argument("--tune", action="store_true", help="test on the validation images")
    parser.add_argument("--json", type=pathlib.Path, help="file to write: every run")
    parser.add_argument("--run", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        return run(**json.loads(options.run))
    settings, rows = settings_of(options), []
    with tempfile.TemporaryDirectory() as folder:
        for seed in options.seeds:
            rows += compare(pathlib.Path(folder), seed, options, settings)
    print("run | seconds | accuracy, mean and standard deviation")
    for name in dict.fromkeys(row["run"] for row in rows):
        mine = [row for row in rows if row["run"] == name]
        values = [100 * row["accuracy"] for row in mine if row["accuracy"] is not None]
        spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
        shown = f"{statistics.mean(values):.2f}%{spread}" if values else "-"
        print(f"{name} | {statistics.mean(row['process_seconds'] for row in mine):,.0f} | {shown}")
    if options.json:
        from record import write_record

        known = {"recipe": options.recipe, "labels": options.labels, "tested": "validation" if options.tune else "test"}
        write_record(options.json, **known, settings=settings, rows=rows)
    return None


def settings_of(options):
    """The settings of each kind of run, with the command line's on top."""
    found = copy.deepcopy({"pretrain": PRETRAIN, "finetune": merged(LABELLED, FINETUNE), "scratch": merged(LABELLED, SCRATCH)})
    for change in options.set:
        path, _, value = change.partition("=")
        kind, *sections, name = path.split(".")
        target = found[kind]
        for section in sections:
            target = target.setdefault(section, {})
        target[name] = yaml.safe_load(value)
    return found


def merged(one, other):
    """Sections of settings, the other's on top."""
    return {name: {**one.get(name, {}), **other.get(name, {})} for name in one | other}


def compare(folder, seed, options, settings):
    """The rows of one seed."""
    amount, unit = read_quantity("time", options.time, "[smh]", "a time such as 10m")
    whole = amount * UNITS[unit]
    pretrained = start(folder / "pretrain", "pretrain", seed, whole * options.share, options, settings)
    rest = whole - pretrained["process_seconds"]
    tuned = start(folder / "finetune", "finetune", seed, rest, options, settings, checkpoint=str(folder / "pretrain"))
    spent = pretrained["process_seconds"] + tuned["process_seconds"]
    both = {**tuned, "run": "pretrain and finetune", "process_seconds": spent}
    scratch = start(folder / "scratch", "scratch", seed, spent, options, settings)
    short = start(folder / "short", "scratch", seed, spent / 4, options, settings)
    return [pretrained, tuned, both, scratch, {**short, "run": "scratch, a quarter of the seconds"}]


def start(folder, kind, seed, seconds, options, settings, checkpoint=None):
    """Runs a training of so many seconds in a process of its own; returns its row."""
    job = {"folder": str(folder), "kind": kind, "seed": seed, "seconds": seconds, "settings": settings[kind]}
    job |= {"recipe": options.recipe, "labels": options.labels, "tune": options.tune, "checkpoint": checkpoint}
    subprocess.run([sys.executable, __file__, "--run", json.dumps(job)], check=True)
    row = json.loads((folder / "row.json").read_text(encoding="utf-8"))
    print(json.dumps(row), flush=True)
    return row


def run(folder, kind, seed, seconds, settings, recipe, labels, tune, checkpoint):
    """A training, in this process."""
    import keras_vit
    from keras_vit.machine import process_seconds
    from keras_vit.training.finetune import finetune_recipe
    from keras_vit.training.steps import Steps

    began = time.perf_counter() - process_seconds()
    length = {"time": f"{seconds:.0f}s", "validate_every": settings["train"]["epochs"]}
    settings = {**merged(settings, {"train": length}), "data": "cifar10", "seed": seed, "validation": 5000}
    if kind == "pretrain":
        model = keras_vit.load_recipe(recipe).model.to_dict()
        settings["model"] = {name: value for name, value in model.items() if name != "num_classes"}
        chosen = keras_vit.load_recipe("pretrain", **settings)
    elif kind == "finetune":
        chosen = finetune_recipe(checkpoint, recipe, subset=labels, **settings)
    else:
        chosen = keras_vit.load_recipe(recipe, subset=labels, **settings)
    data = chosen.load_data()
    data = dataclasses.replace(data, test=None) if tune else data
    result = keras_vit.train(chosen, folder, data=data, overwrite=True, started=began, pictures=False, verbose=2)
    row = {"run": kind, "seed": seed, **{name: result.summary.get(name) for name in NAMES}}
    row["accuracy"] = row["val_accuracy" if tune else "test_accuracy"]
    row["steps"] = Steps.of(result.recipe.train, len(data.train)).before(row["epochs"])
    pathlib.Path(folder, "row.json").write_text(json.dumps(row), encoding="utf-8")


if __name__ == "__main__":
    run_command(main)
