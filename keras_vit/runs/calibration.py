"""How true probabilities are: their calibration error, and the temperature that lowers it.

A temperature T divides the logits before the softmax, or before the sigmoids where an image may have several classes. It changes
how sure a model is, never what it predicts.

Shapes: N images, K classes, M bins.

Source: 'On calibration of modern neural networks' (arXiv 1706.04599).
"""

import dataclasses
import math

import numpy as np

from keras_vit.data.labels import is_multi

BINS = 15  # of a reliability diagram
TEMPERATURES = (1e-3, 1e3)  # among which the best one is sought


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Accuracy and mean confidence of predictions, in bins of their confidence.

    A prediction is an image's likeliest class; where an image may have several, each class of each image, be it a yes or a no.
    Its confidence is the probability of what is predicted. Bin m of M holds the predictions with a confidence above (m - 1) / M
    and up to m / M.

    Attributes:
        edges: Limits of the bins (M + 1,), from 0 to 1.
        count: Predictions in each bin (M,).
        confidence: Their mean confidence (M,); NaN for an empty bin.
        accuracy: Their share of correct predictions (M,); NaN for an empty bin.
        error: Expected calibration error: the mean of |accuracy - confidence| over the bins, weighted by their counts.

    Source: equations 2, 3 and 5 of the paper.
    """

    edges: np.ndarray
    count: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray
    error: float


def calibrate(confidence: np.ndarray, correct: np.ndarray, bins: int = BINS) -> Calibration:
    """A `Calibration` of equal-width bins, from each prediction's confidence (N,) and whether it is correct (N,)."""
    confidence, correct = np.asarray(confidence, np.float64), np.asarray(correct, np.float64)
    edges = np.linspace(0, 1, bins + 1)
    index = np.digitize(confidence, edges[1:-1], right=True)  # (N,)
    count = np.bincount(index, minlength=bins)
    with np.errstate(invalid="ignore"):
        mean_confidence = np.bincount(index, confidence, bins) / count
        accuracy = np.bincount(index, correct, bins) / count
    error = np.nansum(count * np.abs(accuracy - mean_confidence)) / len(confidence)
    return Calibration(edges, count, mean_confidence, accuracy, float(error))


def calibration_of(logits: np.ndarray, labels: np.ndarray, temperature: float = 1.0) -> Calibration:
    """The `Calibration` of logits (N, K) at a temperature, against labels: integers (N,), or zeros and ones (N, K)."""
    values = probabilities_of(logits, is_multi(labels), temperature)
    if is_multi(labels):
        return calibrate(np.maximum(values, 1 - values).ravel(), ((logits > 0) == (labels == 1)).ravel())
    return calibrate(values.max(axis=1), logits.argmax(axis=1) == labels)


def probabilities_of(logits: np.ndarray, multi_label: bool, temperature: float = 1.0) -> np.ndarray:
    """Softmax of logits (B, K) over a temperature, or the sigmoid of each where an image may have several classes."""
    logits = np.asarray(logits, np.float64) / temperature
    if multi_label:
        return 0.5 * (1 + np.tanh(0.5 * logits))
    values = np.exp(logits - logits.max(axis=1, keepdims=True))
    return values / values.sum(axis=1, keepdims=True)


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float | None:
    """The temperature at which the mean cross-entropy of predictions is lowest.

    Each label counts as right with the probability (N + 1) / (N + 2), the rule of succession: where all of a few images are right,
    the model does not become certain.

    Args:
        logits: (N, K), finite.
        labels: Integers (N,), or zeros and ones (N, K): each class of each image then counts as a prediction.

    Returns:
        The temperature; None where no one of `TEMPERATURES` is best, as predictions are no better than chance.

    Source: arXiv 1706.04599, with the targets of J. Platt, 'Probabilistic outputs for support vector machines' (1999).
    """
    from scipy.optimize import brentq  # slow to import

    logits, labels = np.asarray(logits, np.float64), np.asarray(labels)
    (images, classes), several = logits.shape, is_multi(labels)
    wrong = 1 / (images + 2)
    right = labels == 1 if several else np.arange(classes) == labels[:, None]
    targets = np.where(right, 1 - wrong, wrong if several else wrong / max(1, classes - 1))

    def slope(sharpness):
        """The cross-entropy's derivative by 1 / T, at T = exp(-sharpness): it rises with the sharpness."""
        return float(np.mean(np.sum((probabilities_of(logits, several, math.exp(-sharpness)) - targets) * logits, axis=1)))

    low, high = (-math.log(limit) for limit in reversed(TEMPERATURES))
    if not slope(low) < 0 < slope(high):
        return None
    return math.exp(-brentq(slope, low, high, xtol=1e-9))
