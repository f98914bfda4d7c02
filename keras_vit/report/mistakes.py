"""The mistakes that a model was surest of.

Shapes: N images, K classes.
"""

import dataclasses

import numpy as np

from keras_vit.data.labels import is_multi
from keras_vit.runs.calibration import probabilities_of
from keras_vit.runs.prediction import THRESHOLD


@dataclasses.dataclass(frozen=True)
class Mistake:
    """A wrong prediction.

    Attributes:
        index: Of the image in its split.
        true: Its true classes, each with the model's probability: one, or where an image may have several any number.
        predicted: The predicted classes with their probabilities, the likeliest first.
        confidence: How sure the model was, 0 to 1: the probability of the wrong class; where an image may have several classes, of
            its worst answer, be that yes or no.
        worst: The index of that class.
    """

    index: int
    true: list[tuple[int, float]]
    predicted: list[tuple[int, float]]
    confidence: float
    worst: int


def worst_mistakes(logits: np.ndarray, labels: np.ndarray, most: int, temperature: float = 1.0) -> list[Mistake]:
    """The mistakes of the highest confidence, highest first; of equal ones the first image comes first.

    Args:
        logits: (N, K).
        labels: Integers (N,), or zeros and ones (N, K) where an image may have several classes.
        most: Largest number of mistakes.
        temperature: What the logits are divided by, for probabilities.
    """
    logits, labels = np.asarray(logits, np.float64), np.asarray(labels)
    if is_multi(labels):
        probabilities, truth = probabilities_of(logits, True, temperature), labels == 1
        wrong = (logits > 0) != truth
        sureness = np.where(wrong, np.maximum(probabilities, 1 - probabilities), -1.0)  # (N, K)
        worst, confidence = sureness.argmax(axis=1), sureness.max(axis=1)
    else:
        probabilities, truth = probabilities_of(logits, False, temperature), np.arange(logits.shape[1]) == labels[:, None]
        worst = logits.argmax(axis=1)
        confidence = np.where(worst != labels, np.take_along_axis(probabilities, worst[:, None], axis=1)[:, 0], -1.0)
    order = np.argsort(-confidence, kind="stable")
    chosen = [index for index in order[:most] if confidence[index] >= 0]

    def pairs(index, classes):
        return [(int(label), float(probabilities[index, label])) for label in classes]

    mistakes = []
    for index in chosen:
        predicted = [worst[index]]
        if is_multi(labels):
            ranked = np.argsort(-probabilities[index], kind="stable")
            predicted = ranked[probabilities[index, ranked] > THRESHOLD]
        true = pairs(index, np.flatnonzero(truth[index]))
        mistakes.append(Mistake(int(index), true, pairs(index, predicted), float(confidence[index]), int(worst[index])))
    return mistakes
