"""Augmentation against slow references, Pillow, and itself; always on random, non-square images."""

import dataclasses

import numpy as np
import pytest
from helpers import augmented
from PIL import Image, ImageEnhance, ImageOps

from keras_vit.data.augment import AugmentConfig
from keras_vit.data.pixels import blur
from keras_vit.data.randaugment import RANDAUGMENT, apply_operations

OFF = AugmentConfig(flip=False, crop=0)
ROUNDING = 2  # of 255: Pillow rounds at other places, and cuts off where it blends
COUNT, HEIGHT, WIDTH = 16, 11, 14


def images(channels=3, count=COUNT, height=HEIGHT, width=WIDTH):
    return np.random.default_rng(1).integers(0, 256, (count, height, width, channels), dtype=np.uint8)


def run(config, batch, seed=0, num_classes=None, **kwargs):
    return augmented(batch, np.arange(len(batch)), config, seed, num_classes or len(batch), **kwargs)


def apply(name, batch, level):
    result = batch.copy()
    apply_operations(result, np.full(len(batch), RANDAUGMENT.index(name)), np.broadcast_to(float(level), len(batch)))
    return result


@pytest.mark.parametrize("channels", [1, 3])
def test_everything_off_is_identity(channels):
    batch = images(channels)
    result, targets = run(OFF, batch)
    np.testing.assert_array_equal(result, batch)
    np.testing.assert_array_equal(targets, np.eye(COUNT, dtype=np.float32))


@pytest.mark.parametrize("channels", [1, 3])
def test_flip_and_crop_equal_a_slow_reference(channels):
    batch, crop = images(channels), 4
    result, _ = run(AugmentConfig(flip=True, crop=crop), batch, seed=3)
    rng = np.random.default_rng(3)
    kept = rng.random(COUNT) < 0.5
    top, left = rng.integers(-crop, crop, size=(2, COUNT), endpoint=True)
    assert len(set(zip(top, left, kept, strict=True))) > COUNT // 2
    for i, image in enumerate(batch):
        padded = np.pad(image, ((crop, crop), (crop, crop), (0, 0)), mode="reflect")
        y, x = crop + top[i], crop + left[i]
        cropped = padded[y : y + HEIGHT, x : x + WIDTH]
        np.testing.assert_array_equal(result[i], cropped if kept[i] else cropped[:, ::-1])


FULL = AugmentConfig(
    randaugment_layers=2, three_augment=True, color_jitter=0.3, erasing=0.5, mixup=0.8, cutmix=1.0, label_smoothing=0.1
)


@pytest.mark.parametrize("channels", [1, 3])
def test_same_seed_same_bytes_and_the_input_stays(channels):
    batch = images(channels)
    before = batch.copy()
    (first, first_targets), (second, second_targets) = run(FULL, batch), run(FULL, batch)
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(first_targets, second_targets)
    np.testing.assert_array_equal(batch, before)
    assert (run(FULL, batch, seed=1)[0] != first).mean() > 0.5
    assert first.dtype == np.uint8
    assert first.shape == batch.shape
    assert first_targets.dtype == np.float32
    np.testing.assert_allclose(first_targets.sum(axis=1), 1, atol=1e-6)


@pytest.mark.parametrize(
    "config",
    [
        AugmentConfig(flip=False, crop=3),
        dataclasses.replace(OFF, randaugment_layers=2),
        dataclasses.replace(OFF, three_augment=True),
        dataclasses.replace(OFF, color_jitter=0.5),
        dataclasses.replace(OFF, erasing=1.0),
        dataclasses.replace(OFF, mixup=1.0),
        dataclasses.replace(OFF, cutmix=1.0),
    ],
)
def test_parameters_are_drawn_per_image(config):
    batch = np.repeat(images(count=1), COUNT, axis=0)
    labels = np.arange(COUNT)
    result, targets = augmented(batch, labels, config, 0, COUNT)
    if config.mixup or config.cutmix:
        assert len(np.unique(targets.max(axis=1))) > COUNT // 2
    else:
        assert len(np.unique(result.reshape(COUNT, -1), axis=0)) > COUNT // 3


@pytest.mark.parametrize("name", RANDAUGMENT)
@pytest.mark.parametrize("channels", [1, 3])
def test_level_zero_is_identity_and_level_one_is_not(name, channels):
    batch = images(channels, height=30, width=41) // 2 + 30  # equalize needs at least 256 pixels
    assert (apply(name, batch, 0) != batch).any() == (name in ("autocontrast", "equalize"))
    unchanged = name == "identity" or (name == "saturation" and channels == 1)
    assert (apply(name, batch, 1) != batch).any() != unchanged


