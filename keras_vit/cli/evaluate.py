"""Evaluates a run, compares runs, or shows what positions a run has learned.

  keras-vit evaluate RUN                          accuracy, top-5, loss, calibration, every class
  keras-vit evaluate RUN --split validation
  keras-vit evaluate RUN --data folder:PATH       another data set with classes of these names
  keras-vit evaluate RUN_A RUN_B --out both.png   curves and a table
  keras-vit evaluate RUN --positions              figure 7 of the ViT paper

Numbers and pictures of one run are written into its folder.
"""

from pathlib import Path

from keras_vit.checks import check_choice, check_unused
from keras_vit.cli.command import Parser
from keras_vit.explain.positions import position_similarity
from keras_vit.runs.comparison import comparison_table, run_names
from keras_vit.runs.evaluation import evaluate, evaluation_lines, evaluation_table, write_evaluation
from keras_vit.runs.folder import RunFolder
from keras_vit.runs.plots import curves, position_maps
from keras_vit.terminal import Terminal

OF_AN_EVALUATION = ("data", "data_dir", "split", "batch_size", "merge_tokens")


def parse_options(arguments):
    parser = Parser("evaluate", __doc__, "RUN [RUN ...]")
    parser.add_argument("runs", metavar="RUN", nargs="+", help="A run folder; two or more are compared.")
    parser.add_argument("--data", help="A data set with the run's classes, instead of its own; named as in training.")
    parser.add_argument("--data-dir", metavar="PATH", help="Folder of TensorFlow data sets. Default: as in training.")
    parser.add_argument("--split", metavar="NAME", help="test, validation or train. Default: test.")
    parser.add_argument("--batch-size", metavar="N", type=int, help="Images at a time. Default: as in training.")
    parser.add_argument("--merge-tokens", metavar="N", type=int, help="Tokens that each block merges. Default: as trained.")
    parser.add_argument("--positions", action="store_true", help="Draw the similarity of the position embeddings.")
    parser.add_argument("--out", metavar="FILE", type=Path, help="Picture of a comparison. Default: comparison.png.")
    options = parser.parse_args(arguments)
    check_choice("--split", options.split or "test", ("test", "validation", "train"))
    if len(options.runs) > 1:
        check_unused(options, (*OF_AN_EVALUATION, "positions"), "with several runs")
    else:
        check_unused(options, ("out",), "with one run")
    if options.positions:
        check_unused(options, OF_AN_EVALUATION, "with --positions")
    return options


def main(arguments):
    options = parse_options(arguments)
    console = Terminal(highlight=False)
    runs = [RunFolder(path) for path in options.runs]
    if len(runs) > 1:
        written = [options.out or Path("comparison.png")]
        console.print(comparison_table(runs))
        curves(dict(zip(run_names(runs), (run.metrics for run in runs), strict=True)), written[0])
    elif options.positions:
        written = draw_positions(runs[0])
    else:
        written = evaluate_run(console, runs[0], options)
    for path in written:
        console.print(f"written: {path}", soft_wrap=True, markup=False)


def evaluate_run(console, run, options):
    split = options.split or "test"
    settings = {"data": options.data, "data_dir": options.data_dir, "batch_size": options.batch_size}
    result = evaluate(run, split=split, merge_tokens=options.merge_tokens, **settings)
    # The result with merged tokens is not the run's own.
    merging = options.merge_tokens is not None
    written = [] if merging else write_evaluation(result, run, data=options.data, split=split)
    console.print(evaluation_table(result))
    console.print(f"{options.data or run.recipe.data}, {split}, {result.images:,} images", markup=False)
    for line in evaluation_lines(result):
        console.print(line)
    return written


def draw_positions(run):
    model, path = run.model(), run.plots / "positions.png"
    title = f"Similarity of {model.config.position} position embeddings, {run.path.resolve().name}"
    position_maps(position_similarity(model), path, title=title)
    return [path]
