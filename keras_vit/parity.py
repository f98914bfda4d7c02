"""The same numbers on every backend: logits, loss, gradients and trained weights, each backend in a process of its own.

    python -m keras_vit.parity                                # the model of the recipe quick
    python -m keras_vit.parity S/16 --model.image_size 64     # a variant, with any setting of the model
    python -m keras_vit.parity RUN --exports                  # a run's own weights, and every export format from every backend

Prints a table of the largest differences, each beside its threshold; the exit code is 1 if one is above it.
"""

import argparse
import dataclasses
import json
import sys
import tempfile
import time
from pathlib import Path

import jsonargparse
import keras
import numpy as np
from keras import ops
from rich.console import Console
from rich.table import Table

from keras_vit.backend import BACKENDS, installed_backends
from keras_vit.checks import check_int
from keras_vit.files import write_text
from keras_vit.machine import full_float32
from keras_vit.model.config import VARIANTS, ViTConfig
from keras_vit.model.vit import ViT, build_vit
from keras_vit.processes import run_python
from keras_vit.recipes.parse import read_settings, recipe_names
from keras_vit.runs.folder import RunFolder

STEPS, LEARNING_RATE = 3, 1e-3
TIMED_SECONDS = 2.0  # of training, and again of inference

# What may differ at most, in float32. Each has a scale: logits and loss their largest size or 1, a weight's gradient its own
# largest entry, trained weights the way that they can go in three steps (that many learning rates).
THRESHOLDS = {"logits": 1e-4, "loss": 1e-5, "gradients": 1e-4, "weights": 1e-2}


@dataclasses.dataclass(frozen=True)
class Difference:
    """How far two backends are from each other in one quantity.

    Attributes:
        quantity: A key of `THRESHOLDS`.
        backend: The backend that is compared with the first one.
        largest: The largest difference, over its scale.
        where: The weight that it was found in; empty for logits and loss.
    """

    quantity: str
    backend: str
    largest: float
    where: str = ""

    @property
    def passed(self) -> bool:
        return self.largest <= THRESHOLDS[self.quantity]


def randomise(model: keras.Model, seed: int = 0) -> keras.Model:
    """Gives every weight random values of a size that keeps activations near 1; returns the model.

    Fresh weights hide faults: the head is zero, so are all biases, and the scales of the norms are one. The numbers depend on the
    weights' order and shapes alone, not on the backend.
    """
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        kernel = weight.path.endswith("kernel")
        scale = np.prod(weight.shape[:-1]) ** -0.5 if kernel else 0.3
        weight.assign((weight.path.endswith("gamma") + scale * rng.normal(size=tuple(weight.shape))).astype("float32"))
    return model


def gradients(model: keras.Model, images: np.ndarray, loss) -> dict[str, np.ndarray]:
    """Gradients of a loss by path of the trainable weight, under whichever backend runs.

    Args:
        model: A Keras model.
        images: What it is called with, (B, ...).
        loss: A function of the model's output in `keras.ops`, with a single number as its result.
    """
    variables, images = model.trainable_variables, ops.convert_to_tensor(images)
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            value = loss(model(images))
        values = tape.gradient(value, [variable.value for variable in variables])
    elif backend == "jax":
        import jax

        frozen = [variable.value for variable in model.non_trainable_variables]
        values = jax.jit(jax.grad(lambda trainable: loss(model.stateless_call(trainable, frozen, images)[0])))(
            [variable.value for variable in variables]
        )
    else:
        model.zero_grad()
        loss(model(images)).backward()
        values = [variable.value.grad for variable in variables]
    named = zip((variable.path for variable in variables), values, strict=True)
    return {path: ops.convert_to_numpy(value) for path, value in named if value is not None}


