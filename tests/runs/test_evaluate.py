import json
import math
import sys
import types
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import log_loss, top_k_accuracy_score

from keras_vit import ViTConfig, build_vit
from keras_vit.cli.main import main
from keras_vit.data.dataset import load_data
from keras_vit.images import normalize
from keras_vit.recipes.schema import Recipe, TrainConfig
from keras_vit.runs.comparison import compare, comparison_table, run_names
from keras_vit.runs.evaluation import compute_outputs, evaluate, evaluation_table, write_evaluation
from keras_vit.runs.folder import RunFolder
from keras_vit.runs.scores import score

EXACT = 1e-12
TOLERANCE = 1e-5  # relative, of float32 logits


def size(path):
    with Image.open(path) as picture:
        return picture.size


def test_score_against_numbers_by_hand():
    # Softmax of (ln 2, 0, 0) is (1/2, 1/4, 1/4).
    two = math.log(2)
    logits = np.array([[two, 0, 0], [0, two, 0], [0, two, 0], [0, 0, two]])
    result = score(logits, [0, 1, 0, 0], ["a", "b", "c"])
    assert result.accuracy == 0.5
    assert result.top_k == 3
    assert result.top_k_accuracy == 1
    assert result.loss == pytest.approx((2 * math.log(2) + 2 * math.log(4)) / 4, abs=EXACT)
    assert result.confusion.tolist() == [[1, 1, 1], [0, 1, 0], [0, 0, 0]]
    assert result.count.tolist() == [3, 1, 0]
    np.testing.assert_allclose(result.precision, [1, 1 / 2, 0])
    np.testing.assert_allclose(result.recall, [1 / 3, 1, np.nan])  # there is no c to be found
    np.testing.assert_allclose(result.f1, [1 / 2, 2 / 3, 0])
    assert result.calibration.error == pytest.approx(0, abs=EXACT)  # confidence 1/2, accuracy 1/2


def test_score_against_scikit_learn():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(200, 12)) * 3, rng.integers(12, size=200)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    result = score(logits, labels, range(12))
    assert result.top_k == 5
    assert result.top_k_accuracy == pytest.approx(top_k_accuracy_score(labels, logits, k=5), abs=EXACT)
    assert result.accuracy == pytest.approx(top_k_accuracy_score(labels, logits, k=1), abs=EXACT)
    assert result.loss == pytest.approx(log_loss(labels, probabilities), abs=1e-9)
    assert score(1000 * logits, labels, range(12)).loss > 100  # no overflow


def test_equal_logits_are_no_perfect_score():
    result = score(np.zeros((20, 10)), np.arange(20) % 10, range(10))
    assert result.accuracy == 0.1
    assert result.top_k_accuracy == 0.5
    assert result.calibration.error == pytest.approx(0, abs=EXACT)


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (np.zeros((0, 3)), [], "at least 1"),
        (np.zeros((2, 4)), [0, 1], r"received shape \(2, 4\); allowed: \(2, 3\)"),
        (np.array([[0, np.nan, 0], [0, 1, 2.0]]), [0, 1], "NaN or infinity for 1 of 2 images"),
    ],
)
def test_what_cannot_be_scored(logits, labels, message):
    with pytest.raises(ValueError, match=message):
        score(logits, labels, ["a", "b", "c"])


@pytest.fixture
def make_run(tmp_path):
    """A run folder of an untrained model for the digits whose head is random."""

    def make(name="run", seed=0, summary=True, trained=True, **model):
        config = ViTConfig(
            **{"image_size": 8, "channels": 1, "patch_size": 4, "width": 16, "depth": 1, "num_heads": 2, "mlp_dim": 16}
            | {"num_classes": 10, "pool": "gap"}
            | model
        )
        recipe = Recipe(model=config, data="digits", train=TrainConfig(epochs=2, warmup_epochs=0, batch_size=100), seed=seed)
        run = RunFolder.create(tmp_path / name, recipe)
        if not trained:
            return run
        keras.utils.set_random_seed(seed)
        vit = build_vit(config)
        if config.num_classes:
            kernel = np.random.default_rng(seed).normal(size=(16, config.num_classes))
            vit.get_layer("head").kernel.assign(kernel)
        run.write_model(1, vit)
        numbers = {"loss": 2.0, "accuracy": 0.2, "learning_rate": 0.1}
        rows = [
            {"epoch": 1, "seconds": 3.0, "epoch_seconds": 3.0, "images_per_second": 400.0, "val_accuracy": 0.4, "val_loss": 1.5},
            {"epoch": 2, "seconds": 5.0, "epoch_seconds": 2.0, "images_per_second": 600.0},
        ]
        run.write_metrics([{**numbers, **row} for row in rows])
        if summary:
            data = load_data("digits", image_size=8, channels=1)
            outcome = {"test_accuracy": 0.5, "parameters": vit.count_params(), "flops": config.flops}
            facts = {"data": "digits", "fingerprint": data.fingerprint, "class_names": data.class_names}
            run.write_summary({**outcome, **facts, "backend": "jax", "device": "a CPU"})
        return run

    return make


