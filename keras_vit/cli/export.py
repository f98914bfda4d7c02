"""Exports a run to SavedModel, ONNX, LiteRT, OpenVINO or torch, verified in that format's own runtime.

  keras-vit export RUN --format onnx
  keras-vit export RUN --format litert --precision int8
  keras-vit export RUN --format all                         every format
  keras-vit export RUN --format onnx --merge-tokens 4       fewer operations: each block merges 4 tokens
  keras-vit export model.keras --format onnx --mean 0.5 --std 0.25
  keras-vit export RUN --compare                            size, speed and accuracy of every export
  keras-vit export RUN --compare RUN/export/onnx OTHER      only these

RUN is a run folder or a .keras file. Exports lie in RUN/export/FORMAT, each with a report, export.json.
"""

import signal
import sys
from pathlib import Path

from keras_vit.checks import check_unused
from keras_vit.cli.command import Parser
from keras_vit.export.compare import compare_exports, comparison_table
from keras_vit.export.export import export_model
from keras_vit.export.formats import EVERY, FORMATS, INPUTS, PRECISIONS
from keras_vit.export.report import export_table
from keras_vit.runs.folder import RunFolder
from keras_vit.terminal import Terminal
from keras_vit.weights.load import load_model

OF_AN_EXPORT = ("format", "precision", "out", "input", "batch_size", "merge_tokens", "overwrite", "mean", "std", "class_names")
OF_A_COMPARISON = ("images", "seconds")
WIDTH = 130  # of a table that shows every number whole


def parse_options(arguments):
    parser = Parser("export", __doc__, "RUN")
    parser.add_argument("run", metavar="RUN", help="A run folder or a .keras file.")
    parser.add_argument("--format", metavar="NAME", help=f"{', '.join(EVERY)}; all: every format but keras.")
    parser.add_argument("--precision", metavar="NAME", help=f"{', '.join(PRECISIONS)}, if the format has it. Default: float32.")
    parser.add_argument("--out", metavar="FOLDER", type=Path, help="Default: RUN/export/FORMAT, with precision and merging if any.")
    parser.add_argument("--input", metavar="NAME", help=f"{', '.join(INPUTS)}. auto: uint8 where mean and std are known.")
    parser.add_argument("--batch-size", metavar="N", type=int, help="Write for this batch size alone. Default: any.")
    parser.add_argument("--merge-tokens", metavar="N", type=int, help="Tokens that each block merges. Default: as trained.")
    parser.add_argument("--overwrite", action="store_true", help="Replace an earlier export.")
    parser.add_argument("--mean", metavar="X", type=float, nargs="+", help="Mean of pixels scaled to 0..1. Default: the run's.")
    parser.add_argument("--std", metavar="X", type=float, nargs="+", help="Deviation of pixels scaled to 0..1. Default: the run's.")
    parser.add_argument("--class-names", metavar="NAME", nargs="+", help="The classes by index. Default: the run's.")
    parser.add_argument("--compare", metavar="FOLDER", type=Path, nargs="*", help="Compare exports with the model.")
    parser.add_argument("--images", metavar="N", type=int, help="Test images of a comparison. Default: all.")
    parser.add_argument("--seconds", metavar="X", type=float, help="Time for each export and batch size. Default: 2.")
    options = parser.parse_args(arguments)
    if options.compare is not None:
        check_unused(options, OF_AN_EXPORT, "with --compare")
    else:
        check_unused(options, OF_A_COMPARISON, "without --compare")
        if not options.format:
            raise ValueError(f"--format: received none; allowed: {', '.join(EVERY)}, all")
    return options


def main(arguments):
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # cleans up as after Ctrl-C
    options = parse_options(arguments)
    console = Terminal(highlight=False, soft_wrap=True, width=max(Terminal().width, WIDTH))
    source, home = load_source(options.run)
    if options.compare is not None:
        seconds = 2.0 if options.seconds is None else options.seconds
        rows = compare_exports(source, home, options.compare, images=options.images, seconds=seconds, report=console.print)
        console.print(comparison_table(rows))
        console.print(f"written: {home / 'compare.json'}", markup=False)
    else:
        export(source, home, options, console)


def load_source(path):
    """A `RunFolder` or the model of a .keras file, and the folder of its exports."""
    path = Path(path)
    if path.suffix != ".keras":
        run = RunFolder(path)
        return run, run.path / "export"
    return load_model(path, "keras"), path.parent / f"{path.stem}-export"


def export(source, home, options, console):
    precision = options.precision or "float32"
    formats = list(FORMATS) if options.format == "all" else [options.format]
    settings = {"precision": precision, "batch_size": options.batch_size, "overwrite": options.overwrite}
    settings |= {"merge_tokens": options.merge_tokens, "input": options.input or "auto"}
    settings |= {"mean": options.mean, "std": options.std, "class_names": options.class_names}
    reports, failed = [], []
    for name in formats:
        folder = name + ("" if precision == "float32" else f"-{precision}")
        folder += "" if options.merge_tokens is None else f"-merge{options.merge_tokens}"
        path = options.out if options.out and len(formats) == 1 else (options.out or home) / folder
        console.print(f"{name} ...", markup=False)
        try:
            reports.append(export_model(source, path, name, **settings))
        except ValueError as error:
            if len(formats) == 1:
                raise
            failed.append(str(error))
            continue
        console.print(f"written: {path}", markup=False)
    if reports:
        console.print(export_table(reports))
    if failed:
        raise ValueError("; ".join(failed))
