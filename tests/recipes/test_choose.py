"""Which recipe suits which data."""

import numpy as np
import pytest
from PIL import Image

from keras_vit.data.dataset import load_data
from keras_vit.recipes.choose import choose_recipe, picture_side


@pytest.mark.parametrize(
    ("side", "images", "accelerator", "recipe", "options"),
    [
        (32, 45_000, "", "quick", []),
        (32, 45_000, "GPU", "standard", []),
        (63, 60_000, "", "quick", []),
        (64, 850, "", "photos-scratch", ["--train.epochs=300"]),
        (224, 2**20, "", "photos-scratch", ["--train.epochs=10"]),
        (224, 49_999, "GPU", "photos-scratch", None),
        (224, 50_000, "GPU", "photos-gpu", []),
    ],
)
def test_recipe_of_data(side, images, accelerator, recipe, options):
    choice = choose_recipe(side, images, accelerator)
    assert choice.recipe == recipe
    assert options is None or choice.options == options
    for said in (recipe, f"{images:,} training pictures", f"{side} pixels", accelerator or "no accelerator"):
        assert said in choice.reason


def test_side_of_the_pictures_not_of_the_images(tmp_path):
    sizes = [(100, 80), (90, 200), (70, 300), (400, 110)]
    for index, size in enumerate(sizes):
        folder = tmp_path / "ab"[index % 2]
        folder.mkdir(exist_ok=True)
        Image.fromarray(np.full((*size, 3), 50 * index, np.uint8)).save(folder / f"{index}.png")
    data = load_data(f"folder:{tmp_path}", image_size=32, validation=0)
    left = sorted(min(size) for size in sizes)
    assert left[0] <= picture_side(data) <= left[-1]
    assert picture_side(load_data("digits", image_size=16, channels=1)) == 16