@pytest.mark.parametrize("split", [pytest.param("test", marks=pytest.mark.backend), "validation"])
def test_evaluate_sees_every_image_of_a_split_once(make_run, split):
    run = make_run()
    result = evaluate(run, split=split, batch_size=64)
    data = getattr(load_data("digits", image_size=8, channels=1, seed=0), split)
    images = normalize(data.images(np.arange(len(data))), [0.5], [0.5])
    logits = keras.ops.convert_to_numpy(run.model()(images))
    expected = score(logits, data.labels, range(10))
    assert result.count.tolist() == np.bincount(data.labels, minlength=10).tolist()
    assert result.loss == pytest.approx(expected.loss, rel=TOLERANCE)
    assert result.accuracy == pytest.approx(expected.accuracy, abs=1.5 / len(data))  # one image may be a tie


def test_evaluate_another_data_set(make_run, tmp_path):
    rng = np.random.default_rng(0)
    run = make_run()
    arrays = {"x_train": rng.integers(0, 256, (60, 10, 10), dtype=np.uint8), "y_train": np.arange(60) % 10}
    arrays |= {"x_test": arrays["x_train"][:20], "y_test": arrays["y_train"][:20]}
    np.savez(tmp_path / "ten.npz", **arrays)
    data = f"arrays:{tmp_path}/ten.npz"
    result = evaluate(run, data=data)
    assert result.count.tolist() == [2] * 10
    written = write_evaluation(result, run, data=data)
    assert len({path.name for path in written}) == 3
    assert all("ten.npz-test" in path.name for path in written)
    assert not (run.path / "evaluation-test.json").exists()


