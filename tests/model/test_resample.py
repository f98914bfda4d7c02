"""Resampled positions and projections: equal to PyTorch's interpolation and timm's functions."""

import keras
import numpy as np
import pytest
from reference import random_images
from reference import weights_of as weights_in_place

from keras_vit import ViTConfig, build_vit
from keras_vit.images import resize_matrix
from keras_vit.model.embed import Patches
from keras_vit.model.resample import resample_positions, resample_projection

POSITIONS = 1e-5  # absolute, float64 here against float32 there, values near 1
GRIDS = [((14, 14), (7, 9)), ((7, 7), (12, 16)), ((3, 5), (4, 2)), ((4, 4), (4, 7)), ((1, 3), (2, 1)), ((5, 6), (6, 5))]


@pytest.mark.parametrize(("old", "new", "prefix"), [(*grids, (0, 1, 5)[index % 3]) for index, grids in enumerate(GRIDS)], ids=str)
@pytest.mark.parametrize("antialias", [True, False])
def test_positions_equal_timms(old, new, prefix, antialias):
    from peers import torch  # before timm, which imports torchvision

    pytest.importorskip("timm")
    from timm.layers import resample_abs_pos_embed

    table = np.random.default_rng(0).normal(size=(1, prefix + old[0] * old[1], 6)).astype("float32")
    expected = resample_abs_pos_embed(torch.from_numpy(table), list(new), list(old), prefix, antialias=antialias).numpy()
    ours = resample_positions(table, old, new, antialias)
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, expected, atol=POSITIONS)
    np.testing.assert_array_equal(ours[:, :prefix], table[:, :prefix])


def test_the_same_grid_is_left_alone():
    table = np.random.default_rng(0).normal(size=(1, 13, 4)).astype("float32")
    assert resample_positions(table, (3, 4), (3, 4)) is table
    assert np.abs(resample_positions(table, (3, 4), (4, 3)) - table).max() > 0.1  # as many, but elsewhere


@pytest.mark.parametrize(("old", "new"), [((16, 16), (8, 8)), ((8, 8), (14, 14)), ((4, 6), (6, 4)), ((16, 16), (12, 20))], ids=str)
def test_projections_equal_timms(old, new):
    from peers import torch  # before timm, which imports torchvision

    pytest.importorskip("timm")
    from timm.layers import resample_patch_embed

    kernel = np.random.default_rng(0).normal(size=(*old, 3, 5)).astype("float32")
    expected = resample_patch_embed(torch.from_numpy(kernel.transpose(3, 2, 0, 1).copy()), list(new)).numpy().transpose(2, 3, 1, 0)
    ours = resample_projection(kernel.reshape(-1, 5), old, new, 3)
    np.testing.assert_allclose(ours, expected.reshape(-1, 5), atol=2e-5 * np.abs(expected).max())


def test_a_larger_patch_gives_the_same_token():
    """What FlexiViT asks of the new kernel: the token of an upscaled patch is the token of the patch."""
    rng = np.random.default_rng(0)
    patch, kernel = rng.normal(size=(5, 6, 3)), rng.normal(size=(5 * 6 * 3, 4))
    rows, columns = resize_matrix(5, 10), resize_matrix(6, 9)
    large = np.einsum("ai,bj,ijc->abc", rows, columns, patch)
    ours = resample_projection(kernel, (5, 6), (10, 9), 3)
    np.testing.assert_allclose(large.reshape(-1) @ ours, patch.reshape(-1) @ kernel, atol=1e-9)


def test_kernels_are_in_the_order_of_patches():
    """A resampled projection of an upscaled image is the projection of the image, through the model's own layers."""
    config = ViTConfig(image_size=(8, 12), patch_size=(4, 6), width=8, depth=1, num_heads=2, mlp_dim=8, num_classes=0)
    images = random_images(config, batch=1)
    kernel = weights_in_place(build_vit(config))["encoder/projection/kernel"]
    # Patch by patch: the resize of a whole image would mix neighbours.
    patches = keras.ops.convert_to_numpy(Patches((4, 6))(images)).reshape(-1, 4, 6, 3)
    large = np.einsum("ai,bj,nijc->nabc", resize_matrix(4, 8), resize_matrix(6, 12), patches)
    ours = resample_projection(kernel, (4, 6), (8, 12), 3)
    np.testing.assert_allclose(large.reshape(4, -1) @ ours, patches.reshape(4, -1) @ kernel, atol=1e-5)
