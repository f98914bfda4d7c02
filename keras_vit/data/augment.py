"""Augmentation of a training batch in NumPy: a whole uint8 batch at a time, every parameter drawn per image.

One implementation serves every backend: the same seed gives the same pixels everywhere. Only NumPy is needed.

Shapes: B images of a batch, H height, W width, C channels, K classes.
"""

import dataclasses
import math
import typing

import numpy as np

from keras_vit.checks import check_choice, check_int, check_number, make_plain
from keras_vit.data.labels import targets_of
from keras_vit.data.mixing import Mixing
from keras_vit.data.pixels import blur, gather, look_up, reflect, saturate
from keras_vit.data.randaugment import RANDAUGMENT, apply_operations, brightness, contrast
from keras_vit.data.seeds import Draws

ALTERNATING = "alternating"
FLIPS = ("alternating",)


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """What is done to training images and their targets. Evaluation never augments.

    Args:
        flip: Mirror images left to right: true = each time with probability 0.5, `alternating` = at random in the first epoch and
            then in every second one (arXiv 2404.00498), so that two epochs in a row show both (default true; false for digits and
            letters).
        crop: Pixels of reflected border added on each side before a random crop back to the size; 0 = off (default 4).
        resized_crop: Take a random part of the picture and resize it (RandomResizedCrop, arXiv 1409.4842). This is the smallest
            share of its area that the part covers, 0 to 1; 0.08 is usual for photos. It replaces `crop`; 0 = off (default 0).
        crop_ratio: Width of that part divided by its height, and the reverse, at most; 1 or more (default 1.33).
        randaugment_layers: RandAugment operations applied to each image, one after the other; 0 = off (default 0).
        randaugment_magnitude: Strength of RandAugment's operations, 0 (none) to 10 (strongest); default 9.
        three_augment: DeiT III's 3-Augment: each image is made grey, solarized or blurred (default off).
        color_jitter: Largest change x, 0 to 1: brightness, contrast and saturation are scaled by factors from 1 - x to 1 + x; 0 =
            off (default 0).
        erasing: Probability, 0 to 1, that a rectangle of 2% to 33% of the image is replaced by noise (default 0).
        mixup: alpha of the Beta(alpha, alpha) that MixUp's weight is drawn from; 0 = off (default 0).
        cutmix: alpha of the Beta(alpha, alpha) that CutMix's area is drawn from; 0 = off (default 0). With both MixUp and
            CutMix on, each mixed image takes one of them with equal probability.
        mix_probability: Share of images, 0 to 1, that are mixed while MixUp or CutMix is on (default 1).
        mix_until: Share of the epochs, 0 to 1, after which mixing stops (default 1 = never).
        label_smoothing: Share of the target spread evenly over all classes, 0 to below 1 (default 0). Where an image may have
            several classes, each of them is a decision between two: targets move towards 0.5.

    Raises:
        ValueError: a value is outside its range; the message names field, value and range.
    """

    flip: typing.Literal[FLIPS] | bool = True
    crop: int = 4
    resized_crop: float = 0.0
    crop_ratio: float = 1.33
    randaugment_layers: int = 0
    randaugment_magnitude: float = 9.0
    three_augment: bool = False
    color_jitter: float = 0.0
    erasing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    mix_probability: float = 1.0
    mix_until: float = 1.0
    label_smoothing: float = 0.0

    def __post_init__(self):
        make_plain(self)
        check_choice("flip", self.flip, (False, True, *FLIPS))
        check_choice("three_augment", self.three_augment, (False, True))
        for name in ("crop", "randaugment_layers"):
            check_int(name, getattr(self, name), at_least=0)
        for name in ("resized_crop", "color_jitter", "erasing", "mix_probability", "mix_until"):
            check_number(name, getattr(self, name), at_least=0, at_most=1)
        check_number("crop_ratio", self.crop_ratio, at_least=1)
        for name in ("mixup", "cutmix"):
            check_number(name, getattr(self, name), at_least=0)
        check_number("randaugment_magnitude", self.randaugment_magnitude, at_least=0, at_most=10)
        check_number("label_smoothing", self.label_smoothing, at_least=0, below=1)

    def check_channels(self, channels: int) -> None:
        """Raises a ValueError that names the first setting that needs colours if images have neither 1 nor 3 channels."""
        for name in () if channels in (1, 3) else ("randaugment_layers", "three_augment", "color_jitter"):
            value, off = getattr(self, name), type(self).__dataclass_fields__[name].default
            if value != off:
                raise ValueError(
                    f"{name}: received {value}; allowed: {off} with {channels} channels, as it changes colours (1 or 3)"
                )


