"""Says what is on pictures, with a trained model.

  keras-vit predict RUN photo.jpg                     the likeliest class and its probability
  keras-vit predict RUN photos/ 'more/*.png' --top 3  folders, patterns; the three likeliest classes
  keras-vit predict RUN photos/ --csv classes.csv     or --json FILE, --html FILE: a page with thumbnails
  keras-vit predict RUN/export/onnx photos/           by an export, in its own runtime
  keras-vit predict model.keras photos/ --class-names cat dog

The pictures need no labels. They are read as in training.
"""

import contextlib
import csv
import io
import json
import tempfile
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from keras_vit.cli.command import Parser
from keras_vit.export.images import to_model
from keras_vit.export.runtimes import Runtime
from keras_vit.files import read_json, write_text
from keras_vit.runs.folder import RunFolder
from keras_vit.runs.prediction import BATCH_SIZE, Classifier, classifier, find_images, page, predict_files
from keras_vit.weights.load import load_model

MOST = 50  # rows on the screen if all of them are in a file


def parse_options(arguments):
    parser = Parser("predict", __doc__, "MODEL PATH [PATH ...]")
    parser.add_argument("model", metavar="MODEL", help="A run folder, the folder of an export, or a .keras file.")
    parser.add_argument("paths", metavar="PATH", nargs="+", help="A picture, a folder with pictures or a pattern.")
    parser.add_argument("--top", metavar="K", type=int, default=1, help="Classes of each picture, likeliest first. Default: 1.")
    parser.add_argument("--csv", metavar="FILE", type=Path, help="Table to write: image, class, probability, class_2, ...")
    parser.add_argument("--json", metavar="FILE", type=Path, help="The same as JSON.")
    parser.add_argument("--html", metavar="FILE", type=Path, help="Page to write, with thumbnails.")
    parser.add_argument("--batch-size", metavar="N", type=int, default=BATCH_SIZE, help=f"Default: {BATCH_SIZE}.")
    parser.add_argument("--mean", metavar="X", type=float, nargs="+", help="Mean of pixels scaled to 0..1. Default: the model's.")
    parser.add_argument("--std", metavar="X", type=float, nargs="+", help="Deviation of such pixels. Default: the model's.")
    parser.add_argument("--class-names", metavar="NAME", nargs="+", help="The classes by index. Default: the model's.")
    return parser.parse_args(arguments)


def main(arguments):
    options = parse_options(arguments)
    console = Console(highlight=False, soft_wrap=True)
    files, notes = find_images(options.paths), []
    with open_classifier(options) as chosen:
        settings = {"top": options.top, "batch_size": options.batch_size, "thumbnails": bool(options.html)}
        predictions = [*predict_files(chosen, files, notes=notes, **settings)]
    written = write(predictions, options)
    console.print(table(predictions[: MOST if written else None]))
    if written and len(predictions) > MOST:
        console.print(f"the first {MOST} of {len(predictions):,}")
    for note in notes:
        console.print(escape(note))
    for path in written:
        console.print(f"written: {path}", markup=False)


@contextlib.contextmanager
def open_classifier(options):
    """The `Classifier` of a run, an export or a .keras file, with the options' settings on top."""
    path = Path(options.model)
    stated = {"mean": options.mean, "std": options.std, "class_names": options.class_names}
    if (path / "export.json").is_file():
        report = read_json(path / "export.json", "export.json") | {k: v for k, v in stated.items() if v is not None}
        with Runtime(report["format"], path) as runtime, tempfile.TemporaryDirectory() as folder:
            yield of_export(report, runtime, folder)
        return
    run = run_of(path)
    model = run.model() if run else load_model(path, "keras")
    known = {"mean": run.recipe.mean, "std": run.recipe.std, "class_names": run.class_names} if run else {}
    yield classifier(model, **known | {name: value for name, value in stated.items() if value is not None})


def run_of(path):
    """The run folder at a path, or of its best.keras; None for another .keras file."""
    if path.suffix != ".keras":
        return RunFolder(path)
    return RunFolder(path.parent) if path.name == "best.keras" and (path.parent / "recipe.yaml").is_file() else None


def of_export(report, runtime, folder):
    height, width, channels = shape = report["image_shape"]
    if report["input"] != "uint8" and report["data_format"] == "channels_first":
        channels, height, width = shape
    if report["input"] != "uint8" and not report["mean"]:
        raise ValueError("--mean: received none; allowed: the numbers of the training, as the export takes normalised images")

    def logits(images):
        images = images if report["input"] == "uint8" else to_model(images, report)
        return runtime.predict(images, folder, report["batch_size"])

    return Classifier((height, width, channels), report["class_names"], logits)


def write(predictions, options):
    """Writes the files that the options ask for; returns their paths."""
    if options.csv:
        rows, out = [each.to_dict() for each in predictions], io.StringIO()
        names = ["image", "class", "probability"]
        for place in range(2, options.top + 1):
            names += [f"class_{place}", f"probability_{place}"]
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(names)
        for row in rows:
            writer.writerow([row["image"], *(value for each in row["classes"] for value in each.values())])
        write_text(options.csv, out.getvalue())
    if options.json:
        content = [each.to_dict() for each in predictions]
        write_text(options.json, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    if options.html:
        write_text(options.html, page(predictions, f"{Path(options.model).resolve().name}: {len(predictions):,} pictures"))
    return [path for path in (options.csv, options.json, options.html) if path]


def table(predictions):
    """A rich table: each picture with its likeliest classes."""
    result = Table("picture")
    for place in range(len(predictions[0].classes)):
        result.add_column("class" if not place else f"{place + 1}.")
        result.add_column("", justify="right")
    for each in predictions:
        cells = [
            cell for name, value in zip(each.classes, each.probabilities, strict=True) for cell in (escape(name), f"{value:.1%}")
        ]
        result.add_row(escape(str(each.image)), *cells)
    return result
