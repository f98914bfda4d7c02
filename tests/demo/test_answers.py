"""What the page says of a picture: the numbers of `predict`, the maps of `explain`, and words for what is no picture."""

import concurrent.futures
import dataclasses

import numpy as np
import pytest
from demo.made import NAMES, make_run
from helpers import one_line_error

from keras_vit.data.decode import read_image
from keras_vit.explain.attention import attention_maps
from keras_vit.explain.methods import METHODS, OF_A_CLASS, heat_maps
from keras_vit.runs.explain_plots import overlay
from keras_vit.runs.prediction import model_input

pytest.importorskip("gradio")

from keras_vit.demo.answers import LAST, Viewer, distinct
from keras_vit.demo.examples import write_examples

CLOSE = 1e-6
SHOWN = (24 * 12, 24 * 16, 3)  # the picture's size on the page


def seen(viewer, file):
    """The picture as the model takes it, and as it is shown."""
    image, shown = (read_image(file, shape)[None] for shape in (viewer.classifier.shape, SHOWN))
    return model_input(viewer.model, image, viewer.mean, viewer.std), shown


def test_classes_are_those_of_predict(run, viewer, files):
    (wanted,) = run.predict(files["good.png"], top=5)
    found = viewer.answer(files["good.png"])
    assert [*found.classes] == wanted.classes
    assert len(found.classes) == 5
    np.testing.assert_allclose([*found.classes.values()], wanted.probabilities, rtol=0, atol=CLOSE)
    assert found.notes == []
    assert found.predict_ms > 0
    assert found.explain_ms > 0


def test_multi_label_runs_have_probabilities_of_their_own(tmp_path, files):
    run = make_run(tmp_path / "run", NAMES[:3], labels="multi")
    (wanted,) = run.predict(files["good.png"], top=3)
    found = Viewer.of_run(run).answer(files["good.png"])
    np.testing.assert_allclose([*found.classes.values()], wanted.probabilities, rtol=0, atol=CLOSE)
    assert abs(sum(wanted.probabilities) - 1) > 1e-3


@pytest.mark.parametrize("method", METHODS)
def test_pictures_are_those_of_explain(viewer, files, method):
    images, shown = seen(viewer, files["good.png"])
    found = viewer.answer(files["good.png"], method, explained="dog")
    label = viewer.class_names.index("dog")
    np.testing.assert_array_equal(found.picture, overlay(shown, heat_maps(viewer.model, images, method, label))[0])
    assert found.picture.shape == SHOWN
    assert np.ptp(found.picture) > 50


def test_the_predicted_class_is_explained_unless_another_is_named(viewer, files):
    best, *_, other = viewer.answer(files["good.png"]).classes
    for method in OF_A_CLASS:
        predicted, same, another = (viewer.answer(files["good.png"], method, explained=name).picture for name in ("", best, other))
        np.testing.assert_array_equal(predicted, same)
        assert (predicted != another).any()


def test_a_block_has_its_own_attention(viewer, files):
    images, shown = seen(viewer, files["good.png"])
    for block, wanted in ((0, 0), (1, 1), (LAST, 1)):
        found = viewer.answer(files["good.png"], "attention", block)
        maps = attention_maps(viewer.model, images)[:, wanted].mean(axis=1)
        np.testing.assert_array_equal(found.picture, overlay(shown, maps)[0])
    found = viewer.answer(files["good.png"], "attention", 7)
    assert found.notes == ["This run has 2 blocks: the attention of its last one is shown."]


def test_a_class_that_a_run_has_not(viewer, files):
    found = viewer.answer(files["good.png"], "legrad", explained="cat")
    assert found.notes == ["This run has no class cat: its predicted class is explained."]
    np.testing.assert_array_equal(found.picture, viewer.answer(files["good.png"], "legrad").picture)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("corrupt.png", r"corrupt\.png: cannot be read as a picture \(.*\); choose another$"),
        (
            "huge.png",
            r"huge\.png: .* \(received 10000x10000 pixels; allowed: 89,478,485\); choose another$",
        ),
        ("text.png", r"text\.png: cannot be read as a picture \(cannot identify image file\); choose another$"),
        ("words.txt", r"words\.txt: cannot be read as a picture \(cannot identify image file\); choose another$"),
        ("empty.png", r"empty\.png: the file is empty; choose a picture$"),
        ("none.png", r"none\.png: cannot be read as a picture \(no file\); choose another$"),
    ],
)
def test_what_is_no_picture(viewer, files, name, message):
    with one_line_error(message):
        viewer.answer(files["good.png"].parent / name)


def test_a_narrow_picture_is_answered_with_a_note(viewer, files):
    found = viewer.answer(files["thin.png"])
    assert found.notes == ["The picture has 1 × 20,000 pixels: the model sees only its middle."]
    assert sum(found.classes.values()) <= 1


def test_visitors_at_once_get_the_answers_of_one_after_the_other(viewer, files):
    methods = METHODS * 3
    wanted = {method: viewer.answer(files["good.png"], method) for method in METHODS}
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda method: viewer.answer(files["good.png"], method), methods))
    for method, each in zip(methods, found, strict=True):
        assert each.classes == pytest.approx(wanted[method].classes, abs=CLOSE)
        np.testing.assert_array_equal(each.picture, wanted[method].picture)


def test_names_are_distinct():
    assert distinct(["a", "b", "a", "a (2)", "a"]) == ["a", "b", "a (2)", "a (2) (2)", "a (3)"]


def test_examples_are_the_test_images(run, tmp_path):
    from keras_vit.recipes.parse import load_recipe

    files, notes = write_examples(run, tmp_path, 3)
    assert files == []
    assert len(notes) == 1
    assert notes[0].startswith("no examples: ")
    recipe = load_recipe("digits")
    digits = dataclasses.make_dataclass("Run", ["recipe"])(recipe)
    files, notes = write_examples(digits, tmp_path, 12)
    assert notes == []
    test, images = recipe.load_data().test, [read_image(file, (8, 8, 1)) for file in files]
    found = [np.flatnonzero((test.images(np.arange(len(test))) == image).all(axis=(1, 2, 3)))[0] for image in images]
    assert found == sorted(found)
    assert {*test.labels[found]} == {*range(10)}
    assert len(files) == 12
