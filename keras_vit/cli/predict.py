"""Says what is on pictures, with a trained model.

  keras-vit predict RUN photo.jpg                     the likeliest class and its probability
  keras-vit predict RUN photos/ 'more/*.png' --top 3  folders, patterns; the three likeliest classes
  keras-vit predict RUN photos/ --csv classes.csv     or --json FILE, --html FILE: a page with thumbnails
  keras-vit predict RUN/export/onnx photos/           by an export, in its own runtime
  keras-vit predict model.keras photos/ --class-names cat dog

A model that was trained with several labels an image gives every class above a probability of 0.5 (--threshold), or --top.
The pictures need no labels. They are read as in training.
"""

import collections
import contextlib
import csv
import io
import json
import signal
import sys
import tempfile
from pathlib import Path

from rich.table import Table
from rich.text import Text

from keras_vit.checks import as_moments, check_number, visible
from keras_vit.cli.command import Parser, check_unused, refuse
from keras_vit.data.folder import printable
from keras_vit.export.images import to_model
from keras_vit.export.report import names_of_classes, read_report
from keras_vit.export.runtimes import FILES, Runtime
from keras_vit.files import write_text
from keras_vit.machine import tune
from keras_vit.model.saved import load_keras
from keras_vit.report.predictions import predictions_page
from keras_vit.runs.folder import RunFolder
from keras_vit.runs.prediction import BATCH_SIZE, Classifier, classifier, find_images, predict_files
from keras_vit.terminal import Terminal

MOST = 50  # rows on the screen if all of them are in a file
SHOWN = 10  # classes counted in the last line
WIDE = 10_000  # columns of an output that is no terminal: paths stay whole
SUFFIXES = {"csv": (".csv",), "json": (".json",), "html": (".html", ".htm")}


def parse_options(arguments):
    parser = Parser("predict", __doc__, "MODEL PATH [PATH ...]")
    parser.add_argument("model", metavar="MODEL", help="A run folder, the folder of an export, or a .keras file.")
    parser.add_argument("paths", metavar="PATH", nargs="+", help="A picture, a folder with pictures or a pattern.")
    parser.add_argument(
        "--top", metavar="K", type=int, help="Classes of each picture, likeliest first. Default: 1, or --threshold."
    )
    parser.add_argument(
        "--threshold", metavar="P", type=float, help="Probability above which a class counts, with several labels. Default: 0.5."
    )
    parser.add_argument("--multi-label", action="store_true", help="A .keras file was trained with several labels an image.")
    parser.add_argument("--csv", metavar="FILE", type=Path, help="Table to write: image, class, probability, class_2, ...")
    parser.add_argument("--json", metavar="FILE", type=Path, help="The same as JSON.")
    parser.add_argument("--html", metavar="FILE", type=Path, help="Page to write, with thumbnails.")
    parser.add_argument("--batch-size", metavar="N", type=int, default=BATCH_SIZE, help=f"Default: {BATCH_SIZE}.")
    parser.add_argument(
        "--center-crop", metavar="X", type=float, help="Share of each side that the model sees. Default: the model's."
    )
    parser.add_argument("--mean", metavar="X", type=float, nargs="+", help="Mean of pixels scaled to 0..1. Default: the model's.")
    parser.add_argument("--std", metavar="X", type=float, nargs="+", help="Deviation of such pixels. Default: the model's.")
    parser.add_argument("--class-names", metavar="NAME", nargs="+", help="The classes by index. Default: the model's.")
    options, rest = parser.parse_known_args(arguments)
    for each in rest:
        if each.startswith("-"):
            refuse(each, vars(options), "--help")
    options.paths += rest  # paths that follow an option
    for name, suffixes in SUFFIXES.items():
        path = getattr(options, name)
        # `--csv photos/*.png` would replace the first picture.
        if path and (path.suffix.lower() not in suffixes or path.is_dir()):
            raise ValueError(f"--{name}: received {str(path)!r}; allowed: a file whose name ends in {' or '.join(suffixes)}")
    if options.class_names:
        options.class_names = [printable(name) for name in options.class_names]
    return options


