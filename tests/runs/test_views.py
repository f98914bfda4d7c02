"""Test-time augmentation: the views, their mean, and where it is reported."""

import dataclasses
import json
import re

import keras
import numpy as np
import pytest
from helpers import error_line, logits, one_line_error, random_pixels

import keras_vit
from keras_vit.cli import evaluate as evaluate_command
from keras_vit.cli import predict as predict_command
from keras_vit.data.augment import AugmentConfig
from keras_vit.files import write_json
from keras_vit.images import normalize
from keras_vit.parity import randomise
from keras_vit.recipes.parse import load_recipe
from keras_vit.runs.calibration import probabilities_of
from keras_vit.runs.evaluation import compute_outputs, evaluate, evaluation_lines
from keras_vit.runs.folder import RunFolder
from keras_vit.runs.multilabel import score_labels
from keras_vit.runs.scores import score
from keras_vit.runs.views import View, choose_views, described, over_views

CLOSE = 1e-5
SHAPE = {"image_size": 8, "channels": 1, "patch_size": 4, "width": 16, "depth": 1, "num_heads": 2, "mlp_dim": 16}
FLIP = [View(), View(flip=True)]
THREE = [View(), View(down=-1, right=-1), View(down=1, right=1)]


@pytest.fixture
def make_run(tmp_path):
    """A run with random weights on 70 made images of two classes, 20 for tests, and a temperature; also with several labels."""

    def make(name="run", several=False, **augment):
        rows = "".join(f"{number}.png,{('a', 'b', 'a|b', '')[number % (4 if several else 2)]}\n" for number in range(50))
        folder = tmp_path / name
        folder.mkdir()
        for number in range(50):
            keras.utils.save_img(folder / f"{number}.png", random_pixels(8, 8, 1, seed=number), scale=False)
        (folder / "table.csv").write_text("path,labels\n" + rows)
        augment = {"flip": True, "crop": 1, **augment}
        recipe = load_recipe("digits", data=f"csv:{folder}/table.csv", model=SHAPE, augment=augment, mean=0.4, std=0.3)
        data = recipe.load_data()
        recipe = recipe.for_data(data)
        run = RunFolder.create(folder / "run", recipe)
        run.write_model(1, randomise(keras_vit.build_vit(recipe.model)))
        run.write_metrics([{"epoch": 1, "seconds": 1.0, "epoch_seconds": 1.0}])
        known = {"class_names": data.class_names, "fingerprint": data.fingerprint, "temperature": 1.5, "epochs": 1}
        run.write_summary(known | {"parameters": 1, "flops": 1})
        return run, data.test

    return make


def by_hand(run, images, views):
    """Mean of the logits (N, K) over views that NumPy pads and cuts."""
    found = []
    for view in views:
        seen = images[:, :, ::-1] if view.flip else images
        right = -view.right if view.flip else view.right  # the mirror image of a shifted image
        padded = np.pad(seen, ((0, 0), (1, 1), (1, 1), (0, 0)), "reflect")
        seen = padded[:, 1 - view.down : 9 - view.down, 1 - right : 9 - right]
        found.append(logits(run.model(), normalize(seen, run.recipe.mean, run.recipe.std)))
    return np.mean(found, axis=0)


def test_views_by_hand():
    image = np.arange(1, 7).reshape(1, 2, 3, 1).astype(np.uint8)  # 1 2 3 over 4 5 6
    rows = {
        View(): [[1, 2, 3], [4, 5, 6]],
        View(flip=True): [[3, 2, 1], [6, 5, 4]],
        View(down=1): [[4, 5, 6], [1, 2, 3]],
        View(right=1): [[2, 1, 2], [5, 4, 5]],
        View(right=-1): [[2, 3, 2], [5, 6, 5]],
        View(flip=True, right=1): [[2, 1, 2], [5, 4, 5]],
    }
    for view, expected in rows.items():
        assert view(image)[0, :, :, 0].tolist() == expected
    large = random_pixels(2, 96, 64, 3)
    np.testing.assert_array_equal(View(down=1)(large)[:, 3:], large[:, :-3])  # a 32nd of the side
    np.testing.assert_array_equal(View(right=-1)(large)[:, :, :-2], large[:, :, 2:])
    np.testing.assert_array_equal(View(down=1, right=1)(large[:, :1, :1]), large[:, :1, :1])


