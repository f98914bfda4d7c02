"""Compares exports with the Keras model: size, latency, throughput and accuracy, measured turn by turn."""

import contextlib
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from rich.table import Table

from keras_vit.checks import check_int, check_number
from keras_vit.data.labels import is_multi
from keras_vit.export.images import to_model
from keras_vit.export.models import float32_model
from keras_vit.export.report import bytes_of, describe, read_report
from keras_vit.export.runtimes import FILES, Runtime
from keras_vit.files import write_json
from keras_vit.machine import machine
from keras_vit.runs.folder import RunFolder
from keras_vit.runs.scores import metrics_of

LATENCY, THROUGHPUT = 1, 64  # batch sizes
ROUNDS = 5  # turns of each artifact: noise of the machine hits all of them alike
ACCURACY_BATCH = 250
PART = 20 * ACCURACY_BATCH  # images in memory at a time


def compare_exports(
    source: RunFolder,
    home: Path,
    folders: Sequence[Path] = (),
    images: int | None = None,
    seconds: float = 2.0,
    report: Callable[[str], None] = print,
) -> list[dict]:
    """Measures the exports of a run and its Keras model, and writes `compare.json`.

    Each artifact has a process with its runtime. The processes take turns: while one runs, the others wait. Accuracy is measured on
    the run's test images.

    Args:
        source: The `RunFolder`.
        home: The folder of its exports, and of `compare.json`.
        folders: The exports to compare; none = all in `home`.
        images: Number of test images, from the first; None = all.
        seconds: Seconds of timing for each artifact and batch size.
        report: Called with each line of progress.

    Returns:
        A row for each artifact, the Keras model first: `name`, `format`, `precision`, `bytes`, `size` (relative to the float32
        export of the same format, or without one to the Keras model), `latency` (seconds at batch 1), `throughput` (images/s at
        batch 64), `latency_ratio` and `throughput_ratio` (median over the turns of the speed relative to the Keras model's; above
        1 is faster), `measure` (accuracy, or mAP where an image may have several classes), its value as `accuracy`,
        `accuracy_change` and `difference` (largest of the logits).

    Raises:
        ValueError: If there are no exports, a folder is no export, or an export is another model's.
    """
    if not isinstance(source, RunFolder):
        raise ValueError("--compare: received a model; allowed: a run folder, for its test images")
    if images is not None:
        check_int("images", images, at_least=1)
    check_number("seconds", seconds, above=0)
    folders = list(folders) or sorted(path.parent for path in home.glob("*/export.json"))
    if not folders:
        raise ValueError(f"--compare: received no exports in {str(home)!r}; allowed: some, written with --format")
    names = [folder.name if folder.parent == home else str(folder) for folder in folders]
    exports = dict(zip(names, [(folder, read_report(folder)) for folder in folders], strict=True))
    data = source.recipe.load_data()
    if data.test is None:
        raise ValueError(f"--compare: received {data.name}, which has no test images; allowed: a run on data with test images")
    test = data.test.take(np.arange(len(data.test) if images is None else min(images, len(data.test))))

    with contextlib.ExitStack() as stack:
        files = stack.enter_context(tempfile.TemporaryDirectory())
        original = keras_artifact(source, Path(files, "keras"))
        whole = read_report(original)
        for folder, settings in exports.values():
            if any(settings.get(key) != whole[key] for key in ("parameters", "class_names", "mean", "std")):
                raise ValueError(f"--compare: received {str(folder)!r}, of another model; allowed: exports of the run's model")
        runtimes, rows, expected = {}, [], None
        for name, (folder, settings) in {"Keras": (original, whole), **exports}.items():
            if settings["batch_size"]:
                report(f"{name}: written for batches of {settings['batch_size']}; left out")
                continue
            report(f"{name}: accuracy on {len(test):,} images ...")
            runtimes[name] = stack.enter_context(Runtime(settings["format"], folder))
            logits = logits_of_test(runtimes[name], test, settings, files)
            expected = logits if expected is None else expected
            rows.append(
                {
                    "name": name,
                    "format": settings["format"],
                    "precision": settings["precision"],
                    "bytes": bytes_of(folder),
                    "measure": "mAP" if is_multi(test.labels) else "accuracy",
                    "accuracy": quality(logits, test.labels, data.class_names),
                    "difference": float(np.abs(logits - expected).max()),
                }
            )
        times = {name: {LATENCY: [], THROUGHPUT: []} for name in runtimes}
        report(f"timing, {ROUNDS} turns ...")
        for _ in range(ROUNDS):
            for name, runtime in runtimes.items():
                for batch in (LATENCY, THROUGHPUT):
                    times[name][batch].append(runtime.ask(do="time", batch_size=batch, seconds=seconds / ROUNDS)["seconds"])
    float32 = {row["format"]: row["bytes"] for row in rows if row["precision"] == "float32"}
    for row in rows:
        spans, first = times[row["name"]], times["Keras"]
        row["size"] = row["bytes"] / float32.get(row["format"], rows[0]["bytes"])
        row["latency"] = float(np.median(spans[LATENCY]))
        row["throughput"] = THROUGHPUT / float(np.median(spans[THROUGHPUT]))
        row["latency_ratio"] = float(np.median(np.divide(first[LATENCY], spans[LATENCY])))
        row["throughput_ratio"] = float(np.median(np.divide(first[THROUGHPUT], spans[THROUGHPUT])))
        row["accuracy_change"] = row["accuracy"] - rows[0]["accuracy"]
    result = {"data": data.name, "images": len(test), **machine(), "rows": rows}
    write_json(home / "compare.json", result)
    return rows


def keras_artifact(run, folder):
    """Writes the run's model as an export would be, without verification."""
    model, recipe = float32_model(run.model()), run.recipe
    folder.mkdir()
    shown = run.multi_label, recipe.center_crop, run.temperature
    settings = describe(model, "keras", "float32", "auto", recipe.mean, recipe.std, run.class_names, None, *shown)
    write_json(folder / "export.json", settings)
    model.save(folder / FILES["keras"])
    return folder


def quality(logits, labels, class_names):
    """The accuracy, or the mean average precision where an image may have several classes."""
    found, _ = metrics_of(logits, labels, class_names)
    return found["map" if is_multi(labels) else "accuracy"]


def logits_of_test(runtime, test, settings, files):
    """Logits (N, K) of a split, a few thousand images at a time."""
    parts = []
    for start in range(0, len(test), PART):
        images = test.images(np.arange(start, min(start + PART, len(test))))
        images = images if settings["input"] == "uint8" else to_model(images, settings)
        parts.append(runtime.predict(images, files, ACCURACY_BATCH))
    return np.concatenate(parts)


def comparison_table(rows: list[dict]) -> Table:
    """A rich table of the rows of `compare_exports`."""
    table = Table("export")
    measure = rows[0]["measure"]
    for name in ("MB", "of float32", "ms, batch 1", "ratio", "img/s, batch 64", "ratio", measure, "change", "logits differ by"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            row["name"],
            f"{row['bytes'] / 1e6:.2f}",
            f"{row['size']:.1%}",
            f"{1000 * row['latency']:.2f}",
            f"{row['latency_ratio']:.2f}",
            f"{row['throughput']:,.0f}",
            f"{row['throughput_ratio']:.2f}",
            f"{row['accuracy']:.2%}",
            f"{100 * row['accuracy_change']:+.2f}",
            f"{row['difference']:.1e}",
        )
    return table
