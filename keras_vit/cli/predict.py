"""Says what is on pictures, with a trained model.

  keras-vit predict RUN photo.jpg                     the likeliest class and its probability
  keras-vit predict RUN photos/ 'more/*.png' --top 3  folders, patterns; the three likeliest classes
  keras-vit predict RUN photos/ --csv classes.csv     or --json FILE, --html FILE: a page with thumbnails
  keras-vit predict RUN photos/ --tta auto            averaged over views of each picture: a little more often right
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
from pathlib import Path

from rich.table import Table
from rich.text import Text

from keras_vit.checks import visible
from keras_vit.cli.command import Parser, add_model, refuse
from keras_vit.data.folder import printable
from keras_vit.export.classifier import open_classifier
from keras_vit.files import write_text
from keras_vit.report.predictions import predictions_page
from keras_vit.runs.prediction import BATCH_SIZE, find_images, predict_files
from keras_vit.terminal import Terminal

MOST = 50  # rows on the screen if all of them are in a file
SHOWN = 10  # classes counted in the last line
WIDE = 10_000  # columns of an output that is no terminal: paths stay whole
SUFFIXES = {"csv": (".csv",), "json": (".json",), "html": (".html", ".htm")}


def parse_options(arguments):
    parser = Parser("predict", __doc__, "MODEL PATH [PATH ...]")
    add_model(parser)
    parser.add_argument("paths", metavar="PATH", nargs="+", help="A picture, a folder with pictures or a pattern.")
    parser.add_argument(
        "--top", metavar="K", type=int, help="Classes of each picture, likeliest first. Default: 1, or --threshold."
    )
    parser.add_argument(
        "--threshold", metavar="P", type=float, help="Probability above which a class counts, with several labels. Default: 0.5."
    )
    parser.add_argument("--csv", metavar="FILE", type=Path, help="Table to write: image, class, probability, class_2, ...")
    parser.add_argument("--json", metavar="FILE", type=Path, help="The same as JSON.")
    parser.add_argument("--html", metavar="FILE", type=Path, help="Page to write, with thumbnails.")
    parser.add_argument("--batch-size", metavar="N", type=int, default=BATCH_SIZE, help=f"Default: {BATCH_SIZE}.")
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
