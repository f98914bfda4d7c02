"""The principal components of the first layer's filters."""

import numpy as np
import pytest
from helpers import make_model, one_line_error, random

from keras_vit.explain.filters import patch_filters

TOLERANCE = 1e-5  # float32 weights


def test_components_are_found_in_the_order_of_their_strength():
    """Filters made of three patterns of known strength."""
    model = make_model("gap")
    patterns, _ = np.linalg.qr(random(54, 3))  # orthonormal, of 3·6·3 values
    mixture, _ = np.linalg.qr(np.concatenate([np.ones((16, 1)), random(16, 3, seed=1)], axis=1))
    kernel = (patterns * [3, 2, 1]) @ mixture[:, 1:].T  # (P·P·C, D), each pattern without a mean over the filters
    model.get_layer("encoder").projection.kernel.assign(kernel + 5)  # what all filters share is no component
    found = patch_filters(model, 3)
    assert found.shape == (3, 3, 6, 3)
    for component, pattern in zip(found.reshape(3, 54), patterns.T, strict=True):
        np.testing.assert_allclose(component, pattern * np.sign(pattern[np.abs(pattern).argmax()]), atol=TOLERANCE)


def test_of_a_stem_the_first_convolution_is_shown():
    found = patch_filters(make_model("conv"))
    assert found.shape[1:] == (3, 3, 3)
    np.testing.assert_allclose((found**2).sum(axis=(1, 2, 3)), 1, atol=TOLERANCE)


def test_a_count_of_nothing_is_refused():
    with one_line_error("count: received 0; allowed: an integer of at least 1"):
        patch_filters(make_model("gap"), 0)


@pytest.mark.parametrize("name", ["gap", "conv"])
def test_patterns_are_orthogonal(name):
    found = patch_filters(make_model(name), 5)
    flat = found.reshape(len(found), -1)
    np.testing.assert_allclose(flat @ flat.T, np.eye(len(flat)), atol=TOLERANCE)
