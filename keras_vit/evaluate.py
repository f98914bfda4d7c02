"""How good a trained run is, in numbers, and how runs differ.

Shapes: N images, K classes, M bins.
"""

import dataclasses
import json
import re
import warnings

import numpy as np
from rich.table import Table

from keras_vit.run import RunFolder, write_text

BINS = 15
SPLITS = ("test", "validation", "train")
# How a comparison shows its numbers.
FORMATS = {
    "test accuracy": "{:.2%}",
    "best validation accuracy": "{:.2%}",
    "training time (s)": "{:,.0f}",
    "images/s (median epoch)": "{:,.0f}",
    "parameters": "{:,}",
    "FLOPs per image": "{:,}",
}


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Accuracy and confidence by bins of the confidence, which is the largest softmax probability.

    Bin m of M holds the images with a confidence above (m - 1) / M and up to m / M.

    Attributes:
        edges: Limits of the bins (M + 1,), from 0 to 1.
        count: Images in each bin (M,).
        confidence: Their mean confidence (M,), NaN for an empty bin.
        accuracy: The share of them that is classified rightly (M,), NaN for an empty bin.
        error: Expected calibration error: the mean of |accuracy - confidence| over the bins, weighted by their counts.

    Source: 'On calibration of modern neural networks' (arXiv 1706.04599), equations 2, 3 and 5.
    """

    edges: np.ndarray
    count: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray
    error: float


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The quality of predictions.

    Attributes:
        accuracy: Share of images whose largest logit is the true class.
        top_k: 5, or the number of classes if that is smaller.
        top_k_accuracy: Share of images whose true class is among the `top_k` largest logits.
        loss: Mean cross-entropy in nats.
        calibration: A `Calibration` with the expected calibration error.
        confusion: Counts (K, K), row = true class, column = predicted class.
        precision, recall, f1: By class (K,); NaN where undefined (nothing predicted as it, no images of it, neither).
        class_names: K names.
    """

    accuracy: float
    top_k: int
    top_k_accuracy: float
    loss: float
    calibration: Calibration
    confusion: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    class_names: list[str]

    @property
    def count(self) -> int:
        """Images of each class (K,)."""
        return self.confusion.sum(axis=1)

    def to_dict(self) -> dict:
        """Plain Python values; what is undefined becomes None, so that it is JSON."""
        bins = self.calibration
        return {
            "images": int(self.confusion.sum()),
            "accuracy": self.accuracy,
            "top_k": self.top_k,
            "top_k_accuracy": self.top_k_accuracy,
            "loss": self.loss,
            "expected_calibration_error": bins.error,
            "calibration_bins": _rows(
                above=bins.edges[:-1],
                up_to=bins.edges[1:],
                count=bins.count,
                confidence=bins.confidence,
                accuracy=bins.accuracy,
            ),
            "classes": _rows(name=self.class_names, precision=self.precision, recall=self.recall, f1=self.f1, count=self.count),
            "confusion": self.confusion.tolist(),
        }


def _rows(**columns):
    values = {name: [None if v != v else v for v in np.asarray(column).tolist()] for name, column in columns.items()}
    return [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]


