import base64
import dataclasses
import hashlib
import re

import numpy as np
import pytest
from made import NAMES, looks_right, outputs_of, single
from pages import Page

from keras_vit.checks import visible
from keras_vit.images import normalize
from keras_vit.report import run as module
from keras_vit.report.page import duration
from keras_vit.report.run import write_run_report
from keras_vit.report.settings import compared_settings, named_recipe
from keras_vit.runs.scores import wilson_interval

EXACT = 1e-6
SHOWN = [visible(name) for name in NAMES]


def read(path):
    return Page(path.read_text(encoding="utf-8"))


@pytest.fixture
def no_test_set(monkeypatch):
    """The test images are read before: a report must not read them again."""

    def refuse(run):
        raise AssertionError("the test images are read twice")

    monkeypatch.setattr(module, "compute_outputs", refuse)


def test_wilson_against_numbers_by_hand():
    # z = 1.959964: centre (0.8 + z²/20) / (1 + z²/10), half width z sqrt(0.016 + z²/400) / (1 + z²/10)
    assert wilson_interval(0.8, 10) == pytest.approx((0.4901625, 0.9433178), abs=EXACT)
    low, high = wilson_interval(1.0, 20)
    assert (low, high) == (pytest.approx(1 / (1 + 1.959964**2 / 20), abs=EXACT), 1)
    assert wilson_interval(0.0, 20)[0] == 0


def test_a_page_has_all_of_a_run(make_run, no_test_set):
    run = make_run(learning_rate=0.003)
    path = write_run_report(run, single(run), attention=looks_right)
    assert path == run.path / "report.html"
    page = read(path)
    shape = "images of 8 × 12 pixels, patches of 4 × 3, width 8, 1 block of 2 heads"
    assert f"A Vision Transformer: {shape}; 1,234 parameters, 5.6 million FLOPs an image." in page.text
    assert "Trained on made: 48 train, 10 test images, 3 classes." in page.text
    assert "test accuracy 70.00% 95% interval 39.68% to 89.22% test images 10" in page.text
    assert "Wilson's score method, n = 10 test images" in page.text
    assert "best validation accuracy 60.00% epochs 3 training time 6.0 s training images per second 1,002" in page.text
    assert dict(row[:2] for row in page.table("score")) == {
        "accuracy": "70.00%",
        "balanced accuracy": "66.67%",  # recalls 4/4, 2/3 and 1/3
        "top-3 accuracy": "100.00%",
        "cross-entropy": f"{module.Outputs.score(single(run)).loss:.4f} nats",
        "expected calibration error": f"{single(run).score().calibration.error:.2%}",
    }
    assert {"Loss over epochs", "Accuracy over time", "Time per epoch", "Confusion matrix", "Calibration"} <= set(page.images)
    assert page.images["Confusion matrix"].size == (228, 180)  # 5.7 x 4.5 inches of 40 dots
    assert page.table("class") == [
        [SHOWN[0], "80.0", "100.0", "88.9", "4"],
        [SHOWN[1], "66.7", "66.7", "66.7", "3"],
        [SHOWN[2], "50.0", "33.3", "40.0", "3"],
    ]
    facts = dict(page.tables[-1][1:])
    assert facts["versions"] == "python 3.12, keras 3.15"
    assert (facts["seed"], facts["commit of keras_vit"], facts["fingerprint of the data"]) == ("0", "abc", "f" * 64)
    assert f"KERAS_BACKEND=jax keras-vit train --recipe {run.recipe_path}" in page.text
    assert dict(page.table("what"))["whole process, start and compilation included"] == "75 s"


def test_mistakes_are_shown_with_what_the_model_attends_to(make_run, no_test_set):
    run, seen = make_run(), []

    def attention(model, images):
        seen.append(images)
        return looks_right(model, images)

    outputs = single(run)
    page = read(write_run_report(run, outputs, attention=attention))
    assert "3 of 10 test images are wrong." in page.text
    cards = re.findall(r"predicted: (.+?) \(([\d.]+%)\) true: (.+?) \(([\d.]+%)\) test image (\d)", page.text)
    assert [card[-1] for card in cards] == ["7", "2", "5"]
    assert cards[0][:4] == (SHOWN[2], "100.0%", SHOWN[1], "0.0%")
    share = np.exp(4) / (np.exp(4) + 2)
    assert cards[1][:2] == (SHOWN[1], f"{share:.1%}")
    np.testing.assert_array_equal(seen[0], normalize(outputs.images.images(np.array([7, 2, 5])), [0.5], [0.5]))
    plain, over = (np.asarray(page.images[f"{name}test image 7"], float).mean(axis=(0, 2)) for name in ("", "attention on "))
    assert plain.std() < 3  # one grey
    quarter = len(over) // 4
    assert over[-quarter:].mean() > over[:quarter].mean() + 60  # bright where the attention is