def augment(
    images: np.ndarray,
    labels: np.ndarray,
    config: AugmentConfig,
    *,
    num_classes: int,
    draws: Draws,
    mixed: Mixing | None = None,
    kept: np.ndarray | None = None,
    mirrored: np.ndarray | None = None,
    further: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Augments images of a training batch: all of it, or some rows, which become what they are in the whole batch.

    If `resized_crop` is on, the images are the parts that `random_boxes` has chosen. Order: flip and crop, RandAugment, 3-Augment,
    color jitter, random erasing, label smoothing, MixUp or CutMix.

    Args:
        images: uint8 (n, H, W, C), the rows of `draws`. Not modified.
        labels: Theirs: integers (n,), 0 to num_classes - 1, or zeros and ones (n, K).
        config: The `AugmentConfig`.
        num_classes: K.
        draws: Draws the random parameters of each image.
        mixed: How `mixing` mixes the batch; None = not at all.
        kept: The rows of the result (m,), whose partners are among the images too; None = all of `draws`.
        mirrored: With `flip: alternating`, whether each of the images is mirrored, booleans (n,).
        further: More targets of the images, float32 (n, F), which are mixed as the labels are.

    Returns:
        uint8 images (m, H, W, C) and float32 targets (m, K); their rows sum to 1 where an image has one class. With `further`
        (m, K + F).

    Raises:
        ValueError: dtype or rank of `images` are wrong, `crop` is not smaller than the image, or colours would be changed where
            images are neither grey nor RGB.
    """
    if images.dtype != np.uint8 or images.ndim != 4:
        raise ValueError(f"images: received {images.dtype} of shape {images.shape}; allowed: uint8 (B, H, W, C)")
    config.check_channels(images.shape[-1])
    if config.flip == ALTERNATING and mirrored is None:
        raise ValueError("mirrored: received none; allowed with flip=alternating: booleans, one an image")
    flip = mirrored if config.flip == ALTERNATING else config.flip
    images = flip_and_crop(images, flip, 0 if config.resized_crop else config.crop, draws)
    for _ in range(config.randaugment_layers):
        operation = draws.integers(0, len(RANDAUGMENT))
        apply_operations(images, operation, draws.choice([-0.1, 0.1]) * config.randaugment_magnitude)
    if config.three_augment:
        three_augment(images, draws)
    if config.color_jitter:
        color_jitter(images, config.color_jitter, draws)
    if config.erasing:
        erase(images, config.erasing, draws)
    targets = targets_of(labels, num_classes, config.label_smoothing)
    if further is not None:
        targets = np.concatenate([targets, further], axis=1)
    if mixed is not None:
        images, targets = mixed.apply(images, targets, draws.rows, draws.rows if kept is None else kept)
    return images, targets


def mixing(config: AugmentConfig, rng: np.random.Generator, count: int, size: tuple[int, int], over: bool = False) -> Mixing | None:
    """What MixUp and CutMix do to a batch; None if they are off.

    Args:
        config: The `AugmentConfig`.
        rng: As of `Mixing.draw`.
        count: Images of the batch.
        size: Their height and width.
        over: Whether `mix_until` has passed.
    """
    if not (config.mixup or config.cutmix) or over:
        return None
    return Mixing.draw(rng, count, size, mixup=config.mixup, cutmix=config.cutmix, probability=config.mix_probability)


def random_boxes(sizes: np.ndarray, smallest: float, ratio: float, draws: Draws) -> np.ndarray:
    """The parts that RandomResizedCrop takes (arXiv 1409.4842): area and aspect ratio are random, the place too.

    A part that does not fit into its picture is drawn again, ten times in all; then the largest part of an allowed ratio is taken
    from the middle.

    Args:
        sizes: Height and width of each picture (n, 2).
        smallest: Smallest share of the area; the largest is 1.
        ratio: The aspect ratio is at most this and at least 1 / this, uniform in its logarithm.
        draws: Draws all of it; the pictures are its rows.

    Returns:
        Top, left, height and width of each part (n, 4), as shares of its picture.
    """
    (heights, widths), count = np.asarray(sizes, np.float64).T, len(sizes)
    area = draws.uniform(smallest, 1, 10)
    aspect = np.exp(draws.uniform(-math.log(ratio), math.log(ratio), 10)) * heights / widths
    rows, columns, place = np.sqrt(area / aspect), np.sqrt(area * aspect), draws.uniform(0, 1, 2)
    fits = (rows <= 1) & (columns <= 1)  # (10, n)
    found, first = fits.any(axis=0), (fits.argmax(axis=0), np.arange(count))
    rows = np.where(found, rows[first], np.minimum(1, ratio * widths / heights))
    columns = np.where(found, columns[first], np.minimum(1, ratio * heights / widths))
    place = np.where(found, place, 0.5)
    return np.stack([place[0] * (1 - rows), place[1] * (1 - columns), rows, columns], axis=1)


def flip_and_crop(images: np.ndarray, flip: bool | np.ndarray, crop: int, draws: Draws) -> np.ndarray:
    """Mirrors images, adds a reflected border of `crop` pixels and crops back at a random place: one gather.

    `flip` says whether each image is mirrored, (n,), or whether each is with probability 0.5.
    """
    count, height, width, _ = images.shape
    if crop >= min(height, width):
        raise ValueError(f"crop: received {crop}; allowed: less than the images' {height}x{width} pixels")
    rows = np.broadcast_to(np.arange(height), (count, height))
    columns = np.broadcast_to(np.arange(width), (count, width))
    if flip is True:
        flip = draws.random() >= 0.5
    if flip is not False:
        columns = np.where(flip[:, None], width - 1 - columns, columns)
    if crop:
        top, left = draws.integers(-crop, crop + 1, 2)[..., None]
        rows, columns = reflect(rows + top, height), reflect(columns + left, width)
    return gather(images, rows[:, :, None], columns[:, None, :])


def three_augment(images: np.ndarray, draws: Draws) -> None:
    """3-Augment of DeiT III (https://arxiv.org/abs/2204.07118): makes each image grey, solarizes it or blurs it, in place.

    The blur's largest sigma is 2 pixels for 224-pixel images, as in the paper. For other sizes it is in proportion, at least 1.
    """
    choice = draws.integers(0, 3)
    sigma = draws.uniform(0.1, max(1.0, 2 * min(images.shape[1:3]) / 224))
    greyed, solarized, blurred = (np.flatnonzero(choice == index) for index in range(3))
    images[greyed] = saturate(images[greyed], np.zeros(len(greyed)))
    images[solarized] = np.where(images[solarized] < 128, images[solarized], 255 - images[solarized])
    images[blurred] = blur(images[blurred], sigma[blurred])


def color_jitter(images: np.ndarray, strength: float, draws: Draws) -> None:
    """Scales brightness, then contrast, then saturation by factors from 1 - strength to 1 + strength, in place."""
    bright, contrasted, saturated = draws.uniform(-strength, strength, 3)
    images[:] = look_up(images, brightness(images, bright / 0.9))  # RandAugment's level 1 is a factor of 1 + 0.9
    images[:] = look_up(images, contrast(images, contrasted / 0.9))
    images[:] = saturate(images, 1 + saturated)


def erase(images: np.ndarray, probability: float, draws: Draws) -> None:
    """Random erasing (https://arxiv.org/abs/1708.04896) in place: 2% to 33% of the area, aspect 0.3 to 3.3, uniform noise."""
    _, height, width, channels = images.shape
    erased = draws.random() < probability
    area = draws.uniform(0.02, 0.33) * height * width
    aspect = np.exp(draws.uniform(math.log(0.3), math.log(1 / 0.3)))
    rows = np.clip(np.round(np.sqrt(area * aspect)), 1, height).astype(int)
    columns = np.clip(np.round(np.sqrt(area / aspect)), 1, width).astype(int)
    top = (draws.random() * (height - rows + 1)).astype(int)
    left = (draws.random() * (width - columns + 1)).astype(int)
    seeds = draws.integers(0, 2**63)
    for i in np.flatnonzero(erased):
        noise = np.random.default_rng(seeds[i]).integers(256, size=(rows[i], columns[i], channels), dtype=np.uint8)
        images[i, top[i] : top[i] + rows[i], left[i] : left[i] + columns[i]] = noise
