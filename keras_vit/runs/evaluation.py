"""How good a trained run is, in numbers, and how runs differ.

Shapes: N images, K classes, M bins.
"""

import dataclasses
import json
import re
import warnings

import numpy as np
from rich.table import Table

from keras_vit.runs.folder import RunFolder
from keras_vit.runs.scores import Evaluation, score
from keras_vit.files import write_text

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
    """Evaluates a run's best model on its own data set or another one with as many classes.

    The images of another data set are resized to the model's and normalised with the mean and standard deviation of the run's.
    Warns if the run's own data set has changed since the training: what is test now may have been train then.

    Args:
        run: A `RunFolder`.
        data: Name of a data set, as `load_data` takes it; None = the run's.
        data_dir: Where prepared data sets lie; None = where the run's recipe says.
        split: `test`, `validation` or `train`.
        batch_size: Images at a time; None = as in training.
        merge_tokens: Tokens that each block merges, as `ViTConfig.merge_tokens`; None = as in training.

    Returns:
        An `Evaluation`.

    Raises:
        ValueError: If the data set has another number of classes or another order of them, or no such split.
    """
    from keras_vit.data.dataset import evaluation_batches
    from keras_vit.model.vit import merging_model
    from keras_vit.recipes.schema import load_recipe_data

    if split not in SPLITS:
        raise ValueError(f"split: received {split!r}; allowed: {', '.join(SPLITS)}")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size: received {batch_size}; allowed: an integer of at least 1")
    recipe, model = run.recipe, run.model()
    if merge_tokens is not None:
        model = merging_model(model, merge_tokens)
    config = model.config
    if not config.num_classes:
        raise ValueError("num_classes: received 0; a model without a head has no predictions to evaluate")
    own = data is None or data == recipe.data
    recipe = dataclasses.replace(
        recipe,
        data=data or recipe.data,
        data_dir=data_dir or recipe.data_dir,
        validation=recipe.validation if own or split != "test" else None,  # a number of images that others may not have
    )
    loaded = load_recipe_data(recipe)
    if loaded.fallback:
        raise ValueError(f"data: CIFAR-10 is not at hand: {loaded.fallback}")
    if len(loaded.class_names) != config.num_classes:
        raise ValueError(
            f"data: {loaded.name} has {len(loaded.class_names)} classes; "
            f"allowed: a data set of {config.num_classes}, as many as the run's model tells apart"
        )
    if run.is_finished:
        summary = run.summary
        if own and summary["fingerprint"] != loaded.fingerprint:
            warnings.warn(
                f"{loaded.name} is not what {str(run.path)!r} was trained on (files or their decoder have changed): "
                f"{split} images may have been training images",
                stacklevel=2,
            )
        names = summary["class_names"]
        if names != loaded.class_names and sorted(names) == sorted(loaded.class_names):
            raise ValueError(f"data: {loaded.name} has the run's classes in another order: {', '.join(loaded.class_names[:5])}...")
    images = getattr(loaded, split)
    if images is None or not len(images):
        raise ValueError(f"split: {loaded.name} has no {split} images with this recipe")
    batches = evaluation_batches(
        images,
        num_classes=config.num_classes,
        batch_size=batch_size or recipe.train.batch_size,
        mean=recipe.mean,
        std=recipe.std,
    )
    return score(model.predict(batches, verbose=0), images.labels, loaded.class_names)


def write_evaluation(evaluation: Evaluation, run: RunFolder, *, data: str | None = None, split: str = "test"):
    """Writes an evaluation into its run: numbers as JSON, the confusion matrix and the reliability diagram as pictures.

    Those of another data set have its name in theirs and leave those of the run's own alone.

    Args:
        evaluation: An `Evaluation`.
        run: The `RunFolder` it belongs to.
        data: As for `evaluate`.
        split: As for `evaluate`.

    Returns:
        The paths of the three files.
    """
    from keras_vit.runs import plots

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
    """A rich table of precision, recall, F1 and images of the classes; the `most` with the lowest F1 if there are more."""
    from rich.markup import escape

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