def measure(model: ViT, batch_size: int, timed_seconds: float = TIMED_SECONDS) -> dict[str, np.ndarray]:
    """What the backend in use makes of a model and of a batch that is the same for all.

    Args:
        model: A `ViT` in float32 without dropout and stochastic depth; trained for a few steps when this returns.
        batch_size: Images B.
        timed_seconds: How long training, and again inference, is timed; at least three steps.

    Returns:
        `logits` (B, K), `loss`, `gradients/PATH` and `weights/PATH` of each weight, `train` and `infer` in images/s.
    """
    config, rng = model.config, np.random.default_rng(1)
    images = rng.normal(size=(batch_size, *config.image_shape)).astype("float32")
    classes = model.output.shape[-1]
    targets = np.eye(classes, dtype="float32")[rng.integers(classes, size=batch_size)]

    def loss(logits):
        return ops.mean(keras.losses.categorical_crossentropy(targets, logits, from_logits=True))

    logits = model(images, training=False)
    numbers = {"logits": ops.convert_to_numpy(logits), "loss": ops.convert_to_numpy(loss(logits))}
    numbers |= {f"gradients/{path}": value for path, value in gradients(model, images, loss).items()}
    trainer = keras.Model(model.input, model.output)  # compiled, so that `model` itself stays as it is
    trainer.compile(keras.optimizers.AdamW(LEARNING_RATE), keras.losses.CategoricalCrossentropy(from_logits=True))
    for _ in range(STEPS):
        trainer.train_on_batch(images, targets)
    numbers |= {f"weights/{weight.path}": ops.convert_to_numpy(weight) for weight in model.trainable_weights}
    numbers["train"] = rate(lambda: trainer.train_on_batch(images, targets), batch_size, timed_seconds)
    numbers["infer"] = rate(lambda: trainer.predict_on_batch(images), batch_size, timed_seconds)
    return numbers


def rate(step, batch_size, timed_seconds):
    """Images a second of a function that works on one batch, by the median step behind the first two."""
    for _ in range(2):
        step()
    seconds = []
    while sum(seconds) < timed_seconds or len(seconds) < 3:
        before = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - before)
    return batch_size / np.median(seconds)


def compare(numbers: dict[str, dict[str, np.ndarray]]) -> list[Difference]:
    """The largest differences of each backend's numbers (of `measure`) to those of the first one."""
    reference_backend, *others = numbers
    reference, differences = numbers[reference_backend], []
    largest_gradient = max((np.abs(value).max() for name, value in reference.items() if name.startswith("gradients/")), default=0)
    for backend in others:
        for quantity in THRESHOLDS:
            found = [(0.0, "")]
            for name in (name for name in reference if name.partition("/")[0] == quantity):
                ours, theirs = np.float64(reference[name]), np.float64(numbers[backend][name])
                scale = {
                    "logits": max(1, np.abs(ours).max()),
                    "loss": max(1, np.abs(ours).max()),
                    # Some gradients are zero but for rounding, such as those of the keys' bias.
                    "gradients": max(np.abs(ours).max(), 1e-3 * largest_gradient),
                    "weights": STEPS * LEARNING_RATE,
                }[quantity]
                difference = np.abs(ours - theirs).max() / scale
                found.append((difference if np.isfinite(difference) else np.inf, name.partition("/")[2]))
            differences.append(Difference(quantity, backend, *max(found)))
    return differences


def load_target(target: str, settings: dict) -> dict:
    """What a target on the command line stands for, as plain values that a worker process can read.

    Args:
        target: A run folder, a `.keras` file, a recipe's name or file, or a variant such as "S/16".
        settings: Fields of the model's configuration on top; of a run or a `.keras` file none.

    Returns:
        `{"model": path of a .keras file}` or `{"config": fields of a ViTConfig}`.

    Raises:
        ValueError: If it is none of these, or the settings do not fit.
    """
    path = Path(target)
    if path.suffix == ".keras" or path.is_dir():
        file = RunFolder(path).model_path if path.is_dir() else path
        if not file.is_file():
            raise ValueError(f"target: no file {str(file)!r}")
        if settings:
            raise ValueError(f"--model.{next(iter(settings))}: not an option of a trained model, whose weights fit one shape")
        return {"model": str(file)}
    if target.partition("/")[0] in VARIANTS and not path.exists():
        config = ViTConfig.from_variant(target, **settings)
    elif path.suffix in (".yaml", ".yml", ".json") or target in recipe_names():
        model = {name.removeprefix("model."): value for name, value in read_settings(target).items() if name.startswith("model.")}
        config = ViTConfig(**{**model, **settings})
    else:
        raise ValueError(
            f"target: received {target!r}; allowed: a run folder, a .keras file, a recipe ({', '.join(recipe_names())} or a YAML "
            "file) or a variant such as S/16"
        )
    return {"config": config.to_dict()}


