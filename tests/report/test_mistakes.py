import numpy as np
import pytest

from keras_vit.report.mistakes import worst_mistakes

EXACT = 1e-12


def test_the_surest_mistakes_come_first():
    shares = np.array([[0.7, 0.2, 0.1], [0.1, 0.65, 0.25], [0.05, 0.05, 0.9], [0.1, 0.3, 0.6], [0.1, 0.8, 0.1]])
    found = worst_mistakes(np.log(shares), np.array([0, 2, 1, 0, 0]), most=3)
    assert [mistake.index for mistake in found] == [2, 4, 1]
    equal = np.array([[0.0, 2, 0]] * 3)
    assert [mistake.index for mistake in worst_mistakes(equal, np.array([2, 2, 2]), most=2)] == [0, 1]  # the first ones
    first = found[0]
    assert (first.worst, first.confidence) == (2, pytest.approx(0.9, abs=EXACT))
    assert first.predicted == [(2, pytest.approx(0.9, abs=EXACT))]
    assert first.true == [(1, pytest.approx(0.05, abs=EXACT))]
    assert worst_mistakes(np.log(shares), shares.argmax(axis=1), most=3) == []


def test_with_several_labels_the_worst_answer_decides():
    def logit(p):
        return np.log(p / (1 - p))

    probabilities = np.array([[0.9, 0.1, 0.2], [0.8, 0.95, 0.1], [0.03, 0.6, 0.4], [0.1, 0.2, 0.3]])
    labels = np.array([[1, 0, 0], [1, 0, 0], [1, 1, 1], [0, 0, 0]], np.int8)
    found = worst_mistakes(logit(probabilities), labels, most=9)
    assert [mistake.index for mistake in found] == [2, 1]
    missed, added = found
    assert (missed.worst, missed.confidence) == (0, pytest.approx(0.97, abs=EXACT))  # sure that it is not there
    assert [label for label, _ in missed.predicted] == [1]
    assert [label for label, _ in missed.true] == [0, 1, 2]
    assert (added.worst, added.confidence) == (1, pytest.approx(0.95, abs=EXACT))
    assert [label for label, _ in added.predicted] == [1, 0]  # the likeliest first
