"""Predictions: the numbers of the model on the images of training, from files, arrays, runs, .keras files and exports."""

import base64
import csv
import dataclasses
import io
import json
import os
import re

import numpy as np
import pytest
from helpers import error_line, logits
from PIL import Image

import keras_vit
from keras_vit.cli.predict import main, parse_options
from keras_vit.data.dataset import load_data
from keras_vit.export.classifier import open_classifier
from keras_vit.export.report import describe
from keras_vit.files import write_json
from keras_vit.images import normalize
from keras_vit.parity import randomise
from keras_vit.recipes.parse import load_recipe
from keras_vit.runs.folder import RunFolder
from keras_vit.runs.prediction import Classifier, find_images, predict_arrays, predict_files, visible

CLOSE = 1e-5
NAMES = ["<b>bold", "cat", "dog"]
SHAPE = {"image_size": 12, "patch_size": 4, "width": 16, "depth": 1, "num_heads": 2, "mlp_dim": 16, "channels": 3}


@pytest.fixture
def run(tmp_path):
    recipe = load_recipe("digits", model=SHAPE, mean=[0.5, 0.4, 0.3], std=[0.2, 0.3, 0.4])
    run = RunFolder.create(tmp_path / "run", recipe)
    run.write_model(1, randomise(keras_vit.build_vit(dataclasses.replace(recipe.model, num_classes=3))))
    run.write_summary({"class_names": NAMES})
    return run