def main(arguments):
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # cleans up as after Ctrl-C
    options = parse_options(arguments)
    with contextlib.suppress(AttributeError):  # a stream of another kind, as in tests
        sys.stdout.reconfigure(errors="backslashreplace")
    console = Terminal(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = WIDE
    files, notes = find_images(options.paths), []
    with open_classifier(options, notes) as chosen:
        settings = {"top": options.top, "threshold": options.threshold, "batch_size": options.batch_size}
        settings["thumbnails"] = bool(options.html)
        predictions = [*predict_files(chosen, files, notes=notes, **settings)]
        several = chosen.multi_label and options.top is None
    written = write(predictions, options, notes)
    console.print(table(predictions[: MOST if written else None]))
    if written and len(predictions) > MOST:
        console.print(f"the first {MOST} of {len(predictions):,}")
    for note in notes:
        console.print(note, soft_wrap=True)
    if len(predictions) > 1:
        console.print(visible(f"{len(predictions):,} pictures: {counts(predictions, several)}"), soft_wrap=True)
    for path in written:
        console.print(f"written: {path}", soft_wrap=True)


def counts(predictions, several):
    """Pictures of each class, the commonest first."""
    found = collections.Counter(name for each in predictions for name in each.classes[: None if several else 1]).most_common()
    if without := sum(not each.classes for each in predictions):
        found.append(("without a class", without))
    return ", ".join(f"{count:,} {name}" for name, count in found[:SHOWN]) + ", ..." * (len(found) > SHOWN)


@contextlib.contextmanager
def open_classifier(options, notes):
    """The `Classifier` of a run, an export or a .keras file, with the options' settings on top; it may add to the notes."""
    path = Path(options.model).expanduser()
    if path.name in FILES.values() and (path.parent / "export.json").is_file():
        path = path.parent
    if (path / "export.json").is_file():
        report = settings_of_export(read_report(path, "MODEL"), options)
        with Runtime(report["format"], path) as runtime, tempfile.TemporaryDirectory() as folder:
            yield of_export(report, runtime, folder)
        return
    tune()  # keeps what JAX compiles to load a model: seconds, each time
    run, names = run_of(path), ("mean", "std", "class_names", "center_crop")
    stated = {name: getattr(options, name) for name in names}
    model = run.model() if run else load_keras(path, "MODEL")
    if not run and not (options.mean and options.std):
        notes.append("mean and std: not in a .keras file; taken where not given: 0.5, 0.5")
    known = {"multi_label": options.multi_label}
    if run:
        check_unused(options, ("multi_label",), "with a run, which knows it")
        known = {"mean": run.recipe.mean, "std": run.recipe.std, "class_names": run.class_names, "multi_label": run.multi_label}
        known["center_crop"] = run.recipe.center_crop
    yield classifier(model, **known | {name: value for name, value in stated.items() if value is not None})


def run_of(path):
    """The run folder at a path, or of its best.keras; None for another .keras file."""
    if path.suffix != ".keras":
        return RunFolder(path)
    return RunFolder(path.parent) if path.name == "best.keras" and (path.parent / "recipe.yaml").is_file() else None


def settings_of_export(report, options):
    """The report with the options' settings on top; a ValueError for those that do not fit the export."""
    count = len(report["class_names"])
    if not count:
        raise ValueError("num_classes: received 0, a model without a head; allowed: a classifier")
    check_unused(options, ("multi_label",), "with an export, which knows it")
    names = names_of_classes(options.class_names or report["class_names"], count)
    if options.center_crop is not None:
        check_number("--center-crop", options.center_crop, above=0, at_most=1)
        report = report | {"center_crop": options.center_crop}
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

    seen = {"multi_label": report["multi_label"], "center_crop": report["center_crop"]}
    return Classifier((height, width, channels), report["class_names"], logits, report["batch_size"], **seen)


def write(predictions, options, notes):
    """Writes the files that the options ask for; returns their paths."""
    if options.csv:
        rows, out = [each.to_dict() for each in predictions], io.StringIO()
        names = ["image", "class", "probability"]
        for place in range(2, max(len(row["classes"]) for row in rows) + 1):
            names += [f"class_{place}", f"probability_{place}"]
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(names)
        for row in rows:
            cells = [row["image"], *(value for each in row["classes"] for value in each.values())]
            writer.writerow(cells + [""] * (len(names) - len(cells)))
        write_text(options.csv, out.getvalue())
    if options.json:
        content = [each.to_dict() for each in predictions]
        write_text(options.json, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    if options.html:
        write_text(
            options.html,
            predictions_page(predictions, f"{printable(Path(options.model).resolve().name)}: {len(predictions):,} pictures", notes),
        )
    return [path for path in (options.csv, options.json, options.html) if path]


def table(predictions):
    """A rich table: each picture with its likeliest classes."""
    result = Table()
    result.add_column("picture", overflow="fold")
    places = max(1, *(len(each.classes) for each in predictions))
    for place in range(places):
        result.add_column(f"{place + 1}." if place else "class", overflow="fold")
        result.add_column("" if place else "probability", justify="right", no_wrap=True)
    for each in predictions:
        pairs = zip(each.classes, each.probabilities, strict=True)
        cells = [cell for name, value in pairs for cell in (Text(visible(name)), f"{value:.1%}")]
        result.add_row(Text(visible(each.image)), *cells)  # rich leaves the rest of a shorter row empty
    return result
