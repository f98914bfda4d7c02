"""Several labels an image, from a CSV file to an export: scores against scikit-learn, evaluation, prediction, pictures."""

import csv
import json

import numpy as np
import pytest
from helpers import SMALL, once
from PIL import Image
from scipy.special import expit
from sklearn.metrics import average_precision_score, precision_recall_fscore_support

import keras_vit
from keras_vit.cli import evaluate as evaluate_command
from keras_vit.cli import predict as predict_command
from keras_vit.runs import plots
from keras_vit.runs.calibration import calibration_of, probabilities_of
from keras_vit.runs.class_plots import average_precision_bars
from keras_vit.runs.evaluation import compute_outputs, evaluate, evaluation_lines, evaluation_table, write_evaluation
from keras_vit.runs.folder import RunFolder
from keras_vit.runs.multilabel import average_precisions, precision_recall_f1, score_labels
from keras_vit.runs.prediction import predict
from keras_vit.runs.scores import metrics_of

NAMES = ["bird", "cat", "dog"]


def truths(count, seed=0):
    return (np.random.default_rng(seed).random((count, 3)) < [0.5, 0.3, 0.2]).astype(np.int8)


def draw(labels, seed):
    """A grey picture with a bright third for each class that it has."""
    image = np.random.default_rng(seed).integers(60, size=(8, 12), dtype=np.uint8)
    for label in np.flatnonzero(labels):
        image[:, 4 * label : 4 * label + 4] += 150
    return image


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run on a CSV file of pictures, of which one has no label and one is missing; and the folder of the pictures."""

    def make(folder):
        rows = []
        for number, labels in enumerate(truths(90)):
            Image.fromarray(draw(labels, number)).save(folder / f"{number}.png")
            rows.append((f"{number}.png", "|".join(np.array(NAMES)[labels == 1]), "test" if number >= 70 else "train"))
        with open(folder / "photos.csv", "w", newline="") as file:
            csv.writer(file).writerows([("path", "labels", "split"), *rows])
        recipe = keras_vit.load_recipe(
            "digits",
            data=f"csv:{folder / 'photos.csv'}",
            model={**SMALL, "patch_size": (8, 4), "stem": "patch", "stem_depth": 0},
            augment={"flip": False, "crop": 0},
            train={"epochs": 14, "batch_size": 9, "learning_rate": 0.02, "warmup_epochs": 0, "precision": "float32"},
        )
        keras_vit.train(recipe, folder / "run", verbose=0)

    folder = once(tmp_path_factory, "multilabel", make)
    return RunFolder(folder / "run"), folder


def test_scores_are_scikit_learns():
    rng = np.random.default_rng(0)
    labels, logits = (rng.random((200, 5)) < 0.3).astype(int), rng.normal(size=(200, 5)).round(1)  # with ties
    expected = average_precision_score(labels, logits, average=None)
    np.testing.assert_allclose(average_precisions(logits, labels), expected, rtol=1e-12)
    theirs = precision_recall_fscore_support(labels, logits > 0, average=None)
    for ours, wanted in zip(precision_recall_f1(logits > 0, labels == 1), theirs, strict=False):
        np.testing.assert_allclose(ours, wanted, rtol=1e-12)
    result = score_labels(logits, labels, list("abcde"))
    assert result.map == pytest.approx(expected.mean())
    assert result.mean_f1 == pytest.approx(theirs[2].mean())
    assert result.exact == pytest.approx(((logits > 0) == labels).all(axis=1).mean())
    p = expit(logits)
    assert result.loss == pytest.approx(-(labels * np.log(p) + (1 - labels) * np.log(1 - p)).mean())
    halved = score_labels(logits, labels, list("abcde"), temperature=2.0)
    p = expit(logits / 2)
    assert halved.loss == pytest.approx(-(labels * np.log(p) + (1 - labels) * np.log(1 - p)).mean())
    assert halved.calibration.error == calibration_of(logits / 2, labels).error != halved.error_before == result.calibration.error
    assert (halved.map, halved.mean_f1, halved.exact) == (result.map, result.mean_f1, result.exact)
    found, classes = metrics_of(logits, labels, list("abcde"))
    assert found == {"map": pytest.approx(result.map), "f1": pytest.approx(result.mean_f1)}
    assert classes["c"]["average_precision"] == pytest.approx(expected[2])


def test_a_class_without_images_counts_for_nothing():
    labels, logits = np.array([[1, 0, 0], [0, 1, 0], [1, 1, 0]]), np.array([[2.0, -1, -1], [-1, 2, -1], [1, 1, -3]])
    result = score_labels(logits, labels, NAMES)
    assert (result.map, result.mean_f1, result.exact) == (1, 1, 1)
    row = result.to_dict()["classes"][2]
    assert row == {"name": "dog", "average_precision": None, "precision": None, "recall": None, "f1": None, "count": 0}
    assert metrics_of(logits, np.zeros((3, 3), int), NAMES)[0]["map"] is None
    with pytest.raises(ValueError, match=r"^logits: received NaN or infinity for 1 of 3 images; allowed: finite numbers$"):
        score_labels(np.where(logits == -3, np.nan, logits), labels, NAMES)


def test_single_labels_are_balanced():
    logits, labels = np.eye(3)[[0, 0, 0, 1, 0]], np.array([0, 0, 0, 1, 1])
    found, classes = metrics_of(logits, labels, NAMES)
    assert found == {"accuracy": pytest.approx(0.8), "balanced_accuracy": pytest.approx(0.75)}
    assert [classes[name]["recall"] for name in NAMES] == [1, 0.5, None]


def test_evaluation(trained, capsys):
    run, _ = trained
    result = evaluate(run)
    summary = run.summary
    assert (result.map, result.mean_f1) == (pytest.approx(summary["test_map"]), pytest.approx(summary["test_f1"]))
    outputs = compute_outputs(run)
    assert summary["test_loss"] == pytest.approx(score_labels(outputs.logits, outputs.labels, NAMES).loss, rel=1e-5)
    assert summary["temperature"] == outputs.temperature == result.temperature < 0.9  # seven images are enough to say: too unsure
    errors = result.calibration.error, result.error_before
    assert (summary["test_calibration_error"], summary["test_calibration_error_before"]) == pytest.approx(errors, abs=1e-5)
    assert errors[0] < errors[1] - 0.02
    assert result.map > 0.9
    np.testing.assert_array_equal(result.count, truths(90)[70:].sum(axis=0))
    paths = write_evaluation(result, run)
    assert [path.name for path in paths] == ["evaluation-test.json", "precision-test.png"]
    assert json.loads(paths[0].read_text())["map"] == result.map
    evaluate_command.main([str(run.path), "--split", "validation"])
    said = " ".join(capsys.readouterr().out.split())
    assert "mean average precision (mAP)" in said
    assert "average precision (%)" in said
    assert len(evaluation_lines(result)) == 6
    assert evaluation_table(result).row_count == 3


def test_other_data_is_matched_by_name(trained, tmp_path):
    """Classes in another order, one of them missing; a folder is data with one label an image."""
    run, folder = trained
    with open(tmp_path / "other.csv", "w", newline="") as file:
        names = np.array(NAMES)
        rows = [(folder / f"{n}.png", "|".join(names[truths(90)[n] == 1][::-1])) for n in range(90) if not truths(90)[n, 1]]
        csv.writer(file).writerows([("file", "label"), *rows])
    with pytest.warns(UserWarning, match="has no class cat, which the run has"):
        result = evaluate(run, data=f"csv:{tmp_path / 'other.csv'}", split="test")
    assert result.count[1] == 0
    assert result.average_precision[0] > 0.9
    for number, name in enumerate(("dog", "bird") * 5):
        (tmp_path / "folder" / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw(np.array(NAMES) == name, number)).save(tmp_path / "folder" / name / f"{number}.png")
    with pytest.warns(UserWarning, match="has no class cat"):
        assert evaluate(run, data=f"folder:{tmp_path / 'folder'}").count.tolist() == [1, 0, 1]


def test_prediction(trained, tmp_path, capsys):
    run, folder = trained
    images = np.stack([draw(labels, number) for number, labels in enumerate(truths(90))])[..., None]
    p = expit(run.model().predict((images / 255 - run.recipe.mean) / run.recipe.std, verbose=0).astype(float) / run.temperature)
    np.testing.assert_allclose(probabilities_of(np.log(p / (1 - p)), True), p, rtol=1e-6)
    paths = [folder / f"{number}.png" for number in range(90)]
    for number, each in enumerate(run.predict(paths)):
        order = np.argsort(-p[number])[: (p[number] > 0.5).sum()]
        assert each.classes == [NAMES[label] for label in order]
        np.testing.assert_allclose(each.probabilities, p[number][order], rtol=1e-4)
    assert {len(each.classes) for each in run.predict(paths)} >= {0, 1, 2}
    assert all(len(each.classes) == 2 for each in run.predict(paths, top=2))
    assert all(len(each.classes) == 3 for each in run.predict(paths, threshold=0.0))
    settings = {"mean": run.recipe.mean, "std": run.recipe.std}
    with pytest.raises(ValueError, match=r"^threshold: received 0.3; allowed: none where an image has one class$"):
        predict(run.model(), images, threshold=0.3, **settings)
    with pytest.raises(ValueError, match=r"^threshold: received 0.3; allowed: none together with top$"):
        run.predict(paths, top=1, threshold=0.3)
    files = ["--csv", str(tmp_path / "a.csv"), "--html", str(tmp_path / "a.html"), "--json", str(tmp_path / "a.json")]
    predict_command.main([str(run.path), *map(str, paths), "--threshold", "0.6", *files])
    said = " ".join(capsys.readouterr().out.split())
    assert f"{(p[:, 0] > 0.6).sum()} bird" in said
    assert f"{(p <= 0.6).all(axis=1).sum()} without a class" in said
    with open(tmp_path / "a.csv", newline="") as file:
        rows = [*csv.reader(file)]
    assert {len(row) for row in rows} == {len(rows[0])}
    for row, wanted in zip(rows[1:], p, strict=True):
        assert {cell for cell in row[1::2] if cell} == {NAMES[label] for label in np.flatnonzero(wanted > 0.6)}


def test_a_keras_file_is_told_its_labels(trained, capsys):
    run, folder = trained
    copy = run.path.parent / "copy.keras"
    copy.write_bytes(run.model_path.read_bytes())
    predict_command.main([str(copy), str(folder / "0.png"), "--multi-label", "--top", "3", "--class-names", *NAMES])
    p = [float(part.rstrip("%")) for part in capsys.readouterr().out.split() if part.endswith("%")]
    assert len(p) == 3
    assert abs(sum(p) - 100) > 1
    with pytest.raises(ValueError, match="--multi-label"):
        predict_command.main([str(run.path), str(folder / "0.png"), "--multi-label"])


def test_exports_know_that_there_may_be_several_labels(trained, tmp_path, in_process, runtime_here):
    run, folder = trained
    report = keras_vit.export_model(run, tmp_path / "export", "keras")
    assert (report["multi_label"], report["class_names"]) == (True, NAMES)
    predict_command.main([str(tmp_path / "export"), str(folder / "*.png"), "--json", str(tmp_path / "a.json")])
    found = {row["image"]: [each["name"] for each in row["classes"]] for row in json.loads((tmp_path / "a.json").read_text())}
    paths = sorted(folder.glob("*.png"))
    assert found == {str(each.image): each.classes for each in run.predict(paths)}


def test_pictures(tmp_path):
    names = [f"class {number}" for number in range(70)]
    average_precision_bars(np.r_[np.nan, np.linspace(0, 1, 69)], names, tmp_path / "a.png")
    average_precision_bars(np.full(2, np.nan), ["a", "b"], tmp_path / "b.png")
    with Image.open(tmp_path / "a.png") as many, Image.open(tmp_path / "b.png") as few:
        assert many.height > few.height > 100
    assert plots.label_lines(np.array([1.0, 0, 1]), NAMES, 20) == ["bird", "dog"]
    assert plots.label_lines(np.array([0.7, 0, 0.3]), NAMES, 20) == ["bird 0.70", "dog 0.30"]
    assert plots.label_lines(np.array([1.0, 0.3, 0.7]), NAMES, 20) == ["bird", "dog 0.70"]
    assert plots.label_lines(np.zeros(3), NAMES, 20) == ["–"]
    rows = [{"epoch": 1, "seconds": 1.0, "epoch_seconds": 1.0, "loss": 1.0, "val_loss": 1.0, "val_map": 0.5}]
    plots.curves({"run": rows}, tmp_path / "curves.png")
