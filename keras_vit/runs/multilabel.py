"""How good predictions of several classes an image are: average precision and F1 of each class.

A class is predicted where its sigmoid probability exceeds one half, that is where its logit is positive.

Shapes: N images, K classes.
"""

import dataclasses
import typing

import numpy as np

from keras_vit.runs.calibration import Calibration, calibration_of


@dataclasses.dataclass(frozen=True)
class MultiLabelEvaluation:
    """The quality of predictions where an image may have any number of classes.

    Attributes:
        images: N.
        loss: Mean binary cross-entropy of images and classes, in nats, at the temperature.
        exact: Share of images with exactly their classes predicted.
        average_precision: By class (K,); NaN if the class has no images.
        precision: By class (K,); NaN if the class was never predicted.
        recall: By class (K,); NaN if the class has no images.
        f1: By class (K,); NaN if the class was never predicted and has no images.
        count: Images of each class (K,).
        class_names: K names.
        calibration: A `Calibration` of the N x K decisions, at the temperature.
        temperature: What the logits are divided by, as of `fit_temperature`.
        error_before: The expected calibration error at temperature 1.
        views: The views of test-time augmentation in words; empty = none.
        augmented: The same with test-time augmentation; None = none.
    """

    images: int
    loss: float
    exact: float
    average_precision: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    count: np.ndarray
    class_names: list[str]
    calibration: Calibration
    temperature: float
    error_before: float
    views: str = ""
    augmented: typing.Self | None = None

    multi_label = True

    @property
    def map(self) -> float | None:
        """Mean average precision over the classes that have images."""
        return mean(self.average_precision)

    @property
    def mean_f1(self) -> float | None:
        """Mean F1 over the classes that have images or are predicted."""
        return mean(self.f1)

    def to_dict(self) -> dict:
        """Plain Python values for JSON: NaN becomes None."""
        names = ("average_precision", "precision", "recall", "f1", "count")
        return {
            "images": self.images,
            "map": self.map,
            "f1": self.mean_f1,
            "exact": self.exact,
            "loss": self.loss,
            "expected_calibration_error": self.calibration.error,
            "temperature": self.temperature,
            "expected_calibration_error_before": self.error_before,
            **with_augmentation(self),
            "classes": rows_of(name=self.class_names, **{name: getattr(self, name) for name in names}),
        }


def score_labels(logits: np.ndarray, labels: np.ndarray, class_names: list[str], temperature: float = 1.0) -> MultiLabelEvaluation:
    """Scores logits against any number of true classes.

    Args:
        logits: (N, K).
        labels: Zeros and ones (N, K).
        class_names: K names.
        temperature: What the logits are divided by, for probabilities.

    Raises:
        ValueError: If there are no images, the shapes do not fit, or logits are NaN or infinite.
    """
    from scipy.special import log_expit

    logits, labels, class_names = np.asarray(logits, np.float64), np.asarray(labels) == 1, [str(name) for name in class_names]
    check_logits(logits, len(labels), len(class_names))
    predicted = logits > 0
    precision, recall, f1 = precision_recall_f1(predicted, labels)
    scaled = logits / temperature
    return MultiLabelEvaluation(
        images=len(labels),
        loss=float(-np.where(labels, log_expit(scaled), log_expit(-scaled)).mean()),
        exact=float((predicted == labels).all(axis=1).mean()),
        average_precision=average_precisions(logits, labels),
        precision=precision,
        recall=recall,
        f1=f1,
        count=labels.sum(axis=0),
        class_names=class_names,
        calibration=calibration_of(logits, labels, temperature),
        temperature=temperature,
        error_before=calibration_of(logits, labels).error,
    )


def with_augmentation(evaluation) -> dict:
    """The numbers of an evaluation with test-time augmentation, for `to_dict`: of all images; none where there are none."""
    if evaluation.augmented is None:
        return {}
    numbers = {name: value for name, value in evaluation.augmented.to_dict().items() if not isinstance(value, list)}
    return {"test_time_augmentation": {"views": evaluation.views, **numbers}}


def check_logits(logits: np.ndarray, images: int, classes: int) -> None:
    """Raises a ValueError unless logits are finite and of shape (images, classes)."""
    if logits.shape != (images, classes) or not images:
        raise ValueError(f"logits: received shape {logits.shape}; allowed: ({images or 'at least 1'}, {classes})")
    broken = np.count_nonzero(~np.isfinite(logits).all(axis=1))
    if broken:
        raise ValueError(f"logits: received NaN or infinity for {broken:,} of {images:,} images; allowed: finite numbers")


def average_precisions(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Average precision of each class (K,): the mean of the precision at each image that has the class, in order of the scores.

    Images of equal scores count together, as in scikit-learn's `average_precision_score`.

    Args:
        scores: (N, K), the larger the surer.
        labels: Zeros and ones (N, K).

    Returns:
        (K,), NaN for a class without images.
    """
    return np.array([average_precision(*columns) for columns in zip(scores.T, labels.T, strict=True)])


def average_precision(scores, labels):
    order = np.argsort(-scores, kind="stable")
    found = np.cumsum(labels[order], dtype=np.int64)  # images with the class among the first ones
    if not found[-1]:
        return np.nan
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)  # of runs of equal scores
    recall = np.diff(found[ends], prepend=0) / found[-1]
    return float(np.sum(recall * found[ends] / (ends + 1)))


def precision_recall_f1(predicted: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Precision, recall and F1 of each class, each (K,); NaN where there is nothing to divide by.

    Args:
        predicted: Booleans (N, K).
        labels: Booleans (N, K).
    """
    right = (predicted & labels).sum(axis=0)
    with np.errstate(invalid="ignore"):
        precision, recall = right / predicted.sum(axis=0), right / labels.sum(axis=0)
        return precision, recall, 2 * right / (predicted.sum(axis=0) + labels.sum(axis=0))


def mean(values: np.ndarray) -> float | None:
    """The mean of the values that are known, as a float; None if none is."""
    values = np.asarray(values, np.float64)
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else None


def rows_of(**columns) -> list[dict]:
    """Columns of equal length as a list of dictionaries, NaN as None."""
    values = {name: [None if v != v else v for v in np.asarray(column).tolist()] for name, column in columns.items()}
    return [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]