@pytest.fixture
def photos(tmp_path):
    """Two classes of pictures of several sizes; one is no picture."""
    folder = tmp_path / "photos"
    for index in range(7):
        target = folder / f"class {index % 2}" / f"{index} [x].png"
        target.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(index).integers(0, 256, (20 + index, 15, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(target)
    return folder


def expected(run, folder):
    """Probabilities (N, K) by the images that training reads, in the order of the folder."""
    images = load_data(f"folder:{folder}", image_size=12, validation=0, channels=3)
    files = [str(file) for file in images.train._images.source.files]
    values = logits(run.model(), normalize(images.train._images[np.arange(len(files))], run.recipe.mean, run.recipe.std))
    values = np.exp(values.astype(np.float64))
    return dict(zip(files, values / values.sum(1, keepdims=True), strict=True))


def write_export(folder, model, mean=None, std=None, **settings):
    """What `export_model` leaves, without its processes, which tests/export tries."""
    write_json(folder / "export.json", describe(model, "keras", "float32", "auto", mean, std, NAMES, None, **settings))
    model.save(folder / "model.keras")
    return folder


def check(predictions, wanted, top):
    assert [each.image for each in predictions] == list(wanted)
    for each, row in zip(predictions, wanted.values(), strict=True):
        order = np.argsort(-row)[:top]
        assert each.classes == [NAMES[label] for label in order]
        np.testing.assert_allclose(each.probabilities, row[order], atol=CLOSE)


@pytest.mark.backend
def test_predictions_are_those_of_the_training_images(run, photos):
    wanted = expected(run, photos)
    check(run.predict(photos, top=2), wanted, 2)
    settings = {"mean": run.recipe.mean, "std": run.recipe.std, "class_names": NAMES, "top": 3}
    check(keras_vit.predict(run.model(), [photos], batch_size=3, **settings), wanted, 3)
    images = np.random.default_rng(0).integers(0, 256, (5, 12, 12, 3), dtype=np.uint8)
    found = keras_vit.predict(run.model(), images, batch_size=2, **settings)
    rows = logits(run.model(), normalize(images, run.recipe.mean, run.recipe.std)).astype(np.float64)
    rows = np.exp(rows) / np.exp(rows).sum(1, keepdims=True)
    check(found, dict(enumerate(rows)), 3)
    assert [each.image for each in found] == [0, 1, 2, 3, 4]


def test_command(run, photos, tmp_path, capsys):
    wanted = expected(run, photos)
    out = {name: tmp_path / f"out.{name}" for name in ("csv", "json", "html")}
    files = [f"--{name}={path}" for name, path in out.items()]
    main([str(run.path), str(photos), str(photos / "class 0"), "--top", "2", *files])
    said = capsys.readouterr().out
    assert "<b>bold" in said
    assert all(name in said for name in wanted)  # whole paths, however long
    assert "7 pictures: " in said
    rows = list(csv.DictReader(io.StringIO(out["csv"].read_text())))
    assert [row["image"] for row in rows] == list(wanted)  # each once
    for row, values in zip(rows, wanted.values(), strict=True):
        first, second, _ = np.argsort(-values)
        assert (row["class"], row["class_2"]) == (NAMES[first], NAMES[second])
        assert float(row["probability_2"]) == pytest.approx(values[second], abs=CLOSE)
    content = json.loads(out["json"].read_text())
    assert [each["image"] for each in content] == list(wanted)
    assert content[0]["classes"][1]["name"] == rows[0]["class_2"]
    page = out["html"].read_text()
    assert "<b>bold" not in page
    assert "&lt;b&gt;bold" in page
    thumbnails = [Image.open(io.BytesIO(base64.b64decode(data))) for data in re.findall(r"base64,([^\"]+)", page)]
    assert [image.size for image in thumbnails] == [(12, 12)] * 7
    assert re.findall(r"(?:src|href)=\"(?!data:)", page) == []  # it needs no other file


def test_other_models(run, photos, tmp_path, request):
    """A .keras file beside no recipe, one in a run folder, and an export."""
    wanted, out = expected(run, photos), tmp_path / "out.json"

    def read():
        return [
            (each["image"], each["classes"][0]["name"], each["classes"][0]["probability"]) for each in json.loads(out.read_text())
        ]

    main([str(run.model_path), str(photos), f"--json={out}"])
    first = read()
    assert [name for _, name, _ in first] == [NAMES[row.argmax()] for row in wanted.values()]
    alone = tmp_path / "alone.keras"
    alone.write_bytes(run.model_path.read_bytes())
    numbers = [str(value) for value in (*run.recipe.mean, *run.recipe.std)]
    main([str(alone), str(photos), f"--json={out}", "--mean", *numbers[:3], "--std", *numbers[3:], "--class-names", *NAMES])
    assert read() == first
    write_export(tmp_path / "export", run.model(), run.recipe.mean, run.recipe.std)
    main([str(tmp_path / "export"), str(photos), f"--json={out}", "--batch-size", "4"])
    exported = read()
    for ours, theirs in zip(exported, first, strict=True):
        assert ours[:2] == theirs[:2]
        assert ours[2] == pytest.approx(theirs[2], abs=CLOSE)
    request.getfixturevalue("runtime_here")  # one process is enough
    options = parse_options([str(tmp_path / "export" / "model.keras"), str(photos)])  # the file alone does not know its mean
    with open_classifier(options, notes := []) as chosen:
        again = [*predict_files(chosen, find_images(photos), notes=notes)]
    assert [(each.image, each.classes[0]) for each in again] == [each[:2] for each in exported]
    assert notes == []


def test_center_crop(run, photos, tmp_path, runtime_here):
    """The middle of each picture, as evaluation with the same setting sees it: for a run, on the command line, in an export."""
    settings = {"mean": run.recipe.mean, "std": run.recipe.std, "class_names": NAMES, "top": 3}
    given, out = keras_vit.predict(run.model(), [photos], center_crop=0.6, **settings), tmp_path / "out.json"
    data = load_data(f"folder:{photos}", image_size=12, validation=0, channels=3, center_crop=0.6).train
    found = {each.image: each for each in given}
    rows = data._images[np.arange(7)]
    for file, image in zip(data._images.source.files, rows, strict=True):
        (each,) = keras_vit.predict(run.model(), image[None], **settings)
        assert found[str(file)].classes == each.classes
        np.testing.assert_allclose(found[str(file)].probabilities, each.probabilities, atol=CLOSE)
    whole = keras_vit.predict(run.model(), [photos], **settings)
    assert not np.allclose([each.probabilities for each in whole], [each.probabilities for each in given], atol=0.01)
    main([str(run.path), str(photos), f"--json={out}", "--center-crop", "0.6", "--top", "3"])
    assert out.read_text() == json.dumps([each.to_dict() for each in given], indent=1) + "\n"
    folder = write_export(tmp_path / "export", run.model(), run.recipe.mean, run.recipe.std, center_crop=0.6)
    main([str(folder), str(photos), f"--json={out}", "--top", "3"])
    check(given, {each["image"]: probabilities_of(each) for each in json.loads(out.read_text())}, 3)


def test_a_temperature_divides_the_logits(run, photos, tmp_path, runtime_here):
    """That of the run's summary, of an export, and of the command line."""
    plain, out = expected(run, photos), tmp_path / "out.json"

    def at(temperature):
        values = {name: row ** (1 / temperature) for name, row in plain.items()}
        return {name: row / row.sum() for name, row in values.items()}

    def read(*arguments):
        main([*map(str, arguments), str(photos), f"--json={out}", "--top", "3"])
        return {each["image"]: probabilities_of(each) for each in json.loads(out.read_text())}

    run.write_summary({"class_names": NAMES, "temperature": 2.5})
    check(run.predict(photos, top=3), at(2.5), 3)
    settings = {"mean": run.recipe.mean, "std": run.recipe.std, "class_names": NAMES, "top": 3}
    check(keras_vit.predict(run.model(), [photos], temperature=0.4, **settings), at(0.4), 3)
    folder = write_export(tmp_path / "export", run.model(), run.recipe.mean, run.recipe.std, temperature=4.0)
    for found, wanted in ((read(run.path), 2.5), (read(folder), 4.0), (read(folder, "--temperature", "0.5"), 0.5)):
        for name, row in at(wanted).items():
            np.testing.assert_allclose(found[name], row, atol=CLOSE)
    report = json.loads((folder / "export.json").read_text())
    del report["temperature"]  # as in an export of an earlier release
    write_json(folder / "export.json", report)
    for name, row in read(folder).items():
        np.testing.assert_allclose(row, plain[name], atol=CLOSE)
    run.write_summary({"class_names": NAMES, "temperature": None})
    check(run.predict(photos, top=3), plain, 3)


def test_what_is_no_temperature(run, photos, tmp_path, capsys, runtime_here):
    folder = write_export(tmp_path / "export", run.model(), run.recipe.mean, run.recipe.std)
    for path, value in ((run.path, "0"), (run.path, "nan"), (folder, "-1"), (folder, "inf")):
        line = error_line(capsys, main, [str(path), str(photos), "--temperature", value])
        assert re.fullmatch(rf"(--)?temperature: received {float(value)}; allowed: a number above 0", line)
    for value in (-2, "warm", float("inf")):
        run.write_summary({"class_names": NAMES, "temperature": value})
        line = error_line(capsys, main, [str(run.path), str(photos)])
        assert re.fullmatch(rf"run: temperature in '.*summary.json': received {value!r}; allowed: a number above 0", line)
    write_json(folder / "export.json", {**json.loads((folder / "export.json").read_text()), "temperature": "hot"})
    assert "temperature: received 'hot'; allowed: a number" in error_line(capsys, main, [str(folder), str(photos)])


def probabilities_of(each):
    found = {row["name"]: row["probability"] for row in each["classes"]}
    return np.array([found[name] for name in NAMES])


def test_settings_of_an_export(run, photos, tmp_path, capsys, runtime_here):
    """Those that the export cannot use, or that do not fit it, are refused."""
    model = run.model()
    folder = write_export(tmp_path / "export", model, run.recipe.mean, run.recipe.std)
    for options, message in (
        (["--class-names", "a"], "class_names: received 1; allowed: 3"),
        (["--mean", "0.5"], "--mean: received [0.5]; allowed with an export that normalises its images itself: none"),
    ):
        assert message in error_line(capsys, main, [str(folder), str(photos), *options])
    write_export(folder, model)  # without mean and std it takes normalised images
    assert "--mean: received none" in error_line(capsys, main, [str(folder), str(photos)])
    assert "mean: received [1.0, 2.0]" in error_line(capsys, main, [str(folder), str(photos), "--mean", "1", "2", "--std", "1"])
    numbers = ["--mean", *map(str, run.recipe.mean), "--std", *map(str, run.recipe.std), "--class-names", *NAMES]
    with open_classifier(parse_options([str(folder), str(photos), *numbers]), []) as chosen:
        check([*predict_files(chosen, find_images(photos), top=3, notes=[])], expected(run, photos), 3)
    (folder / "model.keras").unlink()
    assert f"MODEL: received {str(folder)!r}, which has no model.keras" in error_line(capsys, main, [str(folder), str(photos)])


def test_a_fixed_batch_is_filled(photos):
    sizes = []

    def logits(images):
        sizes.append(len(images))
        return images.reshape(len(images), -1)[:, :3]

    images = np.random.default_rng(0).integers(0, 256, (5, 2, 2, 1), dtype=np.uint8)
    found = [*predict_arrays(Classifier((2, 2, 1), NAMES, logits, batch_size=4), images, top=1, threshold=None, batch_size=64)]
    assert sizes == [4, 4]
    assert [each.classes for each in found] == [[NAMES[row.argmax()]] for row in images.reshape(5, 4)[:, :3]]
    assert len([*predict_files(Classifier((2, 2, 1), NAMES, logits, batch_size=4), find_images(photos), notes=[])]) == 7
    broken = Classifier((2, 2, 1), NAMES, lambda images: np.full((len(images), 3), np.nan))
    with pytest.raises(ValueError, match="logits: received NaN or infinity for 5 of 5 images"):
        [*predict_arrays(broken, images, top=1, threshold=None, batch_size=64)]


def test_names_are_shown_and_not_obeyed(run, tmp_path, capsys):
    """Markup, emoji codes, control characters and bytes that are no UTF-8, on the screen and in files."""
    names = ["[red]a[red].png", ":cat:.png", "esc\x1b[31m.png", "new\nline.png", "<b>.png", os.fsdecode(b"bad\xff.png")]
    for name in names:
        Image.new("RGB", (5, 5)).save(tmp_path / name)
    given = [str(tmp_path / name) for name in names]
    out = {name: tmp_path / f"out.{name}" for name in ("csv", "json", "html")}
    main(
        [str(run.path), *given, *(f"--{name}={path}" for name, path in out.items()), "--class-names", ":dog:", "[b]b[/b]", "\udcff"]
    )
    said = capsys.readouterr().out
    for shown in ("[red]a[red].png", ":cat:.png", "esc\\x1b[31m.png", "new\\nline.png", "<b>.png", "bad\\xff.png"):
        assert f"{shown} " in said
    rows = list(csv.DictReader(io.StringIO(out["csv"].read_text(encoding="utf-8"))))
    assert [row["image"] for row in rows[:5]] == given[:5]
    assert rows[5]["image"].endswith("bad\\xff.png")
    assert len(json.loads(out["json"].read_text(encoding="utf-8"))) == 6
    assert "&lt;b&gt;.png" in out["html"].read_text(encoding="utf-8")
    assert visible("a\u202eb\x00é\u202f") == "a\\u202eb\\x00é\u202f"


def test_files_that_cannot_be_read_are_named(run, photos, capsys):
    for index in range(5):
        (photos / "class 0" / f"text {index}.png").write_text("no picture")
    with pytest.warns(
        UserWarning, match=r"^5 of 12 files could not be read \(.*text 0.png: cannot identify image file; .*; \.\.\.\)$"
    ):
        assert len(run.predict(photos)) == 7
    main([str(run.path), str(photos)])
    assert "5 of 12 files could not be read" in capsys.readouterr().out
    assert "path: 1 of 1 files could not be read" in error_line(
        capsys, main, [str(run.path), str(photos / "class 0" / "text 1.png")]
    )


def test_paths(photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = [file.name for file in find_images(["photos/class 1", "photos/*/0*.png", "photos/class 1/1 [[]x].png"])]
    assert names == ["1 [x].png", "3 [x].png", "5 [x].png", "0 [x].png"]
    assert [file.name for file in find_images("photos/class 1/1 [x].png")] == [
        "1 [x].png"
    ]  # a name, though it looks like a pattern
    assert len(find_images(["photos/**/*.png"])) == 7
    (photos / "class 0" / "loop").symlink_to(photos)
    assert len(find_images(["photos", "photos/**/*.png", photos, "./photos/class 0"])) == 7  # each once
    os.mkfifo(photos / "pipe.png")
    broken = [
        *predict_files(
            Classifier((2, 2, 3), NAMES, lambda images: np.zeros((len(images), 3))), find_images("photos"), notes=(notes := [])
        )
    ]
    assert len(broken) == 7
    assert notes == ["1 of 8 files could not be read (photos/pipe.png: no file)"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["RUN", "none.png"], "path: received 'none.png'; allowed: a picture, a folder with pictures or a pattern"),
        (["RUN", "."], "path: received '.'; allowed: a picture"),
        (["RUN", "PHOTOS", "--top", "4"], "top: received 4; allowed: 1 to 3, the classes of the model"),
        (["RUN", "PHOTOS", "--top", "0"], "top: received 0; allowed: an integer of at least 1"),
        (["RUN", "PHOTOS", "--batch-size", "0"], "batch_size: received 0"),
        (["RUN", "PHOTOS", "--class-names", "a", "b"], "class_names: received 2; allowed: 3, the classes of the model"),
        (["none", "PHOTOS"], "run: received 'none'"),
        (["RUN"], "PATH: received none; allowed: a value"),
        (["RUN", "PHOTOS", "--csv", "a.png"], "--csv: received 'a.png'; allowed: a file whose name ends in .csv"),
        (["RUN", "PHOTOS", "--topp", "4"], "option: received --topp (did you mean --top?); allowed: those of --help"),
        (["RUN", "PHOTOS", "--top", "1", "none.png"], "path: received 'none.png'"),
    ],
)
def test_mistakes_are_one_line(run, photos, tmp_path, monkeypatch, capsys, options, message):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    given = {"RUN": str(run.path), "PHOTOS": str(photos)}
    assert message in error_line(capsys, main, [given.get(option, option) for option in options])