def test_no_text_is_obeyed_and_nothing_is_loaded(make_run, no_test_set):
    wild = {"command": "x <script>alert(1)</script>", "device": "<img src=http://x.org>", "data_notes": ["</style><b>"]}
    run = make_run(summary=wild)
    path = write_run_report(run, single(run), attention=looks_right)
    page, text = read(path), path.read_text(encoding="utf-8")
    assert {"b", "a", "iframe", "form"} & {tag for tag, _ in page.tags} == set()
    assert "alert(1)" in page.text
    assert "\u202e" not in text
    assert SHOWN[2] == r"blue\nbird"
    assert r"blue\nbird" in page.text
    for _, attributes in page.tags:
        assert attributes.get("src", "data:").startswith("data:")
        assert attributes.get("href", "data:,") == "data:,"
        assert not any(name.startswith("on") for name in attributes)
    assert page.policy["default-src"] == "'none'"
    (script,) = [text for tag, _, text in page.raw if tag == "script"]
    assert page.policy["script-src"] == f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def test_a_temperature_is_said_and_calibrates_the_mistakes(make_run, no_test_set):
    run = make_run()
    outputs = dataclasses.replace(single(run), temperature=2.0)
    page = read(write_run_report(run, outputs, attention=looks_right))
    scores, before = {row[0]: row[1:] for row in page.table("score")}, single(run).score().calibration.error
    assert scores["expected calibration error"][0] == f"{outputs.score().calibration.error:.2%}" != f"{before:.2%}"
    assert scores["temperature"] == [
        "2",
        f"of the validation images; calibrates all probabilities here: without it the error is {before:.2%}",
    ]
    assert "percentages are its probabilities, calibrated." in page.text
    cards = re.findall(r"predicted: (.+?) \(([\d.]+%)\)", page.text)
    assert cards[1] == (SHOWN[1], f"{np.exp(2) / (np.exp(2) + 2):.1%}")


def test_several_labels_an_image(make_run, no_test_set):
    run = make_run(labels="multi")
    labels = np.array([[1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 1]], np.int8)
    logits = np.where(labels == 1, 2.0, -2.0)
    logits[0] = [2, -2, 3]
    logits[2] = [2, -1, -2]
    page = read(write_run_report(run, outputs_of(run, logits, labels), attention=looks_right))
    assert "test mAP 83.33% exactly the right classes 50.00% 95% interval 15.00% to 85.00% test images 4" in page.text
    assert "Average precision of each class" in page.images
    assert "Confusion matrix" not in page.images
    assert [row[:2] for row in page.table("class")] == [[SHOWN[0], "100.0"], [SHOWN[1], "100.0"], [SHOWN[2], "50.0"]]
    scores = dict(row[:2] for row in page.table("score"))
    sure = 1 / (1 + np.exp([-2.0, -3.0, -1.0]))  # eight decisions of ten are right: 2; the others are wrong: 3, 1
    assert scores["expected calibration error"] == f"{(abs(10 * sure[0] - 10) + sure[1] + sure[2]) / 12:.2%}"
    assert "2 of 4 test images are wrong in at least one class." in page.text
    assert f"true: {SHOWN[0]} (88.1%) worst answer: {SHOWN[2]} (95.3% sure) test image 0" in page.text


def test_changed_settings_are_marked(make_run):
    run = make_run(learning_rate=0.003)
    page = read(write_run_report(run, single(run), attention=looks_right))
    rows = {row[0]: row[1:] for row in page.table("setting")}
    assert rows["train.learning_rate"] == ["0.003", "0.002"]
    assert rows["train.monitor"] == ["auto", ""]
    assert rows["train.optimizer"] == ["muon", ""]
    assert rows["model.num_classes"] == ["3", ""]
    assert "0.003" in page.marked
    marked = {row["name"] for row in compared_settings(run.recipe, "digits") if row["differs"]}
    assert {"train.learning_rate", "train.epochs", "model.width", "data"} <= marked
    assert not {"model.num_classes", "train.precision", "seed"} & marked
    assert f"Highlighted: changed from recipe digits ({len(marked)})." in page.text


