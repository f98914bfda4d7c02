"""`augment.flip: alternating`: which images are mirrored in which epoch, and how the setting is stated."""

import numpy as np
import pytest
from helpers import one_line_error, random_pixels

from keras_vit.data.augment import AugmentConfig, augment
from keras_vit.data.batches import training_batch
from keras_vit.data.dataset import Split
from keras_vit.data.seeds import Draws
from keras_vit.recipes.parse import load_recipe, parse_recipe

ALTERNATING = AugmentConfig(flip="alternating", crop=0)
COUNT, SIZE = 90, 8


def numbered(labels):
    """Images of two pixels: the number of the image, then 255."""
    images = np.full((COUNT, 1, 2, 1), 255, np.uint8)
    images[:, 0, 0, 0] = np.arange(COUNT)
    return Split(images, labels)


def shown(split, epoch, **settings):
    """(number, whether it is mirrored) of each image of an epoch, in order."""
    found, steps = [], COUNT // SIZE
    for step in range(epoch * steps, (epoch + 1) * steps):
        known = {"num_classes": 3, "batch_size": SIZE, "seed": 4, **settings}
        images, _ = training_batch(split, ALTERNATING, step, **known)
        found += [(int(pair.min()), bool(pair[0] == 255)) for pair in images.reshape(-1, 2)]
    return found


def test_each_image_is_mirrored_in_every_second_epoch():
    split = numbered(np.arange(COUNT) % 3)
    epochs = [dict(shown(split, epoch)) for epoch in range(4)]
    assert 0.3 < np.mean([*epochs[0].values()]) < 0.7
    for number in range(COUNT):
        seen = {
            mirrored ^ (epoch % 2 == 1)
            for epoch, each in enumerate(epochs)
            for mirrored in [each.get(number)]
            if mirrored is not None
        }
        assert len(seen) == 1, number
    assert shown(split, 2, seed=5) != shown(split, 2)
    assert dict(shown(split, 0, seed=5)) != epochs[0]


def test_balanced_sampling_alternates_within_an_epoch_too():
    labels = np.r_[np.zeros(80, int), np.ones(6, int), np.full(4, 2)]  # of 30 places each class has, the last has seven an image
    turns = {}
    for number, mirrored in shown(numbered(labels), 0, sampling="balanced"):
        turns.setdefault(number, []).append(mirrored)
    often = [seen for seen in turns.values() if len(seen) > 3]
    assert len(often) >= 9
    for seen in often:
        assert seen == [seen[0] ^ (turn % 2 == 1) for turn in range(len(seen))]


def test_parts_of_a_mixed_batch_are_the_batch():
    config = AugmentConfig(flip="alternating", crop=1, mixup=0.8, cutmix=1.0)
    split, known = (
        Split(random_pixels(40, 6, 10, 3), np.arange(40) % 4),
        {"num_classes": 4, "batch_size": 8, "seed": 1},
    )
    whole = training_batch(split, config, 7, **known)
    parts = [training_batch(split, config, 7, part=(index, 4), **known) for index in range(4)]
    for index in range(2):
        np.testing.assert_array_equal(np.concatenate([part[index] for part in parts]), whole[index])


def test_other_settings_draw_as_before():
    """Crops of an image that is not mirrored are those without flips."""
    images, labels = random_pixels(6, 9, 7, 3), np.arange(6)
    mirrored = np.array([True, False] * 3)

    def made(config, **given):
        return augment(images, labels, config, num_classes=6, draws=Draws(np.random.default_rng(0), 6), **given)[0]

    plain, found = made(AugmentConfig(flip=False, crop=2)), made(AugmentConfig(flip="alternating", crop=2), mirrored=mirrored)
    np.testing.assert_array_equal(found[~mirrored], plain[~mirrored])
    np.testing.assert_array_equal(found[mirrored], plain[mirrored][:, :, ::-1])
    with one_line_error(r"^mirrored: received none; allowed with flip=alternating: booleans, one an image$"):
        made(ALTERNATING)


@pytest.mark.parametrize(("text", "value"), [("alternating", "alternating"), ("true", True), ("false", False)])
def test_the_setting_in_files_and_on_command_lines(tmp_path, text, value):
    file = tmp_path / "mine.yaml"
    file.write_text(f"data: digits\naugment: {{flip: {text}}}\n")
    for recipe in (
        load_recipe(file),
        load_recipe("quick", augment={"flip": value}),
        parse_recipe("quick", ["--augment.flip", text])[0],
        parse_recipe("quick", [f"--augment.flip={text}"])[0],
    ):
        assert recipe.augment.flip is value or recipe.augment.flip == value == "alternating"
    again = tmp_path / "again.yaml"
    again.write_text(recipe.to_yaml())
    assert load_recipe(again).augment == recipe.augment
    stages = [{"until": 0.5, "augment": {"flip": value}}]
    assert load_recipe("digits", train={"stages": stages}).stages()[0][2].augment.flip == value


def test_what_is_no_flip(tmp_path):
    with one_line_error(r"^flip: received 'sometimes'; allowed: False, True, alternating$"):
        AugmentConfig(flip="sometimes")
    with one_line_error(r"augment.flip: received 'sometimes'; allowed: .*alternating.*true or false"):
        parse_recipe("quick", ["--augment.flip", "sometimes"])
    file = tmp_path / "mine.yaml"
    file.write_text("augment: {flip: 1}\n")
    with one_line_error(r"augment.flip: received 1; allowed: alternating or true or false$"):
        load_recipe(file)
