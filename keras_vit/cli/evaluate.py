"""Evaluates a run, or compares runs.

  keras-vit evaluate RUN                          accuracy, top-5, loss, calibration, every class
  keras-vit evaluate RUN --split validation
  keras-vit evaluate RUN --tta auto               also with test-time augmentation, reported apart
  keras-vit evaluate RUN --data folder:PATH       another data set with classes of these names
  keras-vit evaluate RUN_A RUN_B --out both.png   curves, a table, and both.html: the runs side by side

Numbers and pictures of one run are written into its folder, for its own test images also report.html.
"""

from pathlib import Path

from keras_vit.checks import check_choice, check_unused
from keras_vit.cli.command import Parser
from keras_vit.report.comparison import write_comparison_report
from keras_vit.report.run import write_run_report
from keras_vit.runs.comparison import comparison_table, run_names
from keras_vit.runs.evaluation import compute_outputs, evaluation_lines, evaluation_table, write_evaluation
from keras_vit.runs.folder import REPORT, RunFolder
from keras_vit.runs.plots import curves
from keras_vit.terminal import Terminal

OF_AN_EVALUATION = ("data", "data_dir", "split", "batch_size", "merge_tokens", "tta")


def parse_options(arguments):
    parser = Parser("evaluate", __doc__, "RUN [RUN ...]")
    parser.add_argument("runs", metavar="RUN", nargs="+", help="A run folder; two or more are compared.")
    parser.add_argument("--data", help="A data set with the run's classes, instead of its own; named as in training.")
    parser.add_argument("--data-dir", metavar="PATH", help="Folder of TensorFlow data sets. Default: as in training.")
    parser.add_argument("--split", metavar="NAME", help="test, validation or train. Default: test.")
    parser.add_argument("--batch-size", metavar="N", type=int, help="Images at a time. Default: as in training.")
    parser.add_argument("--merge-tokens", metavar="N", type=int, help="Tokens that each block merges. Default: as trained.")
    parser.add_argument("--tta", metavar="VIEWS", help="Also with flip, shift, flip,shift, or auto: as trained; reported apart.")
    parser.add_argument(
        "--out", metavar="FILE", type=Path, help="Picture of a comparison; its page lies beside it. Default: comparison.png."
    )
    options = parser.parse_args(arguments)
    check_choice("--split", options.split or "test", ("test", "validation", "train"))
    if len(options.runs) > 1:
        check_unused(options, OF_AN_EVALUATION, "with several runs")
    else:
        check_unused(options, ("out",), "with one run")
    return options


def main(arguments):
    options = parse_options(arguments)
    console = Terminal(highlight=False)
    runs = [RunFolder(path) for path in options.runs]
    if len(runs) > 1:
        written = comparison_files(options.out or Path("comparison.png"))
        console.print(comparison_table(runs))
        curves(dict(zip(run_names(runs), (run.metrics for run in runs), strict=True)), written[0])
        write_comparison_report(runs, written[1])
    else:
        written = evaluate_run(console, runs[0], options)
    for path in written:
        console.print(f"written: {path}", soft_wrap=True, markup=False)


def comparison_files(out):
    """The picture and the page of a comparison, side by side; `out` names either of them."""
    return [out.with_name(f"{out.stem}.png") if out.suffix == ".html" else out, out.parent / f"{out.stem}.html"]


def evaluate_run(console, run, options):
    run.check_classes()
    split = options.split or "test"
    settings = {"data": options.data, "data_dir": options.data_dir, "batch_size": options.batch_size}
    # Of the run's own test images, with its own model: what its report shows.
    own = split == "test" and options.data in (None, run.recipe.data) and options.merge_tokens is None
    try:
        outputs = compute_outputs(run, split=split, merge_tokens=options.merge_tokens, tta=options.tta, **settings)
    except (ValueError, OSError):
        stated = (options.batch_size, options.data_dir, options.tta)  # with them the mistake may be in the options
        kept = run.is_finished and (run.path / REPORT).is_file()  # a page that may know more
        if own and stated == (None, None, None) and not kept:
            console.print(f"written: {write_run_report(run)}, without results on the test images", soft_wrap=True, markup=False)
        raise
    result = outputs.score()
    # The result with merged tokens is not the run's own.
    merging = options.merge_tokens is not None
    written = [] if merging else write_evaluation(result, run, data=options.data, split=split)
    if own:
        written.append(write_run_report(run, outputs))
    console.print(evaluation_table(result))
    console.print(f"{options.data or run.recipe.data}, {split}, {result.images:,} images", markup=False)
    for line in evaluation_lines(result):
        console.print(line, soft_wrap=True)
    return written
