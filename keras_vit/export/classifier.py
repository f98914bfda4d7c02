"""A run, an export or a .keras file as a `Classifier`, for the commands that show what it says of pictures."""

import contextlib
import dataclasses
import tempfile
from collections.abc import Iterator
from pathlib import Path

import keras

from keras_vit.checks import as_moments, check_number, check_unused
from keras_vit.data.folder import printable
from keras_vit.export.images import to_model
from keras_vit.export.report import names_of_classes, read_report
from keras_vit.export.runtimes import FILES, Runtime
from keras_vit.machine import tune
from keras_vit.model.saved import load_keras
from keras_vit.runs.folder import RunFolder
from keras_vit.runs.prediction import Classifier, classifier
from keras_vit.runs.views import choose_views, described, over_views


@contextlib.contextmanager
def open_classifier(options, notes: list[str]) -> Iterator[Classifier]:
    """The `Classifier` of a run, an export or a .keras file, open until the end of the `with`.

    Args:
        options: With `model`, the path, and what the user states of it: `mean`, `std`, `class_names`, `center_crop`, `temperature`
            (None = the model's own), `multi_label` and `tta`, as of `choose_views`.
        notes: Gets lines on what was taken where the user states nothing.

    Raises:
        ValueError: For a path that is none of the three, and for settings that do not fit it.
    """
    path = Path(options.model).expanduser()
    stated = {name: getattr(options, name) for name in ("mean", "std", "class_names", "center_crop", "temperature")}
    if options.class_names:
        stated["class_names"] = [printable(name) for name in options.class_names]
    if path.name in FILES.values() and (path.parent / "export.json").is_file():
        path = path.parent
    if (path / "export.json").is_file():
        views, _ = choose_views(options.tta)
        report = settings_of_export(read_report(path, "MODEL"), options, stated)
        with Runtime(report["format"], path) as runtime, tempfile.TemporaryDirectory() as folder:
            yield seen_through(of_export(report, runtime, folder), views, notes)
        return
    tune()  # keeps what JAX compiles to load a model: seconds, each time
    run = run_of(path)
    if run:
        run.check_classes()
    views, note = choose_views(options.tta, run.recipe.augment if run else None)
    notes += [note] * bool(note)
    model = run.model() if run else load_keras(path, "MODEL")
    if not run and not (options.mean and options.std):
        notes.append("mean and std: not in a .keras file; taken where not given: 0.5, 0.5")
    known = {"multi_label": options.multi_label}
    if run:
        check_unused(options, ("multi_label",), "with a run, which knows it")
        known = run.known
    chosen = classifier(model, **known | {name: value for name, value in stated.items() if value is not None})
    yield seen_through(chosen, views, notes)


def seen_through(chosen, views, notes):
    """The classifier with its logits averaged over views, which a note says."""
    if len(views) > 1:
        notes.append(f"test-time augmentation: logits averaged over views of each picture ({described(views)})")
    return dataclasses.replace(chosen, logits=over_views(chosen.logits, views))


def run_of(path):
    """The run folder at a path, or of its best.keras; None for another .keras file."""
    if path.suffix != ".keras":
        return RunFolder(path)
    return RunFolder(path.parent) if path.name == "best.keras" and (path.parent / "recipe.yaml").is_file() else None


def settings_of_export(report, options, stated):
    """The report with the options' settings on top; a ValueError for those that do not fit the export."""
    count = len(report["class_names"])
    if not count:
        raise ValueError("num_classes: received 0, a model without a head; allowed: a classifier")
    check_unused(options, ("multi_label",), "with an export, which knows it")
    names = names_of_classes(stated["class_names"] or report["class_names"], count)
    for name, bounds in (("center_crop", {"above": 0, "at_most": 1}), ("temperature", {"above": 0})):
        if (value := getattr(options, name)) is not None:
            check_number(f"--{name.replace('_', '-')}", value, **bounds)
            report = report | {name: value}
    if report["input"] == "uint8":
        check_unused(options, ("mean", "std"), "with an export that normalises its images itself")
        return report | {"class_names": names}
    mean, std = options.mean or report["mean"], options.std or report["std"]
    for name, value in (("mean", mean), ("std", std)):
        if not value:
            raise ValueError(f"--{name}: received none; allowed: that of the training, as the export takes normalised images")
    channels = report["image_shape"][0 if report["data_format"] == "channels_first" else -1]
    mean, std = as_moments(mean, std, channels)
    return report | {"class_names": names, "mean": mean, "std": std}


def of_export(report, runtime, folder):
    height, width, channels = shape = report["image_shape"]
    if report["input"] != "uint8" and report["data_format"] == "channels_first":
        channels, height, width = shape

    def logits(images):
        images = images if report["input"] == "uint8" else to_model(images, report)
        return runtime.predict(images, folder)

    return Classifier(
        (height, width, channels),
        report["class_names"],
        logits,
        report["batch_size"],
        report["multi_label"],
        report["center_crop"],
        platform=report["format"],
        temperature=report["temperature"],
        compiled=report["format"] == "litert" or (report["format"] == "keras" and keras.backend.backend() == "jax"),
    )
