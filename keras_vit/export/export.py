"""Export to SavedModel, ONNX, LiteRT, OpenVINO and torch, from any backend, each artifact verified in its own runtime.

Each format is written by the backend that does it best, of those that are installed, in a process of its own: the model travels
there as a `.keras` file, whose numbers are the same. Then a process that has the artifact's runtime and no Keras runs it on random
and on real images, in batches of 1, 3 and 64; what differs by more than a threshold is an error, and nothing is left behind.

Shapes: B batch, H x W image, C channels, K classes.
"""

import contextlib
import dataclasses
import datetime
import itertools
import json
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import keras
import numpy as np
import psutil

from keras_vit.backend import BACKENDS, installed_backends
from keras_vit.checks import check_choice, check_int
from keras_vit.export.runtimes import FILES, Runtime
from keras_vit.files import write_text
from keras_vit.images import normalize
from keras_vit.kernels.ops import portable
from keras_vit.machine import full_float32, machine
from keras_vit.model.vit import ViT, build_vit, merging_model
from keras_vit.private.keras import flatten_layers
from keras_vit.processes import ON_PROCESSOR, run_python
from keras_vit.runs.folder import RunFolder

WORKING = ".export-"  # begins the name of a folder in which an export is made; the process's id follows
BATCHES = (1, 3, 64)
PRECISIONS = ("float32", "float16", "bfloat16", "int8", "int8_static")
INPUTS = ("auto", "uint8", "float32")
# What logits may differ by from the Keras model in float32: absolute in float32, where logits are of a few units (over the
# largest one where that is above 1), else over their standard deviation. Rounding weights or activations costs as much as it costs;
# the lower thresholds tell that from a fault.
THRESHOLDS = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 0.2, "int8": 1.0, "int8_static": 1.0}


@dataclasses.dataclass(frozen=True)
class Format:
    """A format of exported models.

    Attributes:
        writers: Packages that a backend needs to write it, by backend, the one that writes it best first; one that cannot is not
            there.
        runtime: Packages that load it, any one of them.
        precisions: The precisions that it can have.
        fixed_batch: Whether it can be written for one batch size; all can for any.
        calibrated: Those of the precisions that fix the ranges of activations, from real images.
    """

    writers: dict[str, tuple[str, ...]]
    runtime: tuple[str, ...]
    precisions: tuple[str, ...]
    fixed_batch: bool = True
    calibrated: tuple[str, ...] = ()


# PyTorch's exporter writes a norm and a GELU as one operation each, which ONNX Runtime runs faster than the parts.
ONNX_WRITERS = {"torch": ("onnx", "onnxscript"), "jax": ("onnx", "jax2onnx"), "tensorflow": ("onnx", "tf2onnx")}
FORMATS = {
    "tf_saved_model": Format({"tensorflow": ()}, ("tensorflow",), ("float32", "float16", "bfloat16"), fixed_batch=False),
    "onnx": Format(ONNX_WRITERS, ("onnxruntime",), ("float32", "float16", "int8"), calibrated=("int8",)),
    "litert": Format(
        {"tensorflow": ()},
        ("ai_edge_litert", "tensorflow"),
        ("float32", "float16", "int8", "int8_static"),
        calibrated=("int8_static",),
    ),
    "openvino": Format(
        {backend: (*packages, "openvino") for backend, packages in ONNX_WRITERS.items()},
        ("openvino",),
        ("float32", "float16", "int8"),
        calibrated=("int8",),
    ),
    "torch": Format({"torch": ()}, ("torch",), ("float32", "float16", "bfloat16")),
}
# The model itself in another precision, beside the formats: not an export, but compared and quantised as one.
KERAS = Format({backend: () for backend in BACKENDS}, ("keras",), PRECISIONS[:4], fixed_batch=False)
EVERY = {**FORMATS, "keras": KERAS}
WHY_NOT = {
    ("tf_saved_model", "int8"): "TensorFlow's int8 is LiteRT",
    ("torch", "int8"): "its quantiser of exported programs is another package now, torchao",
}


