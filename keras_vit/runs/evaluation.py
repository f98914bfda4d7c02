"""Evaluates a run on a data set, and writes the numbers and pictures into its folder."""

import dataclasses
import json
import re
import warnings
from pathlib import Path

import numpy as np
from rich.markup import escape
from rich.table import Table

from keras_vit.checks import check_choice, check_int, visible
from keras_vit.data.batches import evaluation_batches
from keras_vit.data.dataset import DataSet, Split
from keras_vit.data.labels import is_multi
from keras_vit.data.stream import own_errors
from keras_vit.files import write_text
from keras_vit.model.vit import ViT, merging_model
from keras_vit.runs import plots
from keras_vit.runs.calibration import BINS
from keras_vit.runs.class_plots import average_precision_bars
from keras_vit.runs.folder import RunFolder
from keras_vit.runs.multilabel import MultiLabelEvaluation, score_labels
from keras_vit.runs.scores import Evaluation, score
from keras_vit.runs.views import choose_views, described

SPLITS = ("test", "validation", "train")


@dataclasses.dataclass(frozen=True)
class Outputs:
    """What a model says of the images of a split: one pass over them, of which all numbers and pictures are made.

    Shapes: N images, K classes.

    Attributes:
        model: The `ViT`.
        images: The `Split` of the N images.
        labels: The true classes as the model counts them: integers (N,), or zeros and ones (N, K).
        logits: float32 (N, K).
        class_names: K names.
        data: Name of the data set.
        fingerprint: Of the data set, as `DataSet.fingerprint`.
        temperature: What the logits are divided by before they become probabilities.
        views: The views of test-time augmentation in words; empty = none.
        mean_logits: float32 (N, K), averaged over these views; None = none.
    """

    model: ViT
    images: Split
    labels: np.ndarray
    logits: np.ndarray
    class_names: list[str]
    data: str
    fingerprint: str
    temperature: float = 1.0
    views: str = ""
    mean_logits: np.ndarray | None = None

    def score(self) -> Evaluation | MultiLabelEvaluation:
        """The quality of the predictions; with test-time augmentation apart, as its `augmented`."""
        scored, rest = score_labels if is_multi(self.labels) else score, (self.labels, self.class_names, self.temperature)
        plain = scored(self.logits, *rest)
        if self.mean_logits is None:
            return plain
        return dataclasses.replace(plain, views=self.views, augmented=scored(self.mean_logits, *rest))


def evaluate(run: RunFolder, **settings) -> Evaluation | MultiLabelEvaluation:
    """Evaluates a run's best model: the scores of `compute_outputs`, which takes the same arguments.

    Returns:
        An `Evaluation`, or a `MultiLabelEvaluation` where an image may have several classes.
    """
    return compute_outputs(run, **settings).score()