def test_names_of_views():
    assert choose_views(None) == ([View()], "")
    assert choose_views("flip") == (FLIP, "")
    assert choose_views("shift") == (THREE, "")
    both = [*THREE, *(dataclasses.replace(view, flip=True) for view in THREE)]
    assert choose_views("shift, flip")[0] == choose_views(both)[0] == both
    assert described(both) == "flip, shift: 6 views"
    on, cropped = AugmentConfig(), AugmentConfig(flip=False, crop=0, resized_crop=0.4)
    assert choose_views("auto", on)[0] == both
    assert choose_views("auto", cropped) == (THREE, "")
    note = "tta: flip mirrors images, which the training did not (augment.flip): digits, say, become others"
    assert choose_views("flip", cropped) == (FLIP, note)
    plain = AugmentConfig(flip=False, crop=0)
    for tta, augment, message in (
        ("auto", None, "tta: received 'auto'; allowed: flip, shift or flip,shift, as the training of this model is not known"),
        ("auto", plain, "tta: received 'auto'; allowed: flip, shift or flip,shift, as the training used none of them"),
        ("flop", on, "tta: received 'flop' (did you mean 'flip'?); allowed: flip, shift, flip,shift, auto"),
        ("", on, "tta: received ''; allowed: flip, shift, flip,shift, auto"),
        ("flip,auto", on, "tta: received 'auto'; allowed: flip, shift, flip,shift"),
        (3, on, "tta: received 3; allowed: flip, shift, flip,shift or auto"),
        ([], on, "tta: received []; allowed: flip, shift, flip,shift or auto"),
    ):
        with one_line_error(f"^{re.escape(message)}$"):
            choose_views(tta, augment)


def test_logits_are_averaged():
    images = random_pixels(3, 8, 8, 1)
    first = over_views(lambda seen: seen[:, 0, :2, 0].astype(np.float32), FLIP)
    np.testing.assert_allclose(first(images), (images[:, 0, :2, 0].astype(float) + images[:, 0, :-3:-1, 0]) / 2)
    mirrored = over_views(lambda seen: seen[:, 0, :2, 0].astype(np.float32), [View(flip=True)])  # one alone is one too
    np.testing.assert_allclose(mirrored(images), images[:, 0, :-3:-1, 0])


def test_evaluation_reports_it_apart(make_run):
    run, test = make_run()
    views, _ = choose_views("flip,shift")
    plain, found = compute_outputs(run), compute_outputs(run, tta="auto", batch_size=20)  # three images of six views, at last one
    images = test.images(np.arange(len(test)))
    np.testing.assert_allclose(found.logits, plain.logits, atol=CLOSE)
    np.testing.assert_allclose(found.logits, by_hand(run, images, [View()]), atol=CLOSE)
    expected = by_hand(run, images, views)
    assert np.abs(expected - found.logits).max() > 0.01
    np.testing.assert_allclose(found.mean_logits, expected, atol=CLOSE)
    result = found.score()
    assert (result.accuracy, result.augmented.accuracy) == (
        plain.score().accuracy,
        score(expected, test.labels, ["a", "b"]).accuracy,
    )
    assert result.augmented.loss == pytest.approx(score(expected, test.labels, ["a", "b"], 1.5).loss, rel=CLOSE)
    assert plain.score().augmented is None
    assert evaluate(run, tta="flip").views == "flip: 2 views"


