"""Some test images of a run as picture files."""

from pathlib import Path

import numpy as np

from keras_vit.data.decode import ALPHA, CONVERTED, picture
from keras_vit.data.labels import is_multi
from keras_vit.runs.evaluation import own_test_images
from keras_vit.runs.folder import RunFolder

SOUGHT = 1000  # test images among which one of each class is looked for


def write_examples(run: RunFolder, folder: Path, count: int) -> tuple[list[Path], list[str]]:
    """Writes test images of a run into a folder, as PNG files of the model's size; of different classes as far as there are.

    Args:
        run: The `RunFolder`.
        folder: Where to write.
        count: Images at most.

    Returns:
        The files, and notes that say why there are none.
    """
    if not count:
        return [], []
    channels = run.recipe.model.channels
    if channels not in (*CONVERTED, *ALPHA):
        return [], [f"no examples: there is no PNG of {channels} channels"]
    test, reason = own_test_images(run)
    if test is None:
        return [], [f"no examples: {reason}"]
    files = []
    for number, image in enumerate(test.images(spread(test.labels, count)), 1):
        files.append(folder / f"test-{number}.png")
        as_file(image).save(files[-1])
    return files, []


def spread(labels, count):
    """Indices of images, one of each class first."""
    rows = np.arange(min(SOUGHT, len(labels)))
    first = rows if is_multi(labels) else np.sort(np.unique(labels[rows], return_index=True)[1])
    rest = np.setdiff1d(rows, first)
    return np.sort(np.concatenate([first, rest])[:count])


def as_file(image):
    """uint8 (H, W, C) as a Pillow image that PNG can hold and `read_image` reads as it is."""
    from PIL import Image

    channels = image.shape[-1]
    return Image.fromarray(image) if channels in ALPHA else picture(image, channels)
