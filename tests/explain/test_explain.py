import numpy as np
import pytest
from helpers import COMMON

from keras_vit import ViTConfig, build_vit
from keras_vit.explain.positions import position_similarity

TOLERANCE = 1e-6  # float32 embeddings, float64 products
TINY = {**COMMON, "width": 12, "depth": 1}


def make_model(**settings):
    return build_vit(ViTConfig(**{**TINY, "image_size": (12, 20), "patch_size": (4, 4), **settings}))


def plain_cosine(table, rows, columns):
    """One pair of positions at a time."""
    result = np.empty((rows, columns, rows, columns))
    for r, c, s, d in np.ndindex(result.shape):
        a, b = table[r * columns + c], table[s * columns + d]
        result[r, c, s, d] = (a @ b) / (np.sqrt(a @ a) * np.sqrt(b @ b))
    return result


@pytest.mark.parametrize(
    ("settings", "prefix"),
    [
        ({}, 1),
        ({"pool": "gap"}, 0),
        ({"registers": 2}, 1),
        ({"registers": 2, "prefix_positions": "all"}, 3),
        ({"registers": 2, "prefix_positions": "none"}, 0),
    ],
)
def test_learned_positions_without_those_of_prefix_tokens(settings, prefix):
    model = make_model(**settings)
    table = np.random.default_rng(0).normal(size=(prefix + 15, 12)).astype("float32")
    model.get_layer("encoder").position_embedding.assign(table[None])
    np.testing.assert_allclose(position_similarity(model), plain_cosine(table[prefix:].astype("float64"), 3, 5), atol=TOLERANCE)


@pytest.mark.parametrize("position", ["learned", "sincos2d", "sincos1d"])
def test_diagonal_is_one_and_similarity_symmetric(position):
    similarity = position_similarity(make_model(position=position))
    assert similarity.shape == (3, 5, 3, 5)
    flat = similarity.reshape(15, 15)
    np.testing.assert_allclose(np.diag(flat), 1, atol=TOLERANCE)
    np.testing.assert_allclose(flat, flat.T, atol=TOLERANCE)
    assert (flat[~np.eye(15, dtype=bool)] < 1 - 1e-4).all()


def test_fixed_2d_positions_depend_on_the_distance_alone():
    similarity = position_similarity(make_model(position="sincos2d"))
    # Rows and columns each have half of the width: moving a map by one moves its content by one.
    np.testing.assert_allclose(similarity[1:, 1:, 1:, 1:], similarity[:-1, :-1, :-1, :-1], atol=TOLERANCE)
    assert similarity[0, 0, 0, 1] > similarity[0, 0, 0, 2]


@pytest.mark.parametrize("rotary", ["centered", "index"])
def test_rotary_positions_depend_on_the_distance_alone(rotary):
    similarity = position_similarity(make_model(position="none", rotary=rotary, registers=2, num_heads=3, rotary_base=2.0))
    assert similarity.shape == (3, 5, 3, 5)
    np.testing.assert_allclose(similarity[1:, 1:, 1:, 1:], similarity[:-1, :-1, :-1, :-1], atol=TOLERANCE)
    angles = {"centered": 4 * np.pi / 5, "index": 1}[rotary]  # of a column to the next, in two of a head's four channels
    np.testing.assert_allclose(similarity[0, 0, 0, 1], (1 + np.cos(angles)) / 2, atol=TOLERANCE)


def test_a_learned_table_is_shown_before_rotary_positions():
    model = make_model(rotary="centered", num_heads=3)
    table = np.random.default_rng(0).normal(size=(16, 12)).astype("float32")
    model.get_layer("encoder").position_embedding.assign(table[None])
    np.testing.assert_allclose(position_similarity(model), plain_cosine(table[1:].astype("float64"), 3, 5), atol=TOLERANCE)


def test_fixed_1d_positions_wrap_from_row_to_row():
    similarity = position_similarity(make_model(position="sincos1d"))
    np.testing.assert_allclose(similarity[0, 4, 1, 0], similarity[0, 0, 0, 1], atol=TOLERANCE)


def test_a_half_precision_model_is_read_too():
    model = build_vit(ViTConfig(**TINY, image_size=8, patch_size=4), dtype="mixed_bfloat16")
    table = model.get_layer("encoder").position_embedding.numpy()[0, 1:].astype("float64")
    np.testing.assert_allclose(position_similarity(model), plain_cosine(table, 2, 2), atol=TOLERANCE)


def test_no_positions():
    with pytest.raises(ValueError, match="position: received 'none'"):
        position_similarity(make_model(position="none"))