def export_model(
    model_or_run: ViT | RunFolder,
    path: str | os.PathLike,
    format: str,
    *,
    precision: str = "float32",
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    class_names: Sequence[str] | None = None,
    input: str = "auto",
    images: np.ndarray | None = None,
    batch_size: int | None = None,
    merge_tokens: int | None = None,
    overwrite: bool = False,
    threshold: float | None = None,
) -> dict:
    """Writes a model in a format, loads it in that format's own runtime in a fresh process, and compares the logits.

    Normalisation is part of what is written: images go in as uint8 (B, H, W, C), logits (B, K) come out, for any B. A SavedModel
    has three signatures: `serving_default`, uint8 images of any size (B, h, w, C) -> `labels` and `probabilities` (B, K), the
    likeliest first; `serve`, normalised float32 images as the Keras model takes them -> `logits`; and `serving_bytes`, encoded JPEG
    or PNG files (B,) -> as `serving_default`. Those read pictures as training does: turned upright by EXIF (of a JPEG), on white,
    resized to cover H x W and cut to the middle.

    Args:
        model_or_run: A `ViT`, or a `RunFolder`, which brings mean, std, class names and its test images.
        path: The folder to write: the SavedModel, or `model.onnx`, `model.tflite`, `model.xml` and `model.bin`, `model.pt2`,
            `model.keras`; and `export.json`, the report.
        format: A name of `FORMATS`, or `keras`.
        precision: Of the weights, and where the format computes in it, of the activations; see `Format`. `int8` is what runs best
            on processors, `int8_static` (LiteRT) what accelerators need; see `keras_vit.quantize`.
        mean: Of the pixels scaled to 0..1, one number or one a channel.
        std: Their standard deviation, likewise.
        class_names: K names; None gives the numbers of the classes.
        input: `uint8` (with normalisation; needs mean and std), `float32` (what the Keras model takes), or `auto`: uint8 if it can.
        images: Real uint8 images (N, H, W, C): the artifact is compared on the first 64, and calibrated on all where int8 fixes the
            ranges of activations. None takes the run's test images (for calibration 256 of its training images), without a run
            or its data crops of two photographs (which do not calibrate).
        batch_size: Writes for this B alone; None for any.
        merge_tokens: Writes the model with that many tokens merged by each block, as `ViTConfig.merge_tokens`: faster, and not
            quite as accurate; it is compared with the Keras model that does so too. None = as the model is.
        overwrite: Whether an export at `path` may be replaced.
        threshold: Largest difference allowed; None takes that of `THRESHOLDS`.

    Returns:
        The report: `format`, `precision`, `input`, `written_by` (a backend), `bytes`, `difference` (the largest of the logits),
        `agreement` (share of images with the same likeliest class), `threshold`, `cases` and more.

    Raises:
        ValueError: For settings that do not fit together, a package that is missing, a target that exists, a conversion that
            fails, and an artifact that differs by more than the threshold.
    """
    start = time.perf_counter()
    check_choice("format", format, tuple(EVERY))
    kind = EVERY[format]
    if precision not in kind.precisions:
        why = f" ({WHY_NOT[format, precision]})" if (format, precision) in WHY_NOT else ""
        raise ValueError(f"precision: received {precision!r}; {format} has {', '.join(kind.precisions)}{why}")
    check_choice("input", input, INPUTS)
    if batch_size is not None:
        check_int("batch_size", batch_size, at_least=1)
        if not kind.fixed_batch:
            raise ValueError(f"batch_size: received {batch_size}; {format} takes batches of any size; allowed: None")
    path = Path(path)
    check_target(path, overwrite)
    writer = keras.backend.backend() if format == "keras" else choose_writer(format)
    run = model_or_run if isinstance(model_or_run, RunFolder) else None
    model = run.model() if run else model_or_run
    if not isinstance(model, ViT):
        raise ValueError(f"model_or_run: received a {type(model).__name__}; allowed: a ViT or a RunFolder")
    if any(getattr(layer, "quantization_mode", None) for layer in flatten_layers(model)):
        raise ValueError("model_or_run: received a quantised ViT; allowed: the one it was made from, and a precision of the format")
    if merge_tokens is not None:
        model = merging_model(model, merge_tokens)
    if run:
        recipe = run.recipe
        mean, std = (recipe.mean if mean is None else mean), (recipe.std if std is None else std)
        if class_names is None and run.is_finished:
            class_names = run.summary.get("class_names")
    report = describe(model, format, precision, input, mean, std, class_names, batch_size)
    calibration = calibration_images(model, run, images, precision) if precision in kind.calibrated else None
    cases = verification_images(model, run, images, batch_size)

    with working_folder(path) as work:
        folder = Path(work, "artifact")
        folder.mkdir(mode=0o755)
        reference = float32_model(model)
        reference.save(Path(work, "model.keras"))
        if calibration is not None:
            np.save(Path(work, "calibration.npy"), calibration)
        report["written_by"] = writer
        write_text(folder / "export.json", json.dumps(report))
        try:
            code = "import sys; from keras_vit.export.export import write; write(*sys.argv[1:])"
            run_python(["-c", code, work], writer, **ON_PROCESSOR)  # a graph traced on an accelerator may hold its kernels
        except ValueError as error:
            raise ValueError(f"{format}: the conversion failed: {error}") from None
        report |= verify(reference, report, folder, cases, threshold)
        report["bytes"] = bytes_of(folder)
        report["seconds"] = time.perf_counter() - start
        write_text(folder / "export.json", json.dumps(report, indent=2, ensure_ascii=False) + "\n")
        move(folder, path)
    return report


