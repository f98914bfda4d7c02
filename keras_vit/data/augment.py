"""What happens to a training batch: augmentation in NumPy, a whole uint8 batch at a time, every parameter drawn per image.

One implementation for every backend, so that the same seed gives the same pixels everywhere. Only NumPy is needed.

Shapes: B images of a batch, n images of it that share an operation, H height, W width, C channels (1 or 3), K classes.
"""

import dataclasses
import math

import numpy as np

from keras_vit.checks import check_choice, check_int, check_number


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """What is done to training images and their targets. Evaluation never augments.

    Args:
        flip: Mirror each image left to right with probability 0.5 (default on; switch off for digits and letters).
        crop: Pixels of reflected border added on each side before a random crop back to the size; 0 = off (default 4).
        randaugment_layers: RandAugment operations applied to each image, one after the other; 0 = off (default 0).
        randaugment_magnitude: Strength of RandAugment's operations, 0 (none) to 10 (strongest); default 9.
        three_augment: DeiT III's 3-Augment: each image is made grey, solarized or blurred (default off).
        color_jitter: Brightness, contrast and saturation are scaled by factors from 1 - this to 1 + this; 0 = off, at most 1
            (default 0).
        erasing: Probability, 0 to 1, that a rectangle of 2% to 33% of the image is replaced by noise (default 0).
        mixup: alpha of the Beta(alpha, alpha) that MixUp's weight is drawn from; 0 = off (default 0).
        cutmix: alpha of the Beta(alpha, alpha) that CutMix's area is drawn from; 0 = off (default 0). With both MixUp and
            CutMix on, each mixed image takes one of them with equal probability.
        mix_probability: Share of images, 0 to 1, that are mixed while MixUp or CutMix is on (default 1).
        mix_until: Fraction of the training steps, 0 to 1, after which mixing stops (default 1 = never).
        label_smoothing: Share of the target spread evenly over all classes, 0 to below 1 (default 0).

    Raises:
        ValueError: a value is outside its range; the message names field, value and range.
    """

    flip: bool = True
    crop: int = 4
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
        for name in ("flip", "three_augment"):
            check_choice(name, getattr(self, name), (False, True))
        for name in ("crop", "randaugment_layers"):
            check_int(name, getattr(self, name), at_least=0)
        for name in ("color_jitter", "erasing", "mix_probability", "mix_until"):
            check_number(name, getattr(self, name), at_least=0, at_most=1)
        for name in ("mixup", "cutmix"):
            check_number(name, getattr(self, name), at_least=0)
        check_number("randaugment_magnitude", self.randaugment_magnitude, at_least=0, at_most=10)
        check_number("label_smoothing", self.label_smoothing, at_least=0, below=1)