def load_model(target: dict) -> ViT:
    """The model of `load_target`, in float32, without dropout: random numbers are another matter of each backend."""
    trained = keras.saving.load_model(target["model"], compile=False) if "model" in target else None
    if trained is not None and not isinstance(trained, ViT):
        raise ValueError(f"target: {target['model']!r} holds a {type(trained).__name__}; allowed: a ViT")
    config = trained.config if trained is not None else ViTConfig(**target["config"])
    config = dataclasses.replace(config, dropout=0.0, attention_dropout=0.0, drop_path=0.0)
    model = build_vit(config, dtype="float32")
    if trained is None:
        return randomise(model)
    model.set_weights(trained.get_weights())
    return model


def work(job: str, result: str) -> None:
    """What a worker process does: writes the numbers of `measure` for a job file."""
    settings = json.loads(Path(job).read_text(encoding="utf-8"))
    with full_float32():
        np.savez(result, **measure(load_model(settings["target"]), settings["batch_size"]))


def run_backends(target: dict, backends: list[str], batch_size: int, report) -> dict[str, dict[str, np.ndarray]]:
    """The numbers of `measure` by backend, from one process after the other, so that each is timed alone."""
    numbers = {}
    with tempfile.TemporaryDirectory(prefix="keras-vit-parity-") as folder:
        job = Path(folder, "job.json")
        job.write_text(json.dumps({"target": target, "batch_size": batch_size}), encoding="utf-8")
        for backend in backends:
            report(f"{backend} ...")
            result = Path(folder, f"{backend}.npz")
            code = "import sys; from keras_vit.parity import work; work(*sys.argv[1:])"
            run_python(["-c", code, str(job), str(result)], backend)
            with np.load(result) as arrays:
                numbers[backend] = dict(arrays)
    return numbers


def differences_table(numbers: dict, differences: list[Difference]) -> Table:
    """A rich table: a row for each quantity and backend, the largest difference beside its threshold."""
    table = Table("quantity", "backend", title=f"largest differences to {next(iter(numbers))}, float32")
    for name in ("difference", "threshold"):
        table.add_column(name, justify="right")
    table.add_column("")
    table.add_column("in", overflow="fold")
    for difference in sorted(differences, key=lambda difference: list(THRESHOLDS).index(difference.quantity)):
        verdict = "[green]passed[/]" if difference.passed else "[bold red]FAILED[/]"
        limit = THRESHOLDS[difference.quantity]
        table.add_row(
            difference.quantity, difference.backend, f"{difference.largest:.1e}", f"{limit:.0e}", verdict, difference.where
        )
    return table


def speed_table(numbers: dict, batch_size: int) -> Table:
    """A rich table of images/s by backend."""
    table = Table("backend", title=f"images/s, batches of {batch_size}")
    for name in ("training", "inference"):
        table.add_column(name, justify="right")
    for backend, values in numbers.items():
        table.add_row(backend, f"{values['train']:,.0f}", f"{values['infer']:,.0f}")
    return table


def export_everywhere(target: dict, formats: list[str], backends: list[str], report) -> list[dict]:
    """Exports a model in each format from each backend; each export verifies itself in the artifact's own runtime.

    Returns:
        A row for each, {"format", "backend", "written_by", "difference", "agreement", "error"}; `error` is None where it passed.
    """
    rows = []
    with tempfile.TemporaryDirectory(prefix="keras-vit-parity-") as folder:
        job = Path(folder, "job.json")
        for backend in backends:
            for name in formats:
                report(f"{name} from {backend} ...")
                out = Path(folder, f"{name}-{backend}")
                job.write_text(json.dumps({"target": target, "format": name, "out": str(out)}), encoding="utf-8")
                row = {"format": name, "backend": backend, "error": None}
                try:
                    run_python(["-c", "import sys; from keras_vit.parity import export; export(*sys.argv[1:])", str(job)], backend)
                    written = json.loads((out / "export.json").read_text(encoding="utf-8"))
                    row |= {name: written[name] for name in ("written_by", "difference", "agreement")}
                except ValueError as error:
                    row["error"] = str(error)
                rows.append(row)
    return rows