PILLOW = {
    "brightness": lambda image, level: ImageEnhance.Brightness(image).enhance(1 + 0.9 * level),
    "contrast": lambda image, level: ImageEnhance.Contrast(image).enhance(1 + 0.9 * level),
    "saturation": lambda image, level: ImageEnhance.Color(image).enhance(1 + 0.9 * level),
    "sharpness": lambda image, level: ImageEnhance.Sharpness(image).enhance(1 + 0.9 * level),
    "posterize": lambda image, level: ImageOps.posterize(image, 8 - round(4 * abs(level))),
    "solarize": lambda image, level: ImageOps.solarize(image, 256 * (1 - abs(level))),
    "autocontrast": lambda image, level: ImageOps.autocontrast(image),
    "equalize": lambda image, level: ImageOps.equalize(image),
}


@pytest.mark.parametrize("name", PILLOW)
@pytest.mark.parametrize("level", [-0.9, 0.5])
def test_operations_equal_pillow(name, level):
    batch = images(height=30, width=41) // 2 + 30
    result = apply(name, batch, level)
    for image, ours in zip(batch, result, strict=True):
        theirs = np.asarray(PILLOW[name](Image.fromarray(image), level))
        assert np.abs(ours.astype(int) - theirs).max() <= ROUNDING


def slow_affine(image, matrix):
    """One image, a pixel at a time, out of a wide reflected border."""
    height, width, _ = image.shape
    border = 3 * max(height, width)
    padded = np.pad(image, ((border, border), (border, border), (0, 0)), mode="reflect").astype(float)
    result = np.zeros(image.shape)
    for row in range(height):
        for column in range(width):
            offset = np.array([column - (width - 1) / 2, row - (height - 1) / 2])
            x, y = matrix[:, :2] @ offset + matrix[:, 2] + [(width - 1) / 2, (height - 1) / 2]
            left, top = int(np.floor(x)), int(np.floor(y))
            for dy, dx in np.ndindex(2, 2):
                weight = (y - top if dy else 1 - y + top) * (x - left if dx else 1 - x + left)
                result[row, column] += weight * padded[border + top + dy, border + left + dx]
    return result


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("level", [-1.0, 0.7])
def test_geometry_equals_a_slow_reference(channels, level):
    angle = np.radians(30 * level)
    matrices = {
        "rotate": [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0]],
        "shear_x": [[1, 0.3 * level, 0], [0, 1, 0]],
        "shear_y": [[1, 0, 0], [0.3 * level, 1, 0]],
        "translate_x": [[1, 0, WIDTH * 10 / 32 * level], [0, 1, 0]],
        "translate_y": [[1, 0, 0], [0, 1, HEIGHT * 10 / 32 * level]],
    }
    batch = images(channels, count=2)
    for name, matrix in matrices.items():
        result = apply(name, batch, level)
        for image, ours in zip(batch, result, strict=True):
            assert np.abs(ours - slow_affine(image, np.array(matrix))).max() <= 0.51  # rounding, and float32


def test_images_of_one_row_or_column():
    for height, width in ((1, 9), (9, 1), (1, 1)):
        batch = images(height=height, width=width)
        config = dataclasses.replace(FULL, crop=0, randaugment_layers=9)
        assert run(config, batch)[0].shape == batch.shape
        # Along an axis of one pixel there is nothing to move to, and reflections of a single pixel are that pixel.
        sides = {"shear_y": height, "translate_y": height, "shear_x": width, "translate_x": width}
        still = [name for name, side in sides.items() if side == 1]
        assert still
        for name in still:
            np.testing.assert_array_equal(apply(name, batch, 0.7), batch)


def test_three_augment_makes_each_image_one_of_three():
    batch = images(count=60)
    result, _ = run(dataclasses.replace(OFF, three_augment=True), batch)
    solarized = np.where(batch < 128, batch, 255 - batch)
    kinds = {"grey": 0, "solarized": 0, "blurred": 0}
    for before, after, inverted in zip(batch, result, solarized, strict=True):
        if (after == after[..., :1]).all():
            kinds["grey"] += 1
            assert np.abs(after[..., 0].astype(int) - np.asarray(Image.fromarray(before).convert("L"))).max() <= ROUNDING
        elif (after == inverted).all():
            kinds["solarized"] += 1
        else:
            kinds["blurred"] += 1
            assert abs(after.mean() - before.mean()) < 5
            assert after.std() <= before.std() + 1
    assert min(kinds.values()) > 10