def augment(
    images: np.ndarray,
    labels: np.ndarray,
    config: AugmentConfig,
    *,
    num_classes: int,
    rng: np.random.Generator,
    progress: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Augments one training batch.

    Order: flip and crop, RandAugment, 3-Augment, color jitter, random erasing, label smoothing, MixUp or CutMix.

    Args:
        images: uint8 (B, H, W, C), C 1 or 3. Not modified.
        labels: integers (B,), 0 to num_classes - 1.
        config: the `AugmentConfig`.
        num_classes: K.
        rng: the `np.random.Generator` that every random parameter is drawn from.
        progress: fraction of the training steps already done, 0 to 1.

    Returns:
        uint8 images (B, H, W, C) and float32 targets (B, K) whose rows sum to 1.

    Raises:
        ValueError: dtype, rank or channels of `images` are wrong, or `crop` is not smaller than the image.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise ValueError(f"images must be uint8 (B, H, W, 1 or 3). Received: {images.dtype} {images.shape}")
    images = flip_and_crop(images, config.flip, config.crop, rng)
    for _ in range(config.randaugment_layers):
        operation = rng.integers(len(RANDAUGMENT), size=len(images))
        level = rng.choice([-0.1, 0.1], size=len(images)) * config.randaugment_magnitude
        apply_operations(images, operation, level)
    if config.three_augment:
        three_augment(images, rng)
    if config.color_jitter:
        color_jitter(images, config.color_jitter, rng)
    if config.erasing:
        erase(images, config.erasing, rng)
    targets = np.full((len(labels), num_classes), config.label_smoothing / num_classes, np.float32)
    targets[np.arange(len(labels)), labels] += 1 - config.label_smoothing
    if (config.mixup or config.cutmix) and progress < config.mix_until:
        images, targets = mix(images, targets, config, rng)
    return images, targets


def flip_and_crop(images: np.ndarray, flip: bool, crop: int, rng: np.random.Generator) -> np.ndarray:
    """Mirrors half of the images and crops each at a random place out of its reflected border of `crop` pixels: one gather."""
    count, height, width, _ = images.shape
    if crop >= min(height, width):
        raise ValueError(f"crop must be smaller than the image ({height}x{width} pixels). Received: {crop}")
    rows = np.broadcast_to(np.arange(height), (count, height))
    columns = np.broadcast_to(np.arange(width), (count, width))
    if flip:
        columns = np.where(rng.random((count, 1)) < 0.5, columns, width - 1 - columns)
    if crop:
        top, left = rng.integers(-crop, crop, size=(2, count, 1), endpoint=True)
        rows, columns = _reflect(rows + top, height), _reflect(columns + left, width)
    return _gather(images, rows[:, :, None], columns[:, None, :])


def _reflect(index, size):
    """Folds any integer index into 0..size - 1 by mirroring at the edge pixels, as `np.pad(mode="reflect")`."""
    period = max(2 * (size - 1), 1)
    index = index % period
    return np.minimum(index, period - index) if size > 1 else index


def _gather(images, rows, columns):
    """images[b, rows[b, y, x], columns[b, y, x]] for every pixel; `rows` and `columns` broadcast to (n, H, W)."""
    count, height, width, channels = images.shape
    first = (np.arange(count) * height)[:, None, None]
    return images.reshape(-1, channels).take((first + rows) * width + columns, axis=0)  # (n, H, W, C)


# RandAugment (https://arxiv.org/abs/1909.13719), the fourteen operations of its paper. Each takes `level` (n,) from -1 to 1;
# 0 leaves the image as it is. Brightness, contrast, saturation and sharpness follow Pillow's `ImageEnhance` with factors
# 1 - 0.9 to 1 + 0.9; autocontrast and equalize follow `ImageOps` and have no level.
# An operation on single pixels is a table of 256 entries a channel, a geometric one is an affine matrix: so all images of a batch
# pass through one gather each, whichever operations they drew.


def _enhancement(level):
    return (1 + 0.9 * np.asarray(level, np.float32))[:, None, None]  # (n, 1, 1)


def _to_uint8(values):
    return np.clip(values + 0.5, 0, 255).astype(np.uint8)


def _grey(images):
    """Luma of ITU-R 601, as Pillow's mode "L": float32 (n, H, W, 1)."""
    if images.shape[-1] == 1:
        return images.astype(np.float32)
    red, green, blue = (images[..., channel].astype(np.float32) for channel in range(3))
    return (0.299 * red + 0.587 * green + 0.114 * blue)[..., None]


_VALUES = np.arange(256, dtype=np.float32)


def _brightness(images, level):
    return _to_uint8(_VALUES * _enhancement(level))  # (n, 1, 256)


def _contrast(images, level):
    mean = np.floor(_grey(images).mean(axis=(1, 2)) + 0.5)[:, None]  # (n, 1, 1)
    return _to_uint8(mean + _enhancement(level) * (_VALUES - mean))  # (n, 1, 256)


def _posterize(images, level):
    """Keeps 8 (level 0) to 4 (level 1) bits a value."""
    dropped = np.round(4 * np.abs(level)).astype(np.uint8)[:, None, None]
    return _VALUES.astype(np.uint8) >> dropped << dropped  # (n, 1, 256)


def _solarize(images, level):
    """Inverts values from 256 (level 0: none) or 0 (level 1: all) upwards."""
    threshold = 256 * (1 - np.abs(level))[:, None, None]
    return np.where(threshold > _VALUES, _VALUES, 255 - _VALUES).astype(np.uint8)  # (n, 1, 256)


def _autocontrast(images, level):
    low, high = (f(images, axis=(1, 2)).astype(np.float32)[..., None] for f in (np.min, np.max))  # (n, C, 1)
    stretched = (_VALUES - low) * (255 / np.maximum(high - low, 1))
    return np.clip(np.where(high > low, stretched, _VALUES), 0, 255).astype(np.uint8)  # (n, C, 256)


def _equalize(images, level):
    count, height, width, channels = images.shape
    histogram_of = 256 * np.arange(count * channels).reshape(count, 1, 1, channels)
    histogram = np.bincount((images + histogram_of).ravel(), minlength=count * channels * 256).reshape(count, channels, 256)
    brightest = images.max(axis=(1, 2))[..., None].astype(np.int64)  # (n, C, 1)
    step = (height * width - np.take_along_axis(histogram, brightest, axis=-1)) // 255
    darker = np.cumsum(histogram, axis=-1) - histogram
    equalized = np.minimum((darker + step // 2) // np.maximum(step, 1), 255)
    return np.where(step > 0, equalized, _VALUES).astype(np.uint8)  # (n, C, 256)


def _matrix(height, width, level, a=1.0, b=0.0, c=0.0, d=0.0, e=1.0, f=0.0):
    """Where an output pixel is read, in pixels from the centre: x' = a x + b y + c, y' = d x + e y + f. float32 (n, 6)."""
    return np.stack([np.broadcast_to(value, level.shape) for value in (a, b, c, d, e, f)], axis=1).astype(np.float32)


def _rotate(height, width, level):
    """By up to 30 degrees, either way."""
    cos, sin = np.cos(level * math.radians(30)), np.sin(level * math.radians(30))
    return _matrix(height, width, level, a=cos, b=-sin, d=sin, e=cos)


def _shear_x(height, width, level):
    return _matrix(height, width, level, b=0.3 * level)


def _shear_y(height, width, level):
    return _matrix(height, width, level, d=0.3 * level)


def _translate_x(height, width, level):
    """By up to 10/32 of the width, either way."""
    return _matrix(height, width, level, c=width * 10 / 32 * level)


def _translate_y(height, width, level):
    return _matrix(height, width, level, f=height * 10 / 32 * level)


def _saturation(images, level):
    return _saturate(images, 1 + 0.9 * level)


def _saturate(images, factor):
    """0 is grey, 1 the image, above 1 more colorful. Grey images stay as they are."""
    grey = np.floor(_grey(images) + 0.5)
    return _to_uint8(grey + np.asarray(factor, np.float32)[:, None, None, None] * (images - grey))


def _sharpness(images, level):
    """Blends with a 3x3 smoothing (centre 5, neighbours 1, over 13); the outermost pixels stay, as in Pillow."""
    if min(images.shape[1:3]) < 3:
        return images
    rows = images.astype(np.float32)
    rows = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]
    centre = images[:, 1:-1, 1:-1].astype(np.float32)
    smooth = np.floor((rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:] + 4 * centre) / 13 + 0.5)
    sharp = images.copy()
    sharp[:, 1:-1, 1:-1] = _to_uint8(smooth + _enhancement(level)[..., None] * (centre - smooth))
    return sharp


_TABLES = {
    "brightness": _brightness,
    "contrast": _contrast,
    "posterize": _posterize,
    "solarize": _solarize,
    "autocontrast": _autocontrast,
    "equalize": _equalize,
}
_MATRICES = {
    "rotate": _rotate,
    "shear_x": _shear_x,
    "shear_y": _shear_y,
    "translate_x": _translate_x,
    "translate_y": _translate_y,
}
_FILTERS = {"saturation": _saturation, "sharpness": _sharpness}
RANDAUGMENT = ("identity", *_TABLES, *_MATRICES, *_FILTERS)


def apply_operations(images: np.ndarray, operation: np.ndarray, level: np.ndarray) -> None:
    """Applies RANDAUGMENT[operation[b]] with strength level[b] to image b, in place.

    Args:
        images: uint8 (B, H, W, C).
        operation: integers (B,), indices into `RANDAUGMENT`.
        level: floats (B,) from -1 to 1; 0 leaves the image as it is (but autocontrast and equalize, which have no level).
    """
    count, height, width, channels = images.shape
    tables, matrices = np.zeros((count, channels, 256), np.uint8), np.zeros((count, 6), np.float32)
    looked_up, moved = np.zeros((2, count), bool)
    for index in np.unique(operation):
        name, chosen = RANDAUGMENT[index], np.flatnonzero(operation == index)
        if name in _TABLES:
            tables[chosen], looked_up[chosen] = _TABLES[name](images[chosen], level[chosen]), True
        elif name in _MATRICES:
            matrices[chosen], moved[chosen] = _MATRICES[name](height, width, level[chosen]), True
        elif name in _FILTERS:
            images[chosen] = _FILTERS[name](images[chosen], level[chosen])
    if looked_up.any():
        images[looked_up] = _look_up(images[looked_up], tables[looked_up])
    if moved.any():
        images[moved] = _affine(images[moved], matrices[moved])


def _look_up(images, tables):
    """tables[b, c, images[b, y, x, c]]; `tables` uint8 (n, C, 256) or (n, 1, 256)."""
    count, height, width, channels = images.shape
    tables = np.broadcast_to(tables, (count, channels, 256))
    # Rows of H·W·C values and not (…, C): NumPy's inner loop is the last axis, and three elements are too short for it.
    table_of = 256 * np.tile(np.arange(channels), height * width) + 256 * channels * np.arange(count)[:, None]
    return tables.ravel().take(images.reshape(count, -1) + table_of).reshape(images.shape)


def _affine(images, matrices):
    """Bilinear reading at the affine image of every pixel; `matrices` float32 (n, 6) as of `_matrix`.

    Outside lies the reflected image: a constant would draw an edge that tells the operation, and its right value depends on
    the data (mean grey on photographs, black on digits).
    """
    count, height, width, _ = images.shape
    a, b, c, d, e, f = matrices.T[:, :, None, None]  # each (n, 1, 1)
    c, f = c + np.float32((width - 1) / 2), f + np.float32((height - 1) / 2)
    x = np.arange(width, dtype=np.float32) - np.float32((width - 1) / 2)
    y = np.arange(height, dtype=np.float32)[:, None] - np.float32((height - 1) / 2)
    (x, left), (y, top) = _fold(a * x + (b * y + c), width), _fold(d * x + (e * y + f), height)  # each (n, H, W)
    upper_left = (np.arange(count)[:, None, None] * height + top) * width + left
    down, right = width * (height > 1), int(width > 1)
    result = np.empty_like(images)
    for channel in range(images.shape[-1]):  # a plane at a time: NumPy is slow on a last axis of three
        plane = images[..., channel].astype(np.float32).ravel()
        upper, lower = plane.take(upper_left), plane[down:].take(upper_left)
        upper += x * (plane[right:].take(upper_left) - upper)
        lower += x * (plane[down + right :].take(upper_left) - lower)
        upper += y * (lower - upper)
        upper += np.float32(0.5)
        result[..., channel] = upper
    return result


def _fold(position, size):
    """Mirrors float positions into 0..size - 1; returns their distance from a pixel that has a next one, and that pixel."""
    if size == 1:
        return np.zeros_like(position), np.zeros(position.shape, np.intp)
    position *= np.float32(0.5 / (size - 1))
    position -= np.rint(position)
    np.abs(position, out=position)
    position *= np.float32(2 * (size - 1))
    pixel = np.minimum(position.astype(np.intp), size - 2)
    position -= pixel
    return position, pixel


def three_augment(images: np.ndarray, rng: np.random.Generator) -> None:
    """3-Augment of DeiT III (https://arxiv.org/abs/2204.07118): grey, solarize or blur, one an image, in place.

    The blur's sigma is 0.1 to 2 pixels for 224-pixel images as in the paper, and never narrower than 0.1 to 1 pixel.
    """
    choice = rng.integers(3, size=len(images))
    sigma = rng.uniform(0.1, max(1.0, 2 * min(images.shape[1:3]) / 224), size=len(images))
    grey, solarized, blurred = (np.flatnonzero(choice == index) for index in range(3))
    images[grey] = _saturate(images[grey], np.zeros(len(grey)))
    images[solarized] = np.where(images[solarized] < 128, images[solarized], 255 - images[solarized])
    images[blurred] = blur(images[blurred], sigma[blurred])


def blur(images: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    """Gaussian blur with one `sigma` (n,), in pixels, an image; reflected border. uint8 (n, H, W, C)."""
    if not len(images):
        return images
    _, height, width, _ = images.shape
    radius = math.ceil(3 * sigma.max())
    offsets = np.arange(-radius, radius + 1)
    weights = np.exp(-0.5 * (offsets / sigma[:, None]) ** 2)
    weights = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)[:, :, None, None, None]  # (n, T, 1, 1, 1)
    values = images.astype(np.float32)
    for axis, size in ((1, height), (2, width)):
        shifted = (values.take(_reflect(np.arange(size) + offset, size), axis=axis) for offset in offsets)
        values = sum(weights[:, tap] * value for tap, value in enumerate(shifted))
    return _to_uint8(values)


def color_jitter(images: np.ndarray, strength: float, rng: np.random.Generator) -> None:
    """Scales brightness, then contrast, then saturation by factors from 1 - strength to 1 + strength, in place."""
    brightness, contrast, saturation = rng.uniform(-strength, strength, size=(3, len(images)))
    images[:] = _look_up(images, _brightness(images, brightness / 0.9))  # these levels count 0.9 a unit
    images[:] = _look_up(images, _contrast(images, contrast / 0.9))
    images[:] = _saturate(images, 1 + saturation)


def erase(images: np.ndarray, probability: float, rng: np.random.Generator) -> None:
    """Random erasing (https://arxiv.org/abs/1708.04896) in place: 2% to 33% of the area, aspect 0.3 to 3.3, uniform noise."""
    count, height, width, channels = images.shape
    erased = rng.random(count) < probability
    area = rng.uniform(0.02, 0.33, size=count) * height * width
    aspect = np.exp(rng.uniform(math.log(0.3), math.log(1 / 0.3), size=count))
    rows = np.clip(np.round(np.sqrt(area * aspect)), 1, height).astype(int)
    columns = np.clip(np.round(np.sqrt(area / aspect)), 1, width).astype(int)
    top = (rng.random(count) * (height - rows + 1)).astype(int)
    left = (rng.random(count) * (width - columns + 1)).astype(int)
    for i in np.flatnonzero(erased):
        noise = rng.integers(256, size=(rows[i], columns[i], channels), dtype=np.uint8)
        images[i, top[i] : top[i] + rows[i], left[i] : left[i] + columns[i]] = noise


def mix(images: np.ndarray, targets: np.ndarray, config: AugmentConfig, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """MixUp (https://arxiv.org/abs/1710.09412) or CutMix (https://arxiv.org/abs/1905.04899), each image with a partner.

    The partner is another image of the batch, `shift` places on; weight and box are each image's own. A target's weight is the
    one that the pixels really have: MixUp's is rounded to 1/256 for both, CutMix's is counted from the clipped box.

    Returns:
        uint8 images (B, H, W, C), float32 targets (B, K).
    """
    count, height, width, _ = images.shape
    if count < 2:
        return images, targets
    mixed = rng.random(count) < config.mix_probability
    cut = rng.random(count) < (0.5 if config.mixup and config.cutmix else float(config.cutmix > 0))
    weight = np.round(256 * _beta(config.mixup, count, rng)).astype(np.uint16)  # of the image itself, of 256
    share = np.sqrt(1 - _beta(config.cutmix, count, rng))  # of the box's sides
    centre_y, centre_x = rng.integers(height, size=count), rng.integers(width, size=count)
    shift = rng.integers(1, count)
    partner, partner_targets = np.roll(images, shift, axis=0), np.roll(targets, shift, axis=0)

    own = np.ones(count, np.float32)
    images = images.copy()
    blended = np.flatnonzero(mixed & ~cut)
    w = weight[blended][:, None, None, None]
    images[blended] = (images[blended] * w + partner[blended] * (256 - w) + 128) >> 8  # 255 * 256 + 128 fits 16 bits
    own[blended] = weight[blended] / 256
    rows, columns = np.round(height * share).astype(int), np.round(width * share).astype(int)
    top, left = centre_y - rows // 2, centre_x - columns // 2
    bottom, right = np.minimum(top + rows, height), np.minimum(left + columns, width)
    top, left = np.maximum(top, 0), np.maximum(left, 0)
    for i in np.flatnonzero(mixed & cut):
        images[i, top[i] : bottom[i], left[i] : right[i]] = partner[i, top[i] : bottom[i], left[i] : right[i]]
        own[i] = 1 - (bottom[i] - top[i]) * (right[i] - left[i]) / (height * width)
    return images, own[:, None] * targets + (1 - own)[:, None] * partner_targets


def _beta(alpha, count, rng):
    return rng.beta(alpha, alpha, size=count) if alpha else np.ones(count)
