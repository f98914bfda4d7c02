"""Pictures of explanations, and the command that makes them."""

import dataclasses

import numpy as np
import pytest
from helpers import error_line, random
from PIL import Image

import keras_vit
from keras_vit.cli.explain import main
from keras_vit.explain.methods import METHODS, heat_maps
from keras_vit.images import normalize
from keras_vit.parity import randomise
from keras_vit.recipes.parse import load_recipe
from keras_vit.recipes.schema import Recipe
from keras_vit.runs.explain_plots import overlay
from keras_vit.runs.folder import RunFolder

SHAPE = {"image_size": 8, "patch_size": 4, "width": 16, "depth": 2, "num_heads": 2, "mlp_dim": 16, "channels": 1}
NAMES = [*"0123456789"]


@pytest.fixture
def run(tmp_path):
    recipe = load_recipe("digits", model=SHAPE)
    run = RunFolder.create(tmp_path / "run", recipe)
    run.write_model(1, randomise(keras_vit.build_vit(dataclasses.replace(recipe.model, num_classes=10))))
    run.write_summary({"class_names": [*NAMES[:9], "<b>,\nnine"], "epochs": 0})
    return run


@pytest.fixture
def photo(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 15, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def explain(*arguments):
    main([str(argument) for argument in arguments])


def test_the_largest_value_is_light_and_the_smallest_dark():
    images = np.full((1, 4, 4, 3), 100, np.uint8)
    maps = np.array([[[0.0, 1.0], [2.0, 4.0]]])
    picture = overlay(images, maps).astype(int)
    assert picture.shape == (1, 4, 4, 3)
    light = picture.sum(axis=-1)[0]
    assert light.argmax() == 15
    assert light.argmin() == 0
    grey = 0.4 * 100  # black of the heat map lies over it
    np.testing.assert_allclose(picture[0, 0, 0], grey, atol=2)
    np.testing.assert_array_equal(overlay(images, 3 * maps - 5), picture.astype(np.uint8))  # each map has its own scale


def test_a_map_of_one_value_is_dark():
    assert overlay(np.zeros((1, 4, 4, 1), np.uint8), np.ones((1, 2, 2))).max() < 5


def test_without_pictures_examples_and_weights_are_drawn(run, capsys):
    explain(run.path)
    names = {"filters.png", "positions.png", "distances.png", "maps.png"}
    assert {path.name for path in (run.path / "explain").iterdir()} == names
    assert capsys.readouterr().out.count("written: ") == 4


def test_pictures_are_explained(run, photo, tmp_path, capsys):
    explain(run.path, photo, "--heads", "--arrays", tmp_path / "maps.npz", "--out", tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"maps.png", "heads-1.png"}
    with np.load(tmp_path / "maps.npz") as arrays:
        images = arrays["images"]
        recipe = run.recipe
        for method in METHODS:
            expected = heat_maps(run.model(), normalize(images, recipe.mean, recipe.std), method)
            np.testing.assert_allclose(arrays[method], expected, atol=1e-5)
    assert images.shape == (1, 8, 8, 1)


def test_a_class_is_named(run, photo, tmp_path):
    for name, file in (("3", "three.npz"), ("7", "seven.npz")):
        explain(run.path, photo, "--class", name, "--method", "legrad", "--arrays", tmp_path / file)
    with np.load(tmp_path / "three.npz") as three, np.load(tmp_path / "seven.npz") as seven:
        assert [*three] == ["images", "names", "labels", "legrad"]
        assert abs(three["legrad"] - seven["legrad"]).max() > 1e-4
        assert three["labels"][0].startswith("3, ")


def test_many_pictures_go_into_several_files_and_the_rest_is_said(run, tmp_path, capsys):
    for index in range(15):
        Image.fromarray(random(8, 8, seed=index).astype(np.uint8)).save(tmp_path / f"{index}.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    explain(run.path, tmp_path / "*.png", "--method", "rollout", "--most", "14")
    assert {path.name for path in (run.path / "explain").iterdir()} == {"maps-1.png", "maps-2.png"}
    assert "explained: the first 14 of 16 pictures" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["RUN", "PHOTO", "--class", "dog"], "--class: received 'dog'; allowed: "),
        (["RUN", "PHOTO", "--method", "gradcam"], "--method: received 'gradcam'; allowed: attention, rollout"),
        (["RUN", "PHOTO", "--most", "0"], "--most: received 0; allowed: an integer of at least 1"),
        (["RUN", "PHOTO", "--arrays", "maps.csv"], "--arrays: received 'maps.csv'; allowed: a file whose name ends in .npz"),
        (["RUN", "nothing.png"], "path: received 'nothing.png'; allowed: a picture"),
        (["RUN", "TEXT"], "path: 1 of 1 files could not be read"),
        (["nowhere"], "run: received 'nowhere', which is no folder"),
    ],
)
def test_mistakes_are_one_line(run, photo, tmp_path, capsys, arguments, message):
    (tmp_path / "text.png").write_text("no picture")
    places = {"RUN": run.path, "PHOTO": photo, "TEXT": tmp_path / "text.png"}
    assert message in error_line(capsys, explain, *(places.get(argument, argument) for argument in arguments))


def test_a_run_without_weights_is_refused(tmp_path, capsys):
    run = RunFolder.create(tmp_path / "new", load_recipe("digits", model=SHAPE))
    assert "which has no best.keras" in error_line(capsys, explain, run.path)


def test_data_that_is_gone_is_said(tmp_path, run, capsys):
    recipe = load_recipe("digits", model=SHAPE, data=f"folder:{tmp_path / 'gone'}")
    other = RunFolder.create(tmp_path / "other", recipe)
    other.write_model(1, run.model())
    explain(other.path)
    output = capsys.readouterr().out
    assert "no examples: " in output
    assert {path.name for path in (other.path / "explain").iterdir()} == {"filters.png", "positions.png"}


def test_a_run_that_starts_again_keeps_neither_explanations_nor_a_card(run):
    (run.path / "explain").mkdir()
    for name in ("explain/maps.png", "README.md", "report.html"):
        (run.path / name).write_text("of the run before")
    RunFolder.create(run.path, run.recipe, overwrite=True)
    assert sorted(path.name for path in run.path.iterdir()) == ["recipe.yaml"]


def test_data_without_test_images_is_said(run, monkeypatch, capsys):
    data = run.recipe.load_data()
    monkeypatch.setattr(Recipe, "load_data", lambda recipe: dataclasses.replace(data, test=None))
    explain(run.path, "--arrays", run.path / "maps.npz")
    output = " ".join(capsys.readouterr().out.split())
    assert "no examples: the data has no test images" in output
    assert "maps.npz: not written, as there is no image" in output
    assert not (run.path / "maps.npz").exists()