@own_errors()
def compute_outputs(
    run: RunFolder,
    *,
    data: str | None = None,
    data_dir: str | None = None,
    split: str = "test",
    batch_size: int | None = None,
    merge_tokens: int | None = None,
    tta: str | None = None,
) -> Outputs:
    """What a run's best model says of the run's data set, or of another one with classes of the same names.

    Images of another data set are resized to the model's size and normalised with the run's mean and standard deviation.
    Warns if the run's own data set has changed since the training: its test images may then include training images.

    Args:
        run: A `RunFolder`.
        data: Name of a data set, as `load_data` takes it; None = the run's.
        data_dir: Folder of prepared data sets; None = the one in the run's recipe.
        split: `test`, `validation` or `train`.
        batch_size: Images in a batch; None = as in training.
        merge_tokens: Tokens that each block merges, as `ViTConfig.merge_tokens`; None = as in training.
        tta: Test-time augmentation, whose results stand apart: logits are averaged over mirrored images (`flip`), images shifted by
            a 32nd of their sides along the diagonal (`shift`) or both (`flip,shift`); `auto`: of the two those that the run was
            trained with. Warns of mirror images that the training did not know. None = none.

    Returns:
        The `Outputs`.

    Raises:
        ValueError: If the data set has a class that the run has not, or no such split.
    """
    check_choice("split", split, SPLITS)
    if batch_size is not None:
        check_int("batch_size", batch_size, at_least=1)
    run.check_classes()
    recipe, model = run.recipe, run.model()
    views, note = choose_views(tta, recipe.augment)
    if note:
        warnings.warn(note, stacklevel=2)
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
    if run.is_finished:
        summary = run.summary
        if own and summary["fingerprint"] != loaded.fingerprint:
            warnings.warn(
                f"{loaded.name} has changed since {str(run.path)!r} was trained (its files, or their decoder): "
                f"the {split} images may include training images",
                stacklevel=2,
            )
    names = run.summary["class_names"] if run.is_finished else None
    classes = match_classes(loaded, names, config.num_classes)
    images = getattr(loaded, split)
    if images is None or not len(images):
        raise ValueError(f"split: received {split!r}; allowed: a split with images, which {loaded.name} has not in this recipe")
    batches = evaluation_batches(
        images,
        num_classes=len(loaded.class_names),
        batch_size=batch_size or recipe.train.batch_size,
        mean=recipe.mean,
        std=recipe.std,
        views=views[1:] and views,
    )
    logits, names = model.predict(batches, verbose=0).reshape(len(images), len(views), -1), names or loaded.class_names
    if is_multi(images.labels):
        labels = np.zeros((len(images), config.num_classes), np.int8)
        labels[:, classes] = images.labels
    else:
        labels = classes[images.labels]
    shown = names, loaded.name, loaded.fingerprint, run.temperature
    more = {"views": described(views), "mean_logits": logits.mean(axis=1)} if tta else {}
    return Outputs(model, images, labels, logits[:, 0], *shown, **more)


def own_test_images(run: RunFolder) -> tuple[Split | None, str]:
    """The test images of a run's own data; None, with the reason, where the data is gone or has none."""
    try:
        data = run.recipe.load_data()
    except (ValueError, OSError) as error:
        return None, visible(str(error))
    if data.fallback or data.test is None or not len(data.test):
        return None, visible(data.fallback) or "the data has no test images"
    return data.test, ""


def match_classes(data: DataSet, names: list[str] | None, num_classes: int) -> np.ndarray:
    """The run's label for each label of a data set, matched by the classes' names; warns of classes that the data lacks.

    Classes whose names are all numbers, as those of arrays, are the run's labels themselves if the run's classes have other names.

    Args:
        data: The `DataSet`.
        names: The run's class names; None = not known, as the run has not ended.
        num_classes: K, of the run's model.

    Raises:
        ValueError: If the data set has a class that the run has not.
    """
    ours, received = data.class_names, f"data: received {data.name}, with"
    if names is None:
        if len(ours) != num_classes:
            raise ValueError(f"{received} {len(ours)} classes; allowed: {num_classes} classes, as the run's model has")
        return np.arange(num_classes)
    position = {name: label for label, name in enumerate(names)}
    if all(name.isdecimal() for name in ours) and not any(name.isdecimal() for name in names):
        position = {str(label): label for label in range(num_classes)}
    unknown, missing = [name for name in ours if name not in position], [name for name in position if name not in ours]
    if unknown:
        raise ValueError(f"{received} {plural(unknown)}; allowed, as in training: {shown(position)}")
    if missing:
        warnings.warn(f"{data.name} has no {plural(missing)}, which the run has", stacklevel=3)
    return np.array([position[name] for name in ours])


def plural(names):
    return f"class{'es' * (len(names) > 1)} {shown(names)}"


def shown(names):
    return ", ".join([*names][:10]) + ", ..." * (len(names) > 10)


