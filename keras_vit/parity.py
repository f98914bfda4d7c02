"""The same numbers on every backend: logits, loss, gradients and trained weights, each backend in a process of its own.

`measure` gives the numbers of the backend in use, `run_backends` those of several, and `compare` the largest differences.
"""

import dataclasses
import json
import tempfile
import time
from pathlib import Path

import keras
import numpy as np
from keras import ops

from keras_vit.machine import full_float32
from keras_vit.model.config import ViTConfig
from keras_vit.model.saved import load_keras
from keras_vit.model.vit import ViT, build_vit
from keras_vit.processes import run_python

STEPS, LEARNING_RATE = 3, 1e-3
# Of AdamW. Some gradients are zero up to rounding, such as those of the keys' bias; a smaller epsilon would turn them into steps.
EPSILON = 1e-5
TIMED_SECONDS = 2.0  # of training, and again of inference

# The largest allowed differences in float32, each relative to a scale. Logits and loss: their largest absolute value, at least 1.
# A weight's gradient: its largest entry. Trained weights: the sum of the steps' learning rates.
THRESHOLDS = {"logits": 1e-4, "loss": 1e-5, "gradients": 1e-4, "weights": 1e-2}


@dataclasses.dataclass(frozen=True)
class Difference:
    """The difference of two backends in one quantity.

    Attributes:
        quantity: A key of `THRESHOLDS`.
        backend: The backend that is compared with the first one.
        largest: The largest difference, divided by its scale.
        where: The path of the weight that has it; empty for logits and loss.
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

    Fresh weights hide faults: head and biases are zero, and the scales of the norms are one. The numbers depend on the weights'
    order and shapes alone, not on the backend.
    """
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        kernel = weight.path.endswith("kernel")
        scale = np.prod(weight.shape[:-1]) ** -0.5 if kernel else 0.3
        weight.assign((weight.path.endswith("gamma") + scale * rng.normal(size=tuple(weight.shape))).astype("float32"))
    return model


def gradients(model: keras.Model, images, loss) -> dict[str, np.ndarray]:
    """Gradients of a loss under the backend in use, by path of the trainable weight.

    Args:
        model: A Keras model.
        images: Its input, (B, ...), or a tuple of several.
        loss: A function in `keras.ops` from the model's output to a single number.
    """
    variables, images = model.trainable_variables, keras.tree.map_structure(ops.convert_to_tensor, images)
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
    """The numbers of a model under the backend in use, on a batch that is the same for every backend.

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
    trainer.compile(keras.optimizers.AdamW(LEARNING_RATE, epsilon=EPSILON), keras.losses.CategoricalCrossentropy(from_logits=True))
    for _ in range(STEPS):
        trainer.train_on_batch(images, targets)
    numbers |= {f"weights/{weight.path}": ops.convert_to_numpy(weight) for weight in model.trainable_weights}
    numbers["train"] = rate(lambda: trainer.train_on_batch(images, targets), batch_size, timed_seconds)
    numbers["infer"] = rate(lambda: trainer.predict_on_batch(images), batch_size, timed_seconds)
    return numbers


def rate(step, batch_size, timed_seconds):
    """Images a second of a function that works on one batch, by the median step after the first two."""
    for _ in range(2):
        step()
    seconds = []
    while sum(seconds) < timed_seconds or len(seconds) < 3:
        before = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - before)
    return batch_size / np.median(seconds)


def compare(numbers: dict[str, dict[str, np.ndarray]]) -> list[Difference]:
    """The largest differences between each backend's numbers (of `measure`) and the first backend's."""
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
                    # Some gradients are zero up to rounding, such as those of the keys' bias.
                    "gradients": max(np.abs(ours).max(), 1e-3 * largest_gradient),
                    "weights": STEPS * LEARNING_RATE,
                }[quantity]
                difference = np.abs(ours - theirs).max() / scale
                found.append((difference if np.isfinite(difference) else np.inf, name.partition("/")[2]))
            differences.append(Difference(quantity, backend, *max(found)))
    return differences


def load_model(target: dict) -> ViT:
    """The model of a target, in float32 and without dropout, whose random numbers differ between backends.

    Args:
        target: `{"model": path of a .keras file}` or `{"config": fields of a ViTConfig}`; the latter gets random weights.
    """
    trained = load_keras(target["model"], "target") if "model" in target else None
    config = trained.config if trained is not None else ViTConfig(**target["config"])
    config = dataclasses.replace(config, dropout=0.0, attention_dropout=0.0, drop_path=0.0)
    model = build_vit(config, dtype="float32")
    if trained is None:
        return randomise(model)
    model.set_weights(trained.get_weights())
    return model


def work(job: str, result: str) -> None:
    """Writes the numbers of `measure` for a job file; runs in a process of its own."""
    settings = json.loads(Path(job).read_text(encoding="utf-8"))
    with full_float32():
        np.savez(result, **measure(load_model(settings["target"]), settings["batch_size"]))


def run_backends(target: dict, backends: list[str], batch_size: int, report) -> dict[str, dict[str, np.ndarray]]:
    """The numbers of `measure` by backend, from one process after the other: each is timed alone."""
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
    """Exports the model of a job file; runs in a process of its own."""
    from keras_vit.export.export import export_model

    settings = json.loads(Path(job).read_text(encoding="utf-8"))
    export_model(load_model(settings["target"]), settings["out"], settings["format"])
