"""How good predictions are, in numbers.

Shapes: N images, K classes.
"""

import dataclasses
import typing

import numpy as np

from keras_vit.data.labels import is_multi
from keras_vit.runs.calibration import Calibration, calibration_of
from keras_vit.runs.multilabel import average_precisions, check_logits, mean, precision_recall_f1, rows_of, with_augmentation


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The quality of predictions.

    Attributes:
        accuracy: Share of images whose largest logit is the true class's.
        top_k: 5, or the number of classes if that is smaller.
        top_k_accuracy: Share of images whose true class is among the `top_k` largest logits.
        loss: Mean cross-entropy in nats, at the temperature.
        calibration: A `Calibration` with the expected calibration error, at the temperature.
        confusion: Counts (K, K); row = true class, column = predicted class.
        precision: By class (K,); NaN if the class was never predicted.
        recall: By class (K,); NaN if the class has no images.
        f1: By class (K,); NaN if the class was never predicted and has no images.
        class_names: K names.
        temperature: What the logits are divided by, as of `fit_temperature`.
        error_before: The expected calibration error at temperature 1.
        views: The views of test-time augmentation in words; empty = none.
        augmented: The same with test-time augmentation; None = none.
    """

    multi_label = False

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
    temperature: float
    error_before: float
    views: str = ""
    augmented: typing.Self | None = None

    @property
    def count(self) -> np.ndarray:
        """Images of each class (K,)."""
        return self.confusion.sum(axis=1)

    @property
    def images(self) -> int:
        return int(self.confusion.sum())

    @property
    def balanced_accuracy(self) -> float:
        """Mean recall of the classes that have images."""
        return float(np.nanmean(self.recall))

    def to_dict(self) -> dict:
        """Plain Python values for JSON: NaN becomes None."""
        bins = self.calibration
        return {
            "images": self.images,
            "accuracy": self.accuracy,
            "balanced_accuracy": self.balanced_accuracy,
            "top_k": self.top_k,
            "top_k_accuracy": self.top_k_accuracy,
            "loss": self.loss,
            "expected_calibration_error": bins.error,
            "temperature": self.temperature,
            "expected_calibration_error_before": self.error_before,
            **with_augmentation(self),
            "calibration_bins": rows_of(
                above=bins.edges[:-1],
                up_to=bins.edges[1:],
                count=bins.count,
                confidence=bins.confidence,
                accuracy=bins.accuracy,
            ),
            "classes": rows_of(name=self.class_names, precision=self.precision, recall=self.recall, f1=self.f1, count=self.count),
            "confusion": self.confusion.tolist(),
        }


def metrics_of(logits: np.ndarray, labels: np.ndarray, class_names: list[str]) -> tuple[dict[str, float | None], dict[str, dict]]:
    """The metrics that a training keeps, without the loss: of all images by name, and of each class by its name.

    Args:
        logits: (N, K).
        labels: Integers (N,), or zeros and ones (N, K) where an image may have several classes.
        class_names: K names.

    Returns:
        `accuracy` and `balanced_accuracy` with each class's `recall`; or `map` and `f1` with each class's `average_precision`,
        `recall` and `f1`. None where no image decides it.
    """
    if is_multi(labels):
        precision = average_precisions(logits, labels)
        _, recall, f1 = precision_recall_f1(logits > 0, labels == 1)
        found = {"map": mean(precision), "f1": mean(f1)}
        columns = {"average_precision": precision, "recall": recall, "f1": f1}
    else:
        right = logits.argmax(axis=1) == labels
        with np.errstate(invalid="ignore"):
            recall = np.bincount(labels, right, len(class_names)) / np.bincount(labels, minlength=len(class_names))
        found, columns = {"accuracy": mean(right), "balanced_accuracy": mean(recall)}, {"recall": recall}
    rows = rows_of(**columns)
    return found, dict(zip(class_names, rows, strict=True))


def score(logits: np.ndarray, labels: np.ndarray, class_names: list[str], temperature: float = 1.0) -> Evaluation:
    """Scores logits against the true classes.

    Args:
        logits: (N, K). Of equal logits the first ranks higher.
        labels: Integers (N,), from 0 to K - 1.
        class_names: K names.
        temperature: What the logits are divided by, for probabilities.

    Returns:
        An `Evaluation`.

    Raises:
        ValueError: If there are no images, the shapes do not fit, or logits are NaN or infinite.
    """
    from scipy.special import log_softmax
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support  # slow to import, and training needs none of it

    logits, labels, class_names = np.asarray(logits, np.float64), np.asarray(labels), [str(name) for name in class_names]
    images, classes = len(labels), len(class_names)
    check_logits(logits, images, classes)
    everything = np.arange(classes)
    log_probabilities = log_softmax(logits / temperature, axis=1)
    ranked = np.argsort(-logits, axis=1, kind="stable")  # (N, K), the largest first
    predicted, top_k = ranked[:, 0], min(5, classes)
    precision, recall, f1, _ = precision_recall_fscore_support(
        labels, predicted, labels=everything, average=None, zero_division=np.nan
    )
    return Evaluation(
        accuracy=float(np.mean(predicted == labels)),
        top_k=top_k,
        top_k_accuracy=float(np.mean((ranked[:, :top_k] == labels[:, None]).any(axis=1))),
        loss=float(-np.mean(np.take_along_axis(log_probabilities, labels[:, None], axis=1))),
        calibration=calibration_of(logits, labels, temperature),
        confusion=confusion_matrix(labels, predicted, labels=everything),
        precision=precision,
        recall=recall,
        f1=f1,
        class_names=class_names,
        temperature=temperature,
        error_before=calibration_of(logits, labels).error,
    )


def wilson_interval(share: float, count: int, level: float = 0.95) -> tuple[float, float]:
    """The confidence interval of a share of independent images, such as an accuracy: (lower, upper), each from 0 to 1.

    Args:
        share: The observed share, 0 to 1: a whole number of images over `count`.
        count: N, at least 1.
        level: Probability that the interval holds the true share.

    Source: E. B. Wilson, 'Probable inference, the law of succession, and statistical inference' (JASA 22, 1927), by SciPy.
    """
    from scipy.stats import binomtest

    interval = binomtest(round(share * count), count).proportion_ci(level, "wilson")
    return float(interval.low), float(interval.high)
