"""A teacher's targets beside the labels of training batches, as a stream of batches needs them. Only NumPy is needed.

Shapes: N training images, B of a batch, H height, W width, C channels, K classes.
"""

import dataclasses
import functools
from collections.abc import Callable

import numpy as np

from keras_vit.data.seeds import VIEW, generator


@dataclasses.dataclass(frozen=True)
class Teaching:
    """Where the targets of a teacher come from: `answer` or `known`.

    Attributes:
        answer: Gives the targets, float32 (b, K), of a batch's augmented and mixed uint8 images (b, H, W, C), from the images, the
            step whose batch it is and their rows in it (b,). Several threads call it.
        known: Targets of the training images as they are, float32 (N, K), which are mixed as the labels are.
        views: Number of passes over the images whose batches come again and again; 0 = every pass has batches of its own.
    """

    answer: Callable[[np.ndarray, int, np.ndarray], np.ndarray] | None = None
    known: np.ndarray | None = None
    views: int = 0

    def stored_step(self, step: int, steps: int, seed: int) -> int:
        """The step of the first `views` passes whose batch is the batch of a step.

        Pass e repeats the batches of pass e % views, in an order that (seed, e) decides.

        Args:
            step: The training step.
            steps: Steps of a pass over the training images.
            seed: Of the training.
        """
        number, position = divmod(step, steps)
        if not self.views or number < self.views:
            return step
        return number % self.views * steps + int(order_of_views(steps, seed, number)[position])


@functools.lru_cache(maxsize=4)
def order_of_views(steps: int, seed: int, number: int) -> np.ndarray:
    return generator(VIEW, seed, number).permutation(steps)