def test_blur_equals_a_convolution():
    batch, sigma = images(count=2, height=15, width=18), np.array([0.4, 1.3])
    result = blur(batch, sigma)
    offsets = np.arange(-4, 5)
    for i in range(2):
        kernel = np.exp(-0.5 * (offsets / sigma[i]) ** 2)
        kernel /= kernel.sum()
        padded = np.pad(batch[i].astype(float), ((4, 4), (4, 4), (0, 0)), mode="reflect")
        for axis in (0, 1):
            padded = np.apply_along_axis(np.convolve, axis, padded, kernel, mode="same")
        assert np.abs(result[i] - padded[4:-4, 4:-4]).max() <= ROUNDING


def test_erasing_replaces_one_rectangle_of_the_stated_area():
    batch = images(count=200, height=24, width=40)
    result, _ = run(dataclasses.replace(OFF, erasing=0.25), batch)
    changed = (result != batch).any(axis=-1)
    erased = changed.any(axis=(1, 2))
    assert 30 <= erased.sum() <= 70
    for mask in changed[erased]:
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        area = (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1)
        assert 0.01 <= area / mask.size <= 0.34
        assert mask.sum() >= 0.9 * area  # a random pixel seldom equals the one it replaces


def coded_images():
    """Image i has values 16 i to 16 i + 15 only, so that a pixel tells where it comes from."""
    return images() % 16 + 16 * np.arange(COUNT, dtype=np.uint8)[:, None, None, None]


def test_cutmix_targets_are_the_counted_pixel_shares():
    result, targets = run(dataclasses.replace(OFF, cutmix=1.0), coded_images())
    origin = result[..., 0] // 16
    assert (result // 16 == origin[..., None]).all()
    for i in range(COUNT):
        shares = np.bincount(origin[i].ravel(), minlength=COUNT) / origin[i].size
        np.testing.assert_allclose(targets[i], shares, atol=1e-6)
        assert (shares > 0).sum() <= 2


def test_mixup_is_linear_with_the_targets_weight():
    batch = images()
    result, targets = run(dataclasses.replace(OFF, mixup=1.0), batch)
    expected = np.einsum("bk,khwc->bhwc", targets.astype(float), batch.astype(float))
    assert np.abs(result - expected).max() <= 0.5 + 1e-3
    assert len(np.unique(targets.max(axis=1))) > COUNT // 2


def test_mixup_and_cutmix_share_the_images():
    batch = np.tile(coded_images(), (20, 1, 1, 1))
    labels = np.arange(len(batch))
    config = dataclasses.replace(OFF, mixup=0.8, cutmix=1.0, mix_probability=0.5)
    result, _ = augmented(batch, labels, config, 0, len(batch))
    changed = (result != batch).reshape(len(batch), -1)
    mixed = changed.any(axis=1).mean()
    assert 0.4 < mixed < 0.55
    assert 0.1 < (changed.mean(axis=1) > 0.9).mean() < 0.4  # MixUp changes nearly every pixel, CutMix seldom does


def test_mixing_stops():
    config, batch = dataclasses.replace(OFF, mixup=1.0), images()
    assert (run(config, batch)[0] != batch).any()
    np.testing.assert_array_equal(run(config, batch, over=True)[0], batch)


def test_a_single_image_has_no_partner():
    batch = images(count=1)
    np.testing.assert_array_equal(run(dataclasses.replace(OFF, mixup=1.0, cutmix=1.0), batch)[0], batch)


def test_label_smoothing():
    _, targets = run(dataclasses.replace(OFF, label_smoothing=0.1), images(), num_classes=20)
    expected = np.full((COUNT, 20), 0.005)
    expected[np.arange(COUNT), np.arange(COUNT)] = 0.905
    np.testing.assert_allclose(targets, expected, atol=1e-7)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("flip", 1),
        ("crop", -1),
        ("crop", 2.5),
        ("randaugment_layers", True),
        ("randaugment_magnitude", 11),
        ("three_augment", "yes"),
        ("color_jitter", 1.5),
        ("erasing", -0.1),
        ("mixup", float("nan")),
        ("cutmix", -1),
        ("mix_probability", 2),
        ("mix_until", "0.5"),
        ("label_smoothing", 1),
    ],
)
def test_a_wrong_field_is_named(field, value):
    with pytest.raises(ValueError, match=f"^{field}: received {value!r}; allowed: "):
        AugmentConfig(**{field: value})


def test_wrong_images_are_refused():
    with pytest.raises(ValueError, match=r"^images: received float32 of shape \(16, 11, 14, 3\); allowed: uint8"):
        run(OFF, images().astype(np.float32))
    with pytest.raises(ValueError, match=r"^crop: received 11; allowed: less than the images' 11x14 pixels"):
        run(AugmentConfig(crop=11), images())