def test_the_named_recipe_is_the_stated_or_the_nearest_one(make_run):
    recipe = make_run().recipe
    assert named_recipe(recipe) == "digits"
    assert named_recipe(recipe, "keras-vit train --recipe mnist") == "mnist"
    assert named_recipe(recipe, "keras-vit train --recipe=quick") == "quick"
    assert named_recipe(recipe, "keras-vit train --recipe my.yaml 'open") == "digits"


def test_a_run_that_has_not_finished_has_a_page(make_run):
    run = make_run(finished=False)
    page = read(write_run_report(run))
    assert "The run has not finished: 2 of 3 epochs are done." in page.text
    assert "Missing here: predictions on the test images (run: received" in page.text
    assert "which has no best.keras; allowed: a run with a validated epoch)." in page.text
    assert "Loss over epochs" in page.images
    assert "No result on test images." in page.text
    run.write_metrics([])
    page = read(write_run_report(run))
    assert "The run has not finished: no epoch is done yet." in page.text
    assert page.images == {}


def test_a_page_says_what_is_damaged_or_gone(make_run):
    run = make_run()
    (run.path / "metrics.csv").write_text("nonsense")
    page = read(write_run_report(run))
    assert "Missing here: the curves (run: " in page.text
    assert "test accuracy 80.00% 95% interval 49.02% to 94.33% test images 10" in page.text  # of the summary
    assert [row[:2] for row in page.table("score")] == [["accuracy", "80.00%"]]

    def broken(model, images):
        raise RuntimeError("no attention\nhere")

    page = read(write_run_report(run, single(run), attention=broken))
    assert "Missing here: maps of the attention (no attention here)." in page.text
    assert "attention on test image 7" not in page.images
    page = read(write_run_report(run, single(run), attention=lambda model, images: np.zeros((3, 2, 2))))
    assert "attention: received shape (3, 2, 2); allowed: finite numbers of shape (3, 2, 4)" in page.text
    other = make_run("other", summary={"fingerprint": "0" * 64})
    assert "made has changed since the training" in read(write_run_report(other, single(run), attention=looks_right)).text
    bare = make_run("bare", summary={"test_accuracy": None, "images": {"train": 48}})
    (bare.path / "summary.json").write_text("{}")
    assert "Missing here: the summary (run: " in read(write_run_report(bare)).text


@pytest.mark.parametrize(("seconds", "text"), [(8.26, "8.3 s"), (119.4, "119 s"), (725, "12 min 5 s"), (12_000, "3 h 20 min")])
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_a_training_writes_its_report_of_the_images_that_it_has_read(tmp_path, no_test_set):
    from training.small import small_data, small_recipe

    from keras_vit import train

    run = train(small_recipe(epochs=1), tmp_path / "run", data=small_data(), verbose=0)
    page = read(run.path / "report.html")
    summary = run.summary
    assert summary["images"] == {"train": 64, "validation": 12, "test": 12}
    assert f"test accuracy {summary['test_accuracy']:.2%} 95% interval" in page.text
    wrong = round(12 * (1 - summary["test_accuracy"]))
    assert f"{wrong} of 12 test images are wrong." in page.text
    assert sum(name.startswith("attention on test image") for name in page.images) == wrong


def test_a_report_that_fails_breaks_no_training(tmp_path, monkeypatch):
    from training.small import small_data, small_recipe

    from keras_vit import train

    def fail(*arguments):
        raise RuntimeError("no\nroom")

    monkeypatch.setattr(module, "write_run_report", fail)
    with pytest.warns(UserWarning, match=r"^report: not written \(no room\); the run has finished$"):
        run = train(small_recipe(epochs=1), tmp_path / "run", data=small_data(), verbose=0)
    assert run.is_finished
    train(small_recipe(epochs=1), tmp_path / "silent", data=small_data(), pictures=False, verbose=0)  # as a search's trials
    assert not (tmp_path / "silent" / "report.html").exists()