def export(job: str) -> None:
    """What a process of `export_everywhere` does."""
    from keras_vit.export.export import export_model

    settings = json.loads(Path(job).read_text(encoding="utf-8"))
    export_model(load_model(settings["target"]), settings["out"], settings["format"])


def exports_table(rows: list[dict]) -> Table:
    """A rich table of `export_everywhere`: a row for each format, a column for each backend."""
    from rich.markup import escape

    backends = list(dict.fromkeys(row["backend"] for row in rows))
    table = Table("format", *backends, title="exports: largest difference of logits to Keras")
    for name in dict.fromkeys(row["format"] for row in rows):
        cells = []
        for backend in backends:
            row = next(row for row in rows if row["format"] == name and row["backend"] == backend)
            writer = "" if row.get("written_by") == backend else f" (by {row.get('written_by')})"
            cells.append(f"[bold red]{escape(row['error'])}[/]" if row["error"] else f"{row['difference']:.1e}{writer}")
        table.add_row(name, *cells)
    return table


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code, 1 if a threshold is passed over or an export fails."""
    from keras_vit.export.formats import FORMATS

    parser = jsonargparse.ArgumentParser(
        prog="python -m keras_vit.parity",
        description="Compares the installed backends: same weights, same batch, each in a process of its own.",
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument(
        "target",
        nargs="?",
        default="quick",
        help="A run folder, a .keras file, a recipe or a variant such as S/16. Without weights of its own it gets random ones.",
    )
    parser.add_argument("--backends", default="", help="Comma-separated. Default: all that are installed.")
    parser.add_argument("--batch_size", "--batch-size", type=int, default=8, help="Images of the batch.")
    parser.add_argument(
        "--exports", nargs="?", const="all", help=f"Export too, from each backend: all, or some of {','.join(FORMATS)}."
    )
    parser.add_argument("--json", help="A file for the differences and the speeds.")
    parser.add_class_arguments(ViTConfig, "model")
    try:
        options = parser.parse_args(arguments)
    except (jsonargparse.ArgumentError, argparse.ArgumentError) as error:
        raise ValueError(" ".join(str(error).split())) from None
    check_int("batch_size", options.batch_size, at_least=1)
    installed = installed_backends()
    backends = choose("backends", options.backends, installed)
    formats = choose("exports", "" if options.exports == "all" else options.exports, list(FORMATS)) if options.exports else []
    defaults = parser.get_defaults().model
    settings = {name: value for name, value in vars(options.model).items() if value != defaults[name]}
    target = load_target(options.target, settings)
    if len(backends) < 2 and not formats:
        raise ValueError(f"backends: received {', '.join(backends)}; a comparison takes two of {', '.join(BACKENDS)}")

    console = Console(highlight=False, soft_wrap=True)
    numbers = run_backends(target, backends, options.batch_size, console.print)
    differences = compare(numbers)
    if differences:
        console.print(differences_table(numbers, differences))
    console.print(speed_table(numbers, options.batch_size))
    rows = export_everywhere(target, formats, backends, console.print)
    if rows:
        console.print(exports_table(rows))
    if options.json:
        result = {
            "target": options.target,
            "differences": [{**dataclasses.asdict(d), "threshold": THRESHOLDS[d.quantity]} for d in differences],
            "images_per_second": {b: {name: float(values[name]) for name in ("train", "infer")} for b, values in numbers.items()},
            "exports": rows,
        }
        write_text(options.json, json.dumps(result, indent=2) + "\n")
    return int(not all(d.passed for d in differences) or any(row["error"] for row in rows))


def choose(name, value, allowed):
    """A comma-separated list as one of allowed names; empty = all."""
    chosen = [item.strip() for item in value.split(",")] if value else allowed
    for item in chosen:
        if item not in allowed:
            raise ValueError(f"{name}: received {item!r}; allowed: {', '.join(allowed)}")
    return chosen


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