def write_pictures(folder, class_names, count=5):
    for index, name in enumerate(class_names):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = np.random.default_rng([index, number]).integers(0, 256, (8, 8), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return f"folder:{folder}"


def test_classes_of_other_data_are_matched_by_name(make_run, tmp_path):
    """Some of the run's classes in another order are scored as the run knows them; one that it does not know is refused."""
    run = make_run()
    run.write_summary({**run.summary, "class_names": names_of_digits})
    data = write_pictures(tmp_path / "known", ["three", "nine", "ant"])
    model = run.model()
    run.write_summary({**run.summary, "class_names": [*names_of_digits[:9], "ant"]})
    with pytest.raises(ValueError, match=r"^data: received folder:.* with class nine; allowed, as in training: zero, one.*, ant$"):
        evaluate(run, data=data)
    run.write_summary({**run.summary, "class_names": ["ant", *names_of_digits[1:]]})
    with pytest.warns(UserWarning, match="^folder:.* has no classes one, two, four, five, six, seven, eight, which the run has$"):
        result = evaluate(run, data=data, split="train")
    assert result.class_names == ["ant", *names_of_digits[1:]]
    assert np.flatnonzero(result.count).tolist() == [0, 3, 9]
    images = load_data(data, image_size=8, channels=1).train
    logits = keras.ops.convert_to_numpy(model(normalize(images.images(np.arange(len(images))), [0.5], [0.5])))
    right = logits.argmax(1) == np.array([0, 9, 3])[images.labels]  # ant, nine, three in the folder's order
    assert result.accuracy == pytest.approx(right.mean(), abs=EXACT)


names_of_digits = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def test_numbers_of_arrays_are_the_labels_of_named_classes(make_run, tmp_path):
    run = make_run()
    run.write_summary({**run.summary, "class_names": names_of_digits})
    x, y = np.random.default_rng(0).integers(0, 256, (12, 8, 8), dtype=np.uint8), np.array([2, 7] * 6)
    for labels, allowed in ((y, True), (np.where(y == 7, 10, y), False)):
        np.savez(tmp_path / "a.npz", x_train=x, y_train=labels, x_test=x, y_test=labels)
        if allowed:
            with pytest.warns(UserWarning, match="has no classes 0, 1, 3"):
                assert evaluate(run, data=f"arrays:{tmp_path}/a.npz").count.tolist() == [0, 0, 6, 0, 0, 0, 0, 6, 0, 0]
        else:
            with pytest.raises(ValueError, match="with class 10; allowed, as in training: 0, 1, 2"):
                evaluate(run, data=f"arrays:{tmp_path}/a.npz")


def test_evaluate_says_that_the_data_has_changed(make_run):
    run = make_run()
    run.write_summary({**run.summary, "fingerprint": "other"})
    with pytest.warns(UserWarning, match="digits has changed since .* was trained"):
        evaluate(run)


def test_the_temperature_of_a_run_calibrates_its_scores(make_run, command):
    run = make_run()
    before = evaluate(run)
    run.write_summary({**run.summary, "temperature": 2.5})
    after = evaluate(run)
    assert (after.accuracy, after.top_k_accuracy) == (before.accuracy, before.top_k_accuracy)
    assert (before.temperature, after.temperature) == (1, 2.5)
    assert before.error_before == before.calibration.error == after.error_before != after.calibration.error
    outputs = compute_outputs(run)
    expected = score(outputs.logits / 2.5, outputs.labels, outputs.class_names)
    assert after.loss == pytest.approx(expected.loss, abs=TOLERANCE)
    assert after.calibration.error == pytest.approx(expected.calibration.error, abs=TOLERANCE)
    code, output, _ = command(run.path)
    assert not code
    said = f"temperature 2.5 (of the validation images; without it an error of {before.calibration.error:.2%})"
    assert f"probabilities calibrated by {said}" in output
    content = json.loads((run.path / "evaluation-test.json").read_text(encoding="utf-8"))
    assert (content["temperature"], content["expected_calibration_error_before"]) == (2.5, before.calibration.error)
    page = (run.path / "report.html").read_text(encoding="utf-8")
    assert f"without it the error is {before.calibration.error:.2%}" in page
    assert "percentages are its probabilities, calibrated." in page


def test_what_cannot_be_evaluated(make_run):
    run = make_run()
    with pytest.raises(ValueError, match="split: received 'dev'"):
        evaluate(run, split="dev")
    with pytest.raises(ValueError, match="batch_size: received 0"):
        evaluate(run, batch_size=0)
    with pytest.raises(ValueError, match="num_classes: received 0"):
        evaluate(make_run("headless", num_classes=0))


def test_written_evaluation(make_run):
    run = make_run()
    result = evaluate(run)
    paths = write_evaluation(result, run)
    assert [path.relative_to(run.path).as_posix() for path in paths] == [
        "evaluation-test.json",
        "plots/confusion-test.png",
        "plots/reliability-test.png",
    ]
    content = json.loads(paths[0].read_text(encoding="utf-8"))
    assert content["accuracy"] == result.accuracy
    assert content["images"] == 359
    assert content["split"] == "test"
    assert content["top_k"] == 5
    assert content["expected_calibration_error"] == result.calibration.error
    assert np.trace(content["confusion"]) == round(result.accuracy * 359)
    assert sum(row["count"] for row in content["calibration_bins"]) == 359
    assert [row["name"] for row in content["classes"]] == result.class_names
    empty = [row for row in content["calibration_bins"] if not row["count"]]
    assert empty
    assert empty[0]["accuracy"] is None
    for path in paths[1:]:
        assert min(size(path)) > 600


def test_evaluation_table_keeps_the_worst_of_many_classes():
    labels = np.arange(100) % 50
    logits = np.eye(50)[labels]
    logits[7] = np.eye(50)[9]
    table = evaluation_table(score(logits, labels, [f"[{index}]" for index in range(50)]), most=3)
    names = [str(cell).replace("\\", "") for cell in table.columns[0].cells]
    assert names[:2] == ["[7]", "[9]"]
    assert len(names) == 3
    assert "50 classes" in table.caption


def test_compare(make_run):
    runs = [make_run("a"), make_run("b", position="sincos2d", summary=False)]
    rows = compare(runs)
    assert rows["test accuracy"] == [0.5, None]
    assert "test calibration error" not in rows
    runs[0].write_summary({**runs[0].summary, "test_calibration_error": 0.012})
    assert compare(runs)["test calibration error"] == [0.012, None]
    assert rows["best validation accuracy"] == [0.4, 0.4]
    assert rows["training time (s)"] == [5.0, 5.0]
    assert rows["images/s (median epoch)"] == [500.0, 500.0]
    assert rows["backend"] == ["jax", None]
    assert rows["model.position"] == ["learned", "sincos2d"]
    assert not [name for name in rows if name.startswith(("model.", "train.", "augment.")) and name != "model.position"]
    assert [column.header for column in comparison_table(runs).columns] == ["", "a", "b"]


def test_run_names():
    runs = [types.SimpleNamespace(path=Path(path)) for path in ("x/1/quick", "x/2/quick", "x/2/best")]
    assert run_names(runs) == ["1/quick", "2/quick", "2/best"]
    assert run_names(runs[1:]) == ["quick", "best"]
    with pytest.raises(ValueError, match=r"received .*quick' 2 times; allowed: different runs"):
        run_names([runs[0], types.SimpleNamespace(path=Path("x/../x/1/quick"))])


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs `keras-vit evaluate` in this process; returns exit code, output and errors."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, arguments)])
        code = 0
        try:
            main("evaluate")
        except SystemExit as exit:
            code = exit.code
        return code, *capsys.readouterr()

    return run


def test_command_evaluates(command, make_run):
    run = make_run()
    code, output, _ = command(run.path, "--split", "validation")
    assert not code
    content = json.loads((run.path / "evaluation-validation.json").read_text(encoding="utf-8"))
    assert f"{content['accuracy']:.2%}" in output
    assert f"{content['top_k_accuracy']:.2%}" in output
    assert "digits, validation, 144 images" in output


def test_command_compares(command, make_run, tmp_path):
    code, output, _ = command(make_run("a").path, make_run("b", seed=1).path, "--out", tmp_path / "both.png")
    assert not code
    assert "50.00%" in output
    assert "seed" in output
    assert "both.png" in output
    assert size(tmp_path / "both.png") == (2100, 1125)
    assert "2 runs side by side" in (tmp_path / "both.html").read_text(encoding="utf-8")


def test_a_page_may_name_the_comparison(command, make_run, tmp_path):
    code, _, _ = command(make_run("a").path, make_run("b", seed=1).path, "--out", tmp_path / "pair.html")
    assert not code
    assert size(tmp_path / "pair.png") == (2100, 1125)
    assert "<h1>2 runs side by side" in (tmp_path / "pair.html").read_text(encoding="utf-8")


def test_command_writes_the_report(command, make_run):
    run = make_run()
    code, output, _ = command(run.path)
    assert not code
    assert f"written: {run.path / 'report.html'}\n" in output
    accuracy = json.loads((run.path / "evaluation-test.json").read_text(encoding="utf-8"))["accuracy"]
    page = (run.path / "report.html").read_text(encoding="utf-8")
    assert f"<dt>test accuracy</dt><dd>{accuracy:.2%}</dd>" in page
    assert "n = 359 test images" in page
    assert "attention on test image" in page
    (run.path / "report.html").unlink()
    for arguments in (["--split", "validation"], ["--merge-tokens", "1"]):  # another model, or other images
        assert not command(run.path, *arguments)[0]
    assert not (run.path / "report.html").exists()


def test_a_run_without_weights_has_a_report_and_an_error(command, make_run):
    run = make_run(trained=False)
    code, output, errors = command(run.path)
    assert code == 2
    assert errors == f"error: run: received {str(run.path)!r}, which has no best.keras; allowed: a run with a validated epoch\n"
    assert output == f"written: {run.path / 'report.html'}, without results on the test images\n"
    assert "no epoch is done yet" in (run.path / "report.html").read_text(encoding="utf-8")
    (run.path / "report.html").unlink()
    finished = make_run("finished")
    (finished.path / "report.html").write_text("of the training", encoding="utf-8")
    (finished.path / "best.keras").write_text("damaged")
    assert command(finished.path)[:2] == (2, "")
    assert (finished.path / "report.html").read_text(encoding="utf-8") == "of the training"  # which knew more
    assert command(run.path, "--batch-size", "0")[2] == "error: batch_size: received 0; allowed: an integer of at least 1\n"
    assert not (run.path / "report.html").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "RUN: received none"),
        (["nowhere"], "received 'nowhere', which is no folder"),
        (["run", "--split", "dev"], "--split: received 'dev'; allowed: test, validation, train"),
        (["run", "--out", "x.png"], "--out: received x.png; allowed with one run: none"),
        (["run", "run", "--data", "digits"], "--data: received digits; allowed with several runs: none"),
        (["run", "--batch-size", "-3"], "batch_size: received -3"),
        (["run", "--data", "arrays:nothing.npz"], "nothing.npz"),
    ],
)
def test_command_refuses_in_one_line(command, make_run, monkeypatch, arguments, message):
    monkeypatch.chdir(make_run(trained="arrays:nothing.npz" in arguments).path.parent)
    code, _, errors = command(*arguments)
    assert code == 2
    assert message in errors
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1


def test_command_answers_help(command):
    code, output, _ = command("--help")
    assert not code
    assert "--merge-tokens" in output
