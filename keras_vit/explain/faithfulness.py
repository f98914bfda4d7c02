"""Whether heat maps say what a model looks at: what happens to its answer when it loses, or gets, the patches they name.

Shapes: B images, H height, W width, C channels, S steps.
"""

import dataclasses

import numpy as np
from scipy import stats

from keras_vit.checks import check_int
from keras_vit.explain.batches import check_classes, check_images, in_batches, logits
from keras_vit.explain.grids import to_pixels
from keras_vit.model.vit import ViT

STEPS = 16
ORDERS = 4  # random orders of the patches that a map is compared with


@dataclasses.dataclass(frozen=True)
class Faithfulness:
    """Areas below the curves of the class's probability over the share of the patches, for each image: (B,), from 0 to 1.

    Attributes:
        deletion: The most relevant patches are removed first: the smaller the better.
        insertion: They are shown first: the larger the better.
    """

    deletion: np.ndarray
    insertion: np.ndarray


def faithfulness(
    model: ViT, images: np.ndarray, maps: np.ndarray, classes: int | np.ndarray | None = None, *, steps: int = STEPS
) -> Faithfulness:
    """Deletion and insertion, by patches. A removed patch has the value 0, the mean of the normalised images.

    Args:
        model: A `ViT` with a head.
        images: (B, H, W, C), normalised, as the model takes them.
        maps: (B, rows, columns), as of `heat_maps`.
        classes: Whose probability counts; None = the predicted ones.
        steps: Parts in which the patches are removed or shown; at most as many as there are patches.

    Raises:
        ValueError: If images, maps or classes do not fit the model.

    Source: 'RISE' (arXiv 1806.07421), section 4.3, with patches for pixels.
    """
    images = check_images(model, images)
    classes, maps = check_classes(model, classes, images), np.asarray(maps)
    if maps.shape != (len(images), *model.config.grid_size):
        allowed = ", ".join(map(str, (len(images), *model.config.grid_size)))
        raise ValueError(f"maps: received shape {maps.shape}; allowed: ({allowed})")
    check_int("steps", steps, at_least=1)
    patches = maps[0].size
    ranks = (-maps).reshape(len(maps), patches).argsort(axis=1, kind="stable").argsort(axis=1).reshape(maps.shape)
    counts = np.unique(np.linspace(0, patches, steps + 1).round())  # patches that are removed, or shown
    first = [ranks < count for count in counts]
    deletion = [probability(model, images * ~to_pixels(model.config, mask), classes) for mask in first]
    insertion = [probability(model, images * to_pixels(model.config, mask), classes) for mask in first]
    areas = (np.trapezoid(np.stack(curve), counts / patches, axis=0) for curve in (deletion, insertion))
    return Faithfulness(*areas)


def of_random_orders(
    model: ViT, images: np.ndarray, classes: int | np.ndarray | None = None, *, steps: int = STEPS, seed: int = 0
) -> Faithfulness:
    """The mean `faithfulness` of a few random orders of the patches: what a map that knows nothing reaches."""
    rng, shape = np.random.default_rng(seed), (len(images), *model.config.grid_size)
    found = [faithfulness(model, images, rng.random(shape), classes, steps=steps) for _ in range(ORDERS)]
    return Faithfulness(*(np.mean([getattr(each, name) for each in found], axis=0) for name in ("deletion", "insertion")))


def probability(model, images, classes):
    """Of each image's class: (B,)."""
    values = in_batches(logits, model, images).astype(np.float64)
    values = np.exp(values - values.max(axis=1, keepdims=True))
    return values[np.arange(len(values)), classes] / values.sum(axis=1)


def shuffled_model(model: ViT, seed: int = 0) -> ViT:
    """A copy of a model that knows nothing: the values of each weight, in random places.

    Source: 'Sanity checks for saliency maps' (arXiv 1810.03292). The values are kept, as a new head of a `ViT` starts from zeros.
    """
    rng, copy = np.random.default_rng(seed), ViT(model.config, name=model.name, dtype=model.dtype_policy)
    copy.set_weights([rng.permutation(values.ravel()).reshape(values.shape) for values in model.get_weights()])
    return copy


def likeness(maps: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Spearman's rank correlation of the maps of each image: two (B, rows, columns) -> (B,); NaN where a map is constant.

    A method whose maps of a model and of its `shuffled_model` are alike does not show what the model has learned.
    """
    pairs = zip(maps.reshape(len(maps), -1), others.reshape(len(others), -1), strict=True)
    return np.array([stats.spearmanr(a, b).statistic if np.ptp(a) and np.ptp(b) else np.nan for a, b in pairs])