def test_predictions_are_averaged(make_run, tmp_path):
    run, test = make_run()
    images = test.images(np.arange(7))
    settings = {**run.known, "top": 2, "batch_size": 3}
    for tta in ("flip", "shift", "flip,shift"):
        wanted = probabilities_of(by_hand(run, images, choose_views(tta)[0]), False, 1.5)
        for each, row in zip(keras_vit.predict(run.model(), images, tta=tta, **settings), wanted, strict=True):
            np.testing.assert_allclose(each.probabilities, np.sort(row)[::-1], atol=CLOSE)
    with one_line_error("as the training of this model is not known$"):
        keras_vit.predict(run.model(), images, tta="auto", **settings)
    for number in range(3):
        keras.utils.save_img(tmp_path / f"{number}.png", images[number], scale=False)
    found = run.predict(tmp_path / "*.png", top=2, tta="auto")
    np.testing.assert_allclose([max(row) for row in wanted[:3]], [each.probabilities[0] for each in found], atol=CLOSE)


def test_several_labels(make_run):
    run, test = make_run(several=True)
    result, expected = evaluate(run, tta="shift"), by_hand(run, test.images(np.arange(len(test))), THREE)
    assert result.augmented.loss == pytest.approx(score_labels(expected, test.labels, ["a", "b"], 1.5).loss, rel=CLOSE)
    assert result.loss == pytest.approx(evaluate(run).loss, rel=CLOSE)
    content = result.to_dict()["test_time_augmentation"]
    assert (content["views"], content["map"]) == ("shift: 3 views", result.augmented.map)
    assert len(evaluation_lines(result)) == 13


def test_files_and_commands(make_run, capsys):
    run, _ = make_run()
    evaluate_command.main([str(run.path), "--tta", "flip"])
    said = capsys.readouterr().out
    content = json.loads((run.path / "evaluation-test.json").read_text())
    better = content["test_time_augmentation"]
    assert "classes" not in better
    assert better["loss"] != content["loss"]
    title = "with test-time augmentation (mean of the logits; flip: 2 views):"
    assert re.search(
        rf"accuracy +{content['accuracy']:.2%}.*{re.escape(title)}.*  accuracy +{better['accuracy']:.2%}", said, re.DOTALL
    )
    page = (run.path / "report.html").read_text()
    assert "accuracy with test-time augmentation" in page
    assert "mean of the logits over views of each image (flip: 2 views)" in page
    assert "test_time_augmentation" not in run.summary
    picture = str(next(run.path.parent.glob("*.png")))
    predict_command.main([str(run.path), picture, "--tta", "auto"])
    assert "logits averaged over views of each picture (flip, shift: 6 views)" in capsys.readouterr().out


def test_what_is_refused_or_said(make_run, capsys, tmp_path):
    run, _ = make_run(flip=False)
    picture = str(next(run.path.parent.glob("*.png")))
    with pytest.warns(UserWarning, match="^tta: flip mirrors images, which the training did not"):
        evaluate(run, tta="flip")
    with pytest.warns(UserWarning, match="^tta: flip mirrors images"):
        run.predict(picture, tta="flip")
    predict_command.main([str(run.path), picture, "--tta", "flip"])
    assert "tta: flip mirrors images, which the training did not" in capsys.readouterr().out
    assert evaluate(run, tta="auto").views == "shift: 3 views"
    unknown = "tta: received 'mirror'; allowed: flip, shift, flip,shift, auto"
    assert error_line(capsys, evaluate_command.main, [str(run.path), "--tta", "mirror"]) == unknown
    assert error_line(capsys, predict_command.main, [str(run.path), picture, "--tta", "mirror"]) == unknown
    runs = [str(run.path), str(run.path), "--tta", "flip"]
    assert error_line(capsys, evaluate_command.main, runs) == "--tta: received flip; allowed with several runs: none"
    export = tmp_path / "export"
    export.mkdir()
    write_json(export / "export.json", {})
    assert "as the training of this model is not known" in error_line(
        capsys, predict_command.main, [str(export), picture, "--tta", "auto"]
    )
