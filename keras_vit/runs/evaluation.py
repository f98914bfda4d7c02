"""Evaluates a run on a data set, and writes the numbers and pictures into its folder."""

import dataclasses
import json
import re
import warnings
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from keras_vit.checks import check_choice, check_int
from keras_vit.data.batches import evaluation_batches
from keras_vit.files import write_text
from keras_vit.model.vit import merging_model
from keras_vit.runs import plots
from keras_vit.runs.folder import RunFolder
from keras_vit.runs.scores import Evaluation, score

SPLITS = ("test", "validation", "train")


def evaluate(
    run: RunFolder,
    *,
    data: str | None = None,
    data_dir: str | None = None,
    split: str = "test",
    batch_size: int | None = None,
    merge_tokens: int | None = None,
) -> Evaluation:
    """Evaluates a run's best model on the run's data set, or on another one with as many classes.

    Images of another data set are resized to the model's size and normalised with the run's mean and standard deviation.
    Warns if the run's own data set has changed since the training: its test images may then include training images.

    Args:
        run: A `RunFolder`.
        data: Name of a data set, as `load_data` takes it; None = the run's.
        data_dir: Folder of prepared data sets; None = the one in the run's recipe.
        split: `test`, `validation` or `train`.
        batch_size: Images in a batch; None = as in training.
        merge_tokens: Tokens that each block merges, as `ViTConfig.merge_tokens`; None = as in training.

    Returns:
        An `Evaluation`.

    Raises:
        ValueError: If the data set has another number of classes, the same classes in another order, or no such split.
    """
    check_choice("split", split, SPLITS)
    if batch_size is not None:
        check_int("batch_size", batch_size, at_least=1)
    recipe, model = run.recipe, run.model()
    if merge_tokens is not None:
        model = merging_model(model, merge_tokens)
    config = model.config
    if not config.num_classes:
        raise ValueError("num_classes: received 0, a model without a head; allowed: a classifier")
    own = data is None or data == recipe.data
    recipe = dataclasses.replace(
        recipe,
        data=data or recipe.data,
        data_dir=data_dir or recipe.data_dir,
        validation=recipe.validation if own or split != "test" else None,  # a number of images that others may not have
    )
    loaded = recipe.load_data()
    if loaded.fallback:
        raise ValueError(f"data: received {recipe.data!r}; allowed: data at hand, which CIFAR-10 is not ({loaded.fallback})")
    if len(loaded.class_names) != config.num_classes:
        raise ValueError(
            f"data: received {loaded.name}, with {len(loaded.class_names)} classes; "
            f"allowed: a data set of {config.num_classes} classes, as the run's model has"
        )
    if run.is_finished:
        summary = run.summary
        if own and summary["fingerprint"] != loaded.fingerprint:
            warnings.warn(
                f"{loaded.name} has changed since {str(run.path)!r} was trained (its files, or their decoder): "
                f"the {split} images may include training images",
                stacklevel=2,
            )
        names = summary["class_names"]
        if names != loaded.class_names and sorted(names) == sorted(loaded.class_names):
            first = ", ".join(loaded.class_names[:5])
            raise ValueError(f"data: received {loaded.name}, with classes {first}...; allowed: the order of the run's")
    images = getattr(loaded, split)
    if images is None or not len(images):
        raise ValueError(f"split: received {split!r}; allowed: a split with images, which {loaded.name} has not in this recipe")
    batches = evaluation_batches(
        images,
        num_classes=config.num_classes,
        batch_size=batch_size or recipe.train.batch_size,
        mean=recipe.mean,
        std=recipe.std,
    )
    return score(model.predict(batches, verbose=0), images.labels, loaded.class_names)


def write_evaluation(evaluation: Evaluation, run: RunFolder, *, data: str | None = None, split: str = "test") -> list[Path]:
    """Writes an evaluation into its run: numbers as JSON, the confusion matrix and the reliability diagram as pictures.

    File names include the split, and the data set if it is not the run's own.

    Args:
        evaluation: An `Evaluation`.
        run: Its `RunFolder`.
        data: As for `evaluate`.
        split: As for `evaluate`.

    Returns:
        The paths of the three files.
    """
    own = data is None or data == run.recipe.data
    name = split if own else re.sub(r"[^\w.]+", "-", f"{data}-{split}").strip("-.")
    paths = [
        run.path / f"evaluation-{name}.json",
        run.plots / f"confusion-{name}.png",
        run.plots / f"reliability-{name}.png",
    ]
    data = data or run.recipe.data
    title = f"{plots.shorten(data, 30)}, {split}: {100 * evaluation.accuracy:.2f}% of {evaluation.count.sum():,} images right"
    content = {"data": data, "split": split, **evaluation.to_dict()}
    write_text(paths[0], json.dumps(content, ensure_ascii=False, allow_nan=False) + "\n")
    plots.confusion(evaluation.confusion, evaluation.class_names, paths[1], title=title)
    plots.reliability(evaluation.calibration, paths[2], title=title)
    return paths


def evaluation_table(evaluation: Evaluation, most: int = 40) -> Table:
    """A rich table of each class's precision, recall, F1 and images; of more than `most` classes those with the lowest F1."""
    table = Table("class")
    for name in ("precision (%)", "recall (%)", "F1 (%)", "images"):
        table.add_column(name, justify="right")
    rows = evaluation.to_dict()["classes"]
    if len(rows) > most:
        table.caption = f"the {most} of {len(rows)} classes with the lowest F1"
        rows = sorted((row for row in rows if row["f1"] is not None), key=lambda row: row["f1"])[:most]
    for row in rows:
        shares = ("-" if row[name] is None else f"{100 * row[name]:.1f}" for name in ("precision", "recall", "f1"))
        table.add_row(escape(row["name"]), *shares, f"{row['count']:,}")
    return table