def write_evaluation(
    evaluation: Evaluation | MultiLabelEvaluation, run: RunFolder, *, data: str | None = None, split: str = "test"
) -> list[Path]:
    """Writes an evaluation into its run: numbers as JSON, and pictures.

    These are the confusion matrix and the reliability diagram; where an image may have several classes, the average precision of
    each class.

    File names include the split, and the data set if it is not the run's own.

    Args:
        evaluation: As of `evaluate`.
        run: Its `RunFolder`.
        data: As for `evaluate`.
        split: As for `evaluate`.

    Returns:
        The paths of the files.
    """
    own = data is None or data == run.recipe.data
    name = split if own else re.sub(r"[^\w.]+", "-", f"{data}-{split}").strip("-.")
    data = data or run.recipe.data
    content, title = {"data": data, "split": split, **evaluation.to_dict()}, f"{plots.shorten(data, 30)}, {split}"
    paths = [run.path / f"evaluation-{name}.json"]
    write_text(paths[0], json.dumps(content, ensure_ascii=False, allow_nan=False) + "\n")
    if evaluation.multi_label:
        paths.append(run.plots / f"precision-{name}.png")
        values, names = evaluation.average_precision, evaluation.class_names
        average_precision_bars(values, names, paths[1], title=f"{title}: average precision, {evaluation.images:,} images")
        return paths
    paths += [run.plots / f"confusion-{name}.png", run.plots / f"reliability-{name}.png"]
    title = f"{title}: {100 * evaluation.accuracy:.2f}% of {evaluation.images:,} images right"
    plots.confusion(evaluation.confusion, evaluation.class_names, paths[1], title=title)
    plots.reliability(evaluation.calibration, paths[2], title=title)
    return paths


def evaluation_lines(evaluation: Evaluation | MultiLabelEvaluation) -> list[str]:
    """The numbers of an evaluation in lines, without those of single classes; those with test-time augmentation come last."""
    if evaluation.augmented:
        title = f"with test-time augmentation (mean of the logits; {evaluation.views}):"
        plain = dataclasses.replace(evaluation, augmented=None)
        return [*evaluation_lines(plain), title, *(f"  {line}" for line in evaluation_lines(evaluation.augmented))]
    if evaluation.multi_label:
        return [
            f"mean average precision (mAP) {share(evaluation.map)}",
            f"mean F1, at probability 0.5  {share(evaluation.mean_f1)}",
            f"exactly the right classes    {share(evaluation.exact)}",
            f"binary cross-entropy         {evaluation.loss:8.4f} nats",
            f"expected calibration error   {share(evaluation.calibration.error)} (of each class of each image, {BINS} bins)",
            *temperature_lines(evaluation),
        ]
    return [
        f"accuracy                    {share(evaluation.accuracy)}",
        f"balanced accuracy           {share(evaluation.balanced_accuracy)} (mean of the classes' recalls)",
        f"top-{evaluation.top_k} accuracy              {share(evaluation.top_k_accuracy)}",
        f"cross-entropy               {evaluation.loss:8.4f} nats",
        f"expected calibration error  {share(evaluation.calibration.error)} (mean |accuracy - confidence|, {BINS} bins)",
        *temperature_lines(evaluation),
    ]


def temperature_lines(evaluation):
    """A line that says with which temperature the probabilities are calibrated; none where they are the model's own."""
    if evaluation.temperature == 1:
        return []
    without = f"of the validation images; without it an error of {evaluation.error_before:.2%}"
    return [f"probabilities calibrated by temperature {evaluation.temperature:.3g} ({without})"]


def share(value):
    return f"{'-':>8}" if value is None else f"{value:8.2%}"


def evaluation_table(evaluation: Evaluation | MultiLabelEvaluation, most: int = 40) -> Table:
    """A rich table of each class's precision, recall, F1 and images; beyond `most` classes only the ones with the lowest F1."""
    table, columns = Table("class"), {"precision": "precision (%)", "recall": "recall (%)", "f1": "F1 (%)"}
    if evaluation.multi_label:
        columns = {"average_precision": "average precision (%)", **columns}
    for name in (*columns.values(), "images"):
        table.add_column(name, justify="right")
    rows = evaluation.to_dict()["classes"]
    if len(rows) > most:
        table.caption = f"the {most} of {len(rows)} classes with the lowest F1"
        rows = sorted((row for row in rows if row["f1"] is not None), key=lambda row: row["f1"])[:most]
    for row in rows:
        shares = ("-" if row[name] is None else f"{100 * row[name]:.1f}" for name in columns)
        table.add_row(escape(visible(row["name"])), *shares, f"{row['count']:,}")
    return table