def bytes_of(folder: Path) -> int:
    """Size of an export, its report left out."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file() and file.name != "export.json")


def check_target(path, overwrite):
    """Raises a ValueError unless an export can be written to a path."""
    ours = (path / "export.json").is_file()
    if path.is_dir() and not any(path.iterdir()):
        return
    if path.exists() or path.is_symlink():
        if not ours:
            raise ValueError(f"path: {str(path)!r} exists and is no export; allowed: a path where there is nothing, or an export")
        if not overwrite:
            raise ValueError(f"path: {str(path)!r} exists; allowed: another path, or to overwrite it (overwrite=True, --overwrite)")
    parent = next(folder for folder in (path.parent, *path.parent.parents) if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise ValueError(f"path: {str(path)!r} cannot be written: {str(parent)!r} is no folder that may be written to")


@contextlib.contextmanager
def working_folder(path):
    """A folder beside a path, on the same disk; gone in the end, as are the parents that were made for it and hold nothing."""
    missing = list(itertools.takewhile(lambda folder: not folder.exists(), (path.parent, *path.parent.parents)))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(path.parent)
        folder = tempfile.TemporaryDirectory(prefix=f"{WORKING}{os.getpid()}-", dir=path.parent)
    except OSError as error:
        raise ValueError(f"path: {str(path)!r} cannot be written ({error.strerror})") from None
    try:
        with folder as work:
            yield work
    finally:
        for parent in missing:
            with contextlib.suppress(OSError):  # not empty
                parent.rmdir()


def remove_abandoned(parent):
    """Deletes the working folders of processes that were killed."""
    for folder in parent.glob(f"{WORKING}*"):
        pid = folder.name.removeprefix(WORKING).partition("-")[0]
        if pid.isdecimal() and not psutil.pid_exists(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)


def choose_writer(format: str) -> str:
    """The backend that writes a format best, of those that are installed with what they need for it.

    Raises:
        ValueError: With the pip command that brings what is missing, to write it or to verify it.
    """
    kind, current, installed = EVERY[format], keras.backend.backend(), installed_backends()
    ready = [b for b in kind.writers if b in installed and all(find_spec(package) for package in kind.writers[b])]
    backend = next(b for b in (*ready, current, *installed, *kind.writers) if b in kind.writers)
    missing = [package for package in (backend, *kind.writers[backend]) if not find_spec(package)]
    if not any(find_spec(package) or package in missing for package in kind.runtime):
        missing.append(kind.runtime[0])
    if missing:
        packages = " ".join(pip_name(package) for package in missing)
        raise ValueError(f"{format}: written by {backend} and verified by its own runtime, needs: pip install {packages}")
    return backend


def pip_name(package):
    return package.replace("_", "-")


def describe(model, format, precision, input, mean, std, class_names, batch_size):
    """The settings of an export, checked, as its report begins."""
    config = model.config
    known = mean is not None and std is not None
    if input == "auto":
        input = "uint8" if known else "float32"
    if input == "uint8" and not known:
        raise ValueError("input: received 'uint8'; allowed without mean and std: float32")
    channels = config.channels
    values = {}
    for name, value in (("mean", mean), ("std", std)):
        if value is None:
            values[name] = None
            continue
        array = np.atleast_1d(np.asarray(value, "float64"))
        if array.ndim != 1 or len(array) not in (1, channels) or not np.isfinite(array).all():
            raise ValueError(f"{name}: received {value!r}; allowed: a number, or one for each of {channels} channels")
        if name == "std" and not (array > 0).all():
            raise ValueError(f"std: received {value!r}; allowed: numbers above 0")
        values[name] = np.broadcast_to(array, channels).tolist()
    if config.num_classes:
        names = [str(index) for index in range(config.num_classes)] if class_names is None else [str(name) for name in class_names]
        if len(names) != config.num_classes:
            raise ValueError(f"class_names: received {len(names)}; allowed: {config.num_classes}, the classes of the model")
    else:
        names = []
        if class_names:
            raise ValueError(f"class_names: received {len(class_names)}; the model gives features, not classes; allowed: none")
    shape = (*config.image_size, channels) if input == "uint8" else config.image_shape
    return {
        "format": format,
        "precision": precision,
        "input": input,
        "image_shape": list(shape),
        "data_format": config.data_format,
        "batch_size": batch_size,
        "merge_tokens": config.merge_tokens,
        **values,
        "class_names": names,
        "parameters": model.count_params(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "exported_with": machine()["versions"],
    }


def float32_model(model):
    """The model in float32, whatever its policy is: what exports are made from, and compared with."""
    if model.dtype_policy.name == "float32":
        return model
    copy = build_vit(model.config, dtype="float32")
    copy.set_weights([np.asarray(weight, "float32") for weight in model.get_weights()])
    return copy


# Images


def verification_images(model, run, images, batch_size):
    """What the artifact is compared on: (name, uint8 images (N, H, W, C)), random and, where the channels allow, real."""
    config = model.config
    count = max((batch_size,) if batch_size else BATCHES)
    shape = (*config.image_size, config.channels)
    cases = [("random", np.random.default_rng(0).integers(256, size=(count, *shape)).astype("uint8"))]
    if images is None:
        images = test_images(run) if run else None
        images = photographs(count, shape) if images is None else images
    if images is not None:
        images = check_images(images, shape)
        images = images[:count]
        cases.append(("real", np.resize(images, (count, *shape))))
    return cases


def calibration_images(model, run, images, precision):
    """Real uint8 images (N, H, W, C) for the ranges of activations, never those of the test."""
    if images is None and run is None:
        raise ValueError(f"images: none; {precision} is calibrated on real images; allowed: uint8 images (N, H, W, C), or a run")
    if images is None:
        images = run_images(run, "train", count=256)
    return check_images(images, (*model.config.image_size, model.config.channels))


def check_images(images, shape):
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.shape[1:] != shape or not len(images):
        allowed = ", ".join(map(str, ("N", *shape)))
        raise ValueError(f"images: received {images.dtype} of shape {images.shape}; allowed: uint8 of shape ({allowed})")
    return images


def run_images(run, split, count=64):
    """The first test images of a run, or images from all over its training images."""
    from keras_vit.recipes.schema import load_recipe_data

    data = load_recipe_data(run.recipe)
    part = data.test if split == "test" else data.train
    if part is None:
        part = data.validation or data.train
    picked = np.arange(min(count, len(part)))
    if split == "train":
        picked = np.random.default_rng(0).choice(len(part), len(picked), replace=False)
    return part.images(picked)


def test_images(run):
    """The first test images of a run; None where its data set is not, as on a machine that it was copied to."""
    try:
        return run_images(run, "test")
    except ValueError:
        return None


def photographs(count, shape):
    """Crops (N, H, W, C) of scikit-learn's two photographs; None for channels that a photograph has not."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    height, width, channels = shape
    if channels not in (1, 3):
        return None
    rng, crops = np.random.default_rng(0), []
    for picture in itertools.islice(itertools.cycle(load_sample_images().images), count):
        side = int(rng.integers(min(picture.shape[:2]) // 3, min(picture.shape[:2])))
        top, left = (int(rng.integers(full - side + 1)) for full in picture.shape[:2])
        crop = Image.fromarray(picture[top : top + side, left : left + side]).convert("L" if channels == 1 else "RGB")
        crops.append(np.asarray(crop.resize((width, height), Image.Resampling.BICUBIC)).reshape(shape))
    return np.stack(crops)


def to_model(images, report):
    """uint8 images (N, H, W, C) as the Keras model takes them."""
    mean, std = (report["mean"], report["std"]) if report["mean"] else (0.5, 0.5)
    images = normalize(images, mean, std)
    return images.transpose(0, 3, 1, 2) if report["data_format"] == "channels_first" else images


# Verification


def verify(model, report, folder, cases, threshold=None):
    """Compares an artifact in its runtime with the Keras model; what of it belongs into the report.

    Raises:
        ValueError: If it cannot be loaded or run, or differs by more than the threshold.
    """
    limit = THRESHOLDS[report["precision"]] if threshold is None else threshold
    sizes = (report["batch_size"],) if report["batch_size"] else BATCHES
    rows, worst = [], 0.0
    with tempfile.TemporaryDirectory() as files, Runtime(report["format"], folder) as runtime:
        if report["format"] != "keras" and runtime.description["keras"]:
            raise ValueError(f"{report['format']}: its runtime imported Keras, so that it proves nothing")
        for name, images in cases:
            inputs = to_model(images, report)
            expected = logits_of(model, inputs)
            scale = expected.std() if report["precision"] != "float32" else max(1.0, float(np.abs(expected).max()))
            for size in sizes:
                given = images[:size] if report["input"] == "uint8" else inputs[:size]
                ours = runtime.predict(given, files)
                if ours.shape != expected[:size].shape:
                    raise ValueError(f"{report['format']}: gives shape {ours.shape}; expected {expected[:size].shape}")
                difference = float(np.abs(ours - expected[:size]).max())
                difference = difference if np.isfinite(difference) else float("inf")
                agreement = float(np.mean(ours.argmax(-1) == expected[:size].argmax(-1)))
                rows.append({"images": name, "batch": size, "difference": difference, "agreement": agreement})
                worst = max(worst, difference / scale)
        if report["format"] == "tf_saved_model" and report["class_names"] and report["mean"]:
            check_signatures(runtime, model, report, cases[-1][1][:8], files)
    if not worst <= limit:
        raise ValueError(
            f"{report['format']}: not exported: logits differ from the Keras model's by {worst:.1e} of their scale; "
            f"allowed in {report['precision']}: {limit:.1e}"
        )
    images = sum(row["batch"] for row in rows)
    agreement = sum(row["agreement"] * row["batch"] for row in rows) / images
    return {
        "difference": max(row["difference"] for row in rows),
        "agreement": agreement,
        "threshold": limit,
        "cases": rows,
    }


def logits_of(model, inputs, batch_size=64):
    """Logits (N, K) of inputs as the Keras model takes them."""
    with full_float32():
        parts = [model(inputs[start : start + batch_size], training=False) for start in range(0, len(inputs), batch_size)]
    return np.concatenate([keras.ops.convert_to_numpy(part) for part in parts])


def check_signatures(runtime, model, report, images, files):
    """Raises a ValueError unless the signatures of a SavedModel that classify agree with `read_image` and the model."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    from keras_vit.data.sources import read_image

    def classes(images):
        return logits_of(model, to_model(images, report)).argmax(-1)

    np.save(Path(files, "images.npy"), images)
    answers = [(runtime.ask(do="classify", images=str(Path(files, "images.npy"))), classes(images))]
    if model.config.channels in (1, 3):
        paths = [str(Path(files, f"{index}.{suffix}")) for index, suffix in enumerate(("jpg", "png", "png", "jpg"))]
        for path, picture in zip(paths, load_sample_images().images * 2, strict=True):
            Image.fromarray(picture).save(path, **({"quality": 95} if path.endswith("jpg") else {}))
        shape = (*model.config.image_size, model.config.channels)
        expected = classes(np.stack([read_image(path, shape) for path in paths]))
        answers.append((runtime.ask(do="classify", files=paths), expected))
    for answer, expected in answers:
        labels = [report["class_names"][index] for index in expected]
        if answer["labels"] != labels and report["precision"] == "float32":
            raise ValueError(f"tf_saved_model: not exported: classifies as {answer['labels']}, the Keras model as {labels}")


def move(folder, path):
    """Puts the finished folder in its place; an export that is there is gone only then."""
    old = folder.with_name("replaced")  # deleted with the working folder
    try:
        if path.exists():
            os.replace(path, old)
        try:
            os.replace(folder, path)
        except BaseException:
            if old.exists():
                os.replace(old, path)
            raise
    except OSError as error:
        raise ValueError(f"path: {str(path)!r} cannot be written ({error.strerror})") from None


# Writing, in a process of the backend that can


def write(work: str) -> None:
    """What the writing process does: the artifact of a folder's `model.keras` and `artifact/export.json`."""
    work = Path(work)
    folder = work / "artifact"
    report = json.loads((folder / "export.json").read_text(encoding="utf-8"))
    model = keras.saving.load_model(work / "model.keras", compile=False)
    if report["precision"] in ("float16", "bfloat16") and report["format"] in ("tf_saved_model", "torch", "keras"):
        lower = build_vit(model.config, dtype=report["precision"])
        lower.set_weights(model.get_weights())
        model = lower
    calibration = None
    if report["precision"] in EVERY[report["format"]].calibrated:
        calibration = np.load(work / "calibration.npy")
        if report["input"] == "float32":
            calibration = to_model(calibration, report)
    with portable():
        WRITERS[report["format"]](model, folder, report, calibration)


def serving_model(model, report):
    """The model as artifacts have it: images -> logits, normalisation inside where they come as uint8."""
    if report["input"] == "float32":
        return model
    mean, std = (np.asarray(report[name]) for name in ("mean", "std"))
    images = keras.Input(report["image_shape"], dtype="uint8", name="images")
    x = keras.layers.Rescaling((1 / (255 * std)).tolist(), (-mean / std).tolist(), dtype="float32", name="normalisation")(images)
    if model.config.data_format == "channels_first":
        x = keras.layers.Permute((3, 1, 2), name="channels_first")(x)
    return keras.Model(images, model(x), name="serving")


def output_name(report):
    return "logits" if report["class_names"] else "features"


def metadata(report):
    """What an artifact says of itself, as text by name."""
    names = ("class_names", "mean", "std", "input", "image_shape", "data_format", "precision")
    return {name: report[name] if isinstance(report[name], str) else json.dumps(report[name], ensure_ascii=False) for name in names}


def write_keras(model, folder, report, calibration):
    if report["precision"] == "int8":
        model.quantize("int8")
    model.save(folder / FILES["keras"])


def write_torch(model, folder, report, calibration):
    import torch

    program = torch_program(model, report)
    for node in program.graph.nodes:  # where each operation stood in which file of whose disk, half of the graph's size
        for name in ("stack_trace", "nn_module_stack", "torch_fn"):
            node.meta.pop(name, None)
    torch.export.save(program, folder / FILES["torch"], extra_files={"keras_vit.json": json.dumps(metadata(report))})


def torch_program(model, report):
    """The exported program of PyTorch, with a batch of any size or of the report's."""
    import torch

    class Module(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.models = [serving_model(model, report)]  # no submodule: its parameters would be stored twice

        def forward(self, images):
            return self.models[0](images, training=False)

    shape = (report["batch_size"] or 2, *report["image_shape"])
    example = torch.zeros(shape, dtype=torch.uint8 if report["input"] == "uint8" else torch.float32)
    dynamic = None if report["batch_size"] else {"images": {0: torch.export.Dim.DYNAMIC}}
    with torch.no_grad():
        return torch.export.export(Module().eval(), (example,), dynamic_shapes=dynamic, strict=False)


def write_onnx(model, folder, report, calibration):
    import onnx

    path = folder / FILES["onnx"]
    proto = {"torch": onnx_of_torch, "jax": onnx_of_jax, "tensorflow": onnx_of_tensorflow}[keras.backend.backend()](model, report)
    if report["precision"] == "float16":
        from onnxruntime.transformers.float16 import convert_float_to_float16

        proto = convert_float_to_float16(proto, keep_io_types=True)
    if report["precision"] == "int8":
        from keras_vit.export.quantize import quantize_onnx

        proto = quantize_onnx(proto, calibration)
    onnx.helper.set_model_props(proto, metadata(report))
    proto.producer_name = "keras_vit"
    large = proto.ByteSize() > 1_500_000_000  # a protocol buffer holds 2 GB
    onnx.save(proto, path, save_as_external_data=large, location="model.onnx.data")
    onnx.checker.check_model(path)


def onnx_of_torch(model, report):
    import torch

    program = torch_program(model, report)
    proto = torch.onnx.export(
        program, input_names=["images"], output_names=[output_name(report)], dynamo=True, external_data=False, verbose=False
    ).model_proto
    for part in (*proto.graph.node, *proto.graph.value_info):  # where each operation stood in which file of whose disk
        part.ClearField("metadata_props")
    return proto


def onnx_of_jax(model, report):
    import jax
    import jax2onnx

    serving = serving_model(model, report)
    shape = jax.ShapeDtypeStruct((report["batch_size"] or "batch", *report["image_shape"]), report["input"])
    names = {"input_names": ["images"], "output_names": [output_name(report)]}
    return jax2onnx.to_onnx(lambda images: serving(images, training=False), [shape], model_name="keras_vit", opset=21, **names)


def onnx_of_tensorflow(model, report):
    import tensorflow as tf
    import tf2onnx

    serving = serving_model(model, report)
    signature = [tf.TensorSpec((report["batch_size"], *report["image_shape"]), report["input"], name="images")]
    function = tf.function(lambda images: {output_name(report): serving(images, training=False)}, input_signature=signature)
    return tf2onnx.convert.from_function(function, input_signature=signature, opset=18)[0]


def write_openvino(model, folder, report, calibration):
    import openvino

    write_onnx(model, folder, {**report, "precision": "int8" if report["precision"] == "int8" else "float32"}, calibration)
    source = folder / FILES["onnx"]
    converted = openvino.convert_model(source)
    for name, text in metadata(report).items():
        converted.set_rt_info(text, ["keras_vit", name])
    if report["class_names"]:  # where OpenVINO's Model API looks for them
        converted.set_rt_info(" ".join(name.replace(" ", "_") for name in report["class_names"]), ["model_info", "labels"])
    openvino.save_model(converted, folder / FILES["openvino"], compress_to_fp16=report["precision"] == "float16")
    del converted  # it may still have the file mapped
    for file in folder.glob("model.onnx*"):
        file.unlink()


def write_litert(model, folder, report, calibration):
    import tensorflow as tf

    serving = serving_model(model, report)
    spec = tf.TensorSpec((report["batch_size"], *report["image_shape"]), report["input"], name="images")
    function = tf.function(lambda images: {output_name(report): serving(images, training=False)}).get_concrete_function(spec)
    module = tf.Module()  # of a Keras model the converter would leave the variables out
    module.weights = [weight.value for weight in model.weights]
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function], module)
    if report["precision"] == "float16":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.target_spec.supported_types = [tf.float16]
    if report["precision"] in ("int8", "int8_static"):
        from keras_vit.export.quantize import quantize_litert

        flatbuffer = quantize_litert(converter, calibration, report["batch_size"])
    else:
        flatbuffer = converter.convert()
    (folder / FILES["litert"]).write_bytes(with_metadata(flatbuffer, metadata(report)))


def with_metadata(flatbuffer, values):
    """A LiteRT model with a metadata buffer "keras_vit" that holds JSON."""
    from tensorflow.lite.python import schema_py_generated as schema
    from tensorflow.lite.tools import flatbuffer_utils

    model = flatbuffer_utils.convert_bytearray_to_object(flatbuffer)
    buffer = schema.BufferT()
    buffer.data = np.frombuffer(json.dumps(values, ensure_ascii=False).encode(), "uint8")
    entry = schema.MetadataT()
    entry.name, entry.buffer = "keras_vit", len(model.buffers)
    model.buffers.append(buffer)
    model.metadata = [*(model.metadata or ()), entry]
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def write_saved_model(model, folder, report, calibration):
    import tensorflow as tf

    from keras_vit.export.serving import cover, decode

    config, name = model.config, output_name(report)
    module = tf.Module()
    module.weights = [weight.value for weight in model.weights]

    def serve(images):
        return {name: model(images, training=False)}

    def classify(images):
        mean, std = np.asarray(report["mean"]), np.asarray(report["std"])
        images = images * tf.constant(1 / (255 * std), tf.float32) + tf.constant(-mean / std, tf.float32)
        if config.data_format == "channels_first":
            images = tf.transpose(images, (0, 3, 1, 2))
        probabilities = tf.nn.softmax(tf.cast(model(images, training=False), tf.float32))
        probabilities, order = tf.math.top_k(probabilities, k=len(report["class_names"]), sorted=True)
        return {"labels": tf.gather(tf.constant(report["class_names"]), order), "probabilities": probabilities}

    def serve_pixels(images):
        return classify(cover(images, config.image_size))

    def serve_files(images):
        def read(encoded):
            return cover(decode(encoded, config.channels)[None], config.image_size)[0]

        shape = tf.TensorSpec((*config.image_size, config.channels), tf.float32)
        return classify(tf.map_fn(read, images, fn_output_signature=shape))

    def signature(function, shape, dtype):
        return tf.function(function, input_signature=[tf.TensorSpec(shape, dtype, name="images")])

    signatures = {"serve": signature(serve, (None, *config.image_shape), tf.float32)}
    if report["class_names"] and report["mean"]:
        signatures["serving_default"] = signature(serve_pixels, (None, None, None, config.channels), tf.uint8)
        if config.channels in (1, 3):
            signatures["serving_bytes"] = signature(serve_files, (None,), tf.string)
    else:
        signatures["serving_default"] = signatures["serve"]
    tf.saved_model.save(module, str(folder), signatures=signatures)


WRITERS = {
    "tf_saved_model": write_saved_model,
    "onnx": write_onnx,
    "litert": write_litert,
    "openvino": write_openvino,
    "torch": write_torch,
    "keras": write_keras,
}


# Tables


def export_table(reports: list[dict]):
    """A rich table of reports of `export_model`."""
    from rich.table import Table

    table = Table("format", "precision", "input", "written by")
    for name in ("MB", "largest difference", "same class", "seconds"):
        table.add_column(name, justify="right")
    for report in reports:
        table.add_row(
            report["format"],
            report["precision"],
            report["input"],
            report["written_by"],
            f"{report['bytes'] / 1e6:.2f}",
            f"{report['difference']:.1e}",
            f"{report['agreement']:.1%}",
            f"{report['seconds']:.0f}",
        )
    return table