def score(logits: np.ndarray, labels: np.ndarray, class_names: list[str]) -> Evaluation:
    """Compares logits with the truth.

    Args:
        logits: (N, K). Of equal logits the first counts as the larger.
        labels: Integers (N,), from 0 to K - 1.
        class_names: K names.

    Returns:
        An `Evaluation`.

    Raises:
        ValueError: If there are no images, the shapes do not fit, or logits are NaN or infinite.
    """
    from scipy.special import log_softmax
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    logits, labels, class_names = np.asarray(logits, np.float64), np.asarray(labels), [str(name) for name in class_names]
    images, classes = len(labels), len(class_names)
    if logits.shape != (images, classes) or not images:
        raise ValueError(f"logits: received shape {logits.shape}; allowed: ({images or 'at least 1'}, {classes})")
    broken = np.count_nonzero(~np.isfinite(logits).all(axis=1))
    if broken:
        raise ValueError(f"logits: the model gives NaN or infinity for {broken:,} of {images:,} images")
    everything = np.arange(classes)
    log_probabilities = log_softmax(logits, axis=1)
    ranked = np.argsort(-logits, axis=1, kind="stable")  # (N, K), the likeliest first
    predicted, top_k = ranked[:, 0], min(5, classes)
    precision, recall, f1, _ = precision_recall_fscore_support(
        labels, predicted, labels=everything, average=None, zero_division=np.nan
    )
    return Evaluation(
        accuracy=float(np.mean(predicted == labels)),
        top_k=top_k,
        top_k_accuracy=float(np.mean((ranked[:, :top_k] == labels[:, None]).any(axis=1))),
        loss=float(-np.mean(np.take_along_axis(log_probabilities, labels[:, None], axis=1))),
        calibration=calibrate(np.exp(log_probabilities.max(axis=1)), predicted == labels),
        confusion=confusion_matrix(labels, predicted, labels=everything),
        precision=precision,
        recall=recall,
        f1=f1,
        class_names=class_names,
    )


def calibrate(confidence: np.ndarray, correct: np.ndarray, bins: int = BINS) -> Calibration:
    """Bins predictions of given confidence (N,) that are correct or not (N,) into a `Calibration` of equal-width bins."""
    confidence, correct = np.asarray(confidence, np.float64), np.asarray(correct, np.float64)
    edges = np.linspace(0, 1, bins + 1)
    index = np.digitize(confidence, edges[1:-1], right=True)  # (N,)
    count = np.bincount(index, minlength=bins)
    with np.errstate(invalid="ignore"):
        mean_confidence = np.bincount(index, confidence, bins) / count
        accuracy = np.bincount(index, correct, bins) / count
    error = np.nansum(count * np.abs(accuracy - mean_confidence)) / len(confidence)
    return Calibration(edges, count, mean_confidence, accuracy, float(error))


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
    from keras_vit.data import evaluation_batches
    from keras_vit.model import merging_model
    from keras_vit.train import load_recipe_data

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
    from keras_vit import plots

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


def compare(runs: list[RunFolder]):
    """What came out of runs, and the settings in which their recipes differ.

    Args:
        runs: `RunFolder`s.

    Returns:
        A dictionary from a row's name to its values, one for each run; None where a run has none (yet).
    """
    from keras_vit.recipe import flatten

    outcomes, settings = [], []
    for run in runs:
        recipe, metrics = run.recipe, run.metrics
        try:
            summary = run.summary
        except ValueError:  # it has not ended: what there is can be compared all the same
            summary = {}
        validated = [row["val_accuracy"] for row in metrics if "val_accuracy" in row]
        speeds = [row["images_per_second"] for row in metrics if "images_per_second" in row]
        outcomes.append(
            {
                "test accuracy": summary.get("test_accuracy"),
                "best validation accuracy": max(validated, default=None),
                "epochs done": len(metrics),
                "training time (s)": metrics[-1]["seconds"] if metrics else None,
                "images/s (median epoch)": float(np.median(speeds)) if speeds else None,
                "parameters": summary.get("parameters"),
                "FLOPs per image": summary.get("flops"),
                "data": summary.get("data", recipe.data),
                "backend": summary.get("backend"),
                "device": summary.get("device"),
            }
        )
        settings.append(flatten(recipe.to_dict(), ""))
    rows = {name: [outcome[name] for outcome in outcomes] for name in outcomes[0]}
    for name in dict.fromkeys(name for setting in settings for name in setting):
        values = [setting.get(name) for setting in settings]
        if name != "data" and any(value != values[0] for value in values):
            rows[name] = values
    return rows


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


def comparison_table(runs: list[RunFolder]) -> Table:
    """A rich table of `compare`, a column for each run."""
    from rich.markup import escape

    from keras_vit.plots import run_names

    table = Table("", *(escape(name) for name in run_names(runs)))
    for name, values in compare(runs).items():
        form = FORMATS.get(name, "{}")
        texts = ("-" if value is None else escape(form.format(value)) for value in values)
        table.add_row(name, *texts, end_section=name == "device")
    return table
