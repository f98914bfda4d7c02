"""Calibration errors and temperatures, by hand, against SciPy's minimum, and in predictions."""

import math

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import expit, softmax

from keras_vit.runs.calibration import calibrate, calibration_of, fit_temperature, probabilities_of
from keras_vit.runs.scores import score

EXACT = 1e-12
FOUND = 1e-6  # relative, of a minimum that SciPy finds


def test_calibration_against_numbers_by_hand():
    # (0.25, 0.5]: 0.3 and 0.5, one of them right; (0.5, 0.75]: 0.6, wrong; (0.75, 1]: 0.8, 0.9 and 1.0, two right.
    result = calibrate([0.3, 0.5, 0.6, 0.8, 0.9, 1.0], [True, False, False, True, True, False], bins=4)
    np.testing.assert_allclose(result.edges, [0, 0.25, 0.5, 0.75, 1])
    assert result.count.tolist() == [0, 2, 1, 3]
    np.testing.assert_allclose(result.confidence, [np.nan, 0.4, 0.6, 0.9])
    np.testing.assert_allclose(result.accuracy, [np.nan, 0.5, 0, 2 / 3])
    assert result.error == pytest.approx((2 * 0.1 + 1 * 0.6 + 3 * (0.9 - 2 / 3)) / 6, abs=EXACT)


def test_calibration_has_fifteen_bins_closed_above():
    result = calibrate([1 / 15, 1 / 15 + 1e-9, 1.0, 0.0], [True] * 4)
    assert len(result.count) == 15
    assert result.count[[0, 1, 14]].tolist() == [2, 1, 1]
    assert calibrate(np.full(10, 0.7), [True] * 7 + [False] * 3).error == pytest.approx(0, abs=EXACT)


def test_a_temperature_by_hand():
    """Of four images, all equally sure, three are right; each label counts as right with 5/6: the best probability is 2/3."""
    labels = np.array([0, 0, 0, 1])
    for gap in (0.2, 4.0):
        logits = np.array([[gap, 0.0]] * 4)
        temperature = fit_temperature(logits, labels)
        assert temperature == pytest.approx(gap / math.log(2), rel=1e-7)
        assert calibration_of(logits, labels).error == pytest.approx(abs(expit(gap) - 0.75), abs=EXACT)
        assert calibration_of(logits, labels, temperature).error == pytest.approx(3 / 4 - 2 / 3, abs=1e-7)
    # Of four decisions of two images three are right; each label counts as right with 3/4: 5/8.
    logits, labels = np.array([[5.0, -5.0], [5.0, -5.0]]), np.array([[1, 0], [1, 1]])
    assert fit_temperature(logits, labels) == pytest.approx(5 / math.log(5 / 3), rel=1e-7)
    assert calibration_of(logits, labels).error == pytest.approx(expit(5) - 0.75, abs=EXACT)
    assert calibration_of(logits, labels, 5 / math.log(3)).error == pytest.approx(0, abs=EXACT)


@pytest.mark.parametrize("scale", [0.3, 1, 8])
@pytest.mark.parametrize("several", [False, True])
def test_a_temperature_is_the_minimum_of_the_cross_entropy(scale, several):
    rng = np.random.default_rng(0)
    logits, noise = rng.normal(size=(500, 6)) * 2, rng.random((500, 6))
    labels = (noise < expit(logits)).astype(int) if several else (logits - np.log(-np.log(noise))).argmax(1)
    logits, right = (logits * scale).astype(np.float32), labels if several else np.eye(6)[labels]

    def loss(temperature):
        p = probabilities_of(logits, several, temperature)
        if several:
            return -(np.log(np.where(right, p, 1 - p)) * 501 + np.log(np.where(right, 1 - p, p))).mean()
        return -(np.log(p) * np.where(right, 501, 1 / 5)).mean()

    found = fit_temperature(logits, labels)
    assert found == pytest.approx(minimize_scalar(loss, bounds=(0.01, 100), options={"xatol": 1e-9}).x, rel=FOUND)
    assert found == pytest.approx(scale, rel=0.15)  # the labels are drawn with the probabilities of the logits / scale


def test_a_few_images_make_no_model_certain():
    """All are right: by the rule of succession 21 of 22 are."""
    labels = np.arange(20) % 2
    assert fit_temperature(3.0 * np.eye(2)[labels], labels) == pytest.approx(3 / math.log(21), rel=1e-7)
    assert fit_temperature(6.0 * np.eye(2)[labels] - 3, np.eye(2, dtype=int)[labels]) == pytest.approx(3 / math.log(21), rel=1e-7)


def test_where_no_temperature_is_best():
    logits = np.random.default_rng(0).normal(size=(20, 3))
    assert fit_temperature(logits, logits.argmin(1)) is None  # the less sure, the better
    assert fit_temperature(logits, (logits < 0).astype(int)) is None
    assert fit_temperature(np.zeros((20, 3)), np.arange(20) % 3) is None
    assert fit_temperature(np.ones((4, 1)), np.zeros(4, int)) is None  # one class


def test_probabilities():
    logits = np.array([[800.0, 0, -900], [1, 2, 3]])
    np.testing.assert_allclose(probabilities_of(logits, False, 2.5), softmax(logits / 2.5, axis=1), atol=EXACT)
    np.testing.assert_allclose(probabilities_of(logits, True, 0.4), expit(logits / 0.4), atol=EXACT)


def test_equal_predictions_at_every_temperature():
    """Logits that differ by one bit keep their order."""
    logits = np.float32([[1, np.nextafter(np.float32(1), np.float32(2))]] * 3)
    for temperature in (1e-3, 0.7, 3.1, 1e3):
        result = score(logits, [1, 1, 0], ["a", "b"], temperature)
        assert result.accuracy == pytest.approx(2 / 3)
        assert result.temperature == temperature
