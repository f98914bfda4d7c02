"""Exports a run to SavedModel, ONNX, LiteRT, OpenVINO or torch, verified in that format's own runtime.

    python experiments/export.py RUN --format onnx
    python experiments/export.py RUN --format litert --precision int8
    python experiments/export.py RUN --format all                         # every format
    python experiments/export.py RUN --format onnx --merge-tokens 4       # fewer operations: each block merges 4 tokens
    python experiments/export.py model.keras --format onnx --mean 0.5 --std 0.25
    python experiments/export.py RUN --compare                            # size, speed and accuracy of what was exported
    python experiments/export.py RUN --compare RUN/export/onnx OTHER      # of these alone

RUN is a run folder or a .keras file. Exports lie in RUN/export/FORMAT, each with a report, export.json.
"""

import signal
import sys
from pathlib import Path

from keras_vit.cli.command import Parser

OF_AN_EXPORT = ("format", "precision", "out", "input", "batch_size", "merge_tokens", "overwrite", "mean", "std", "class_names")
OF_A_COMPARISON = ("images", "seconds")
WIDTH = 130  # of a table that shows every number whole


def parse_options(arguments):
    parser = Parser(description=__doc__)
    parser.add_argument("run", metavar="RUN", help="A run folder or a .keras file.")
    parser.add_argument("--format", help="tf_saved_model, onnx, litert, openvino, torch, keras, or all (without keras).")
    parser.add_argument(
        "--precision", help="float32, float16, bfloat16, int8, int8_static, as the format has it. Default: float32."
    )
    parser.add_argument("--out", type=Path, help="The folder. Default: RUN/export/FORMAT, with precision and merging if any.")
    parser.add_argument("--input", help="uint8 (normalised inside) or float32. Default: uint8 where mean and std are known.")
    parser.add_argument("--batch-size", type=int, help="Write for this batch size alone. Default: any.")
    parser.add_argument("--merge-tokens", type=int, help="Tokens that each block merges: faster, less accurate. Default: none.")
    parser.add_argument("--overwrite", action="store_true", help="Replace an export that is there.")
    parser.add_argument("--mean", type=float, nargs="+", help="Of pixels scaled to 0..1. Default: the run's.")
    parser.add_argument("--std", type=float, nargs="+", help="Of pixels scaled to 0..1. Default: the run's.")
    parser.add_argument("--class-names", nargs="+", help="The classes by index. Default: the run's.")
    parser.add_argument(
        "--compare", type=Path, nargs="*", metavar="FOLDER", help="Compare exports, all those in RUN/export, with the model itself."
    )
    parser.add_argument("--images", type=int, help="Test images of a comparison. Default: all.")
    parser.add_argument("--seconds", type=float, help="Of timing, for each artifact and batch size. Default: 2.")
    options = parser.parse_args(arguments)
    comparing = options.compare is not None
    unused = OF_AN_EXPORT if comparing else OF_A_COMPARISON
    for name in unused:
        if getattr(options, name) not in (None, False):
            raise ValueError(f"--{name.replace('_', '-')}: not an option of {'--compare' if comparing else 'an export'}")
    if not comparing and not options.format:
        raise ValueError("--format: none is given; allowed: tf_saved_model, onnx, litert, openvino, torch, keras, all")
    return options


def main(arguments):
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that it cleans up as after Ctrl-C
    options = parse_options(arguments)
    from rich.console import Console

    from keras_vit.export.export import export_model
    from keras_vit.export.formats import FORMATS
    from keras_vit.export.report import export_table

    console = Console(highlight=False, soft_wrap=True, width=max(Console().width, WIDTH))
    source, home = load_source(options.run)
    if options.compare is not None:
        from keras_vit.export.compare import compare_exports, comparison_table

        seconds = 2.0 if options.seconds is None else options.seconds
        rows = compare_exports(source, home, options.compare, images=options.images, seconds=seconds, report=console.print)
        console.print(comparison_table(rows))
        console.print(f"written: {home / 'compare.json'}", markup=False)
        return
    precision = options.precision or "float32"
    formats = list(FORMATS) if options.format == "all" else [options.format]
    settings = {"precision": precision, "batch_size": options.batch_size, "overwrite": options.overwrite}
    settings["merge_tokens"] = options.merge_tokens
    settings |= {"input": options.input or "auto", "mean": options.mean, "std": options.std, "class_names": options.class_names}
    reports, failed = [], []
    for name in formats:
        suffix = "" if precision == "float32" else f"-{precision}"
        suffix += "" if options.merge_tokens is None else f"-merge{options.merge_tokens}"
        path = options.out or home / f"{name}{suffix}"
        if options.out and len(formats) > 1:
            path = options.out / f"{name}{suffix}"
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


def load_source(path):
    """A `RunFolder` or the model of a .keras file, and the folder of its exports."""
    from keras_vit.runs.folder import RunFolder

    path = Path(path)
    if path.suffix != ".keras":
        run = RunFolder(path)
        return run, run.path / "export"
    from keras_vit.weights.load import load_model

    return load_model(path, "keras"), path.parent / f"{path.stem}-export"
