"""Class names and file names made to harm, through every command that shows them and every file that holds them."""

import csv
import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

import keras_vit
from keras_vit.checks import UNSEEN
from keras_vit.cli import evaluate, predict
from keras_vit.data.dataset import load_data
from keras_vit.parity import randomise
from keras_vit.recipes.parse import load_recipe
from keras_vit.runs.folder import RunFolder

NAMES = ['"quoted", x', "$\\frac{", "<script>alert(1)<", "[red]bold[link=x]", "line\nbreak\r", "red\x1b[31m\x1b]0;me\x07"]
SHOWN = ['"quoted", x', "$\\frac{", "<script>alert(1)<", "[red]bold[link=x]", r"line\nbreak\r", r"red\x1b[31m\x1b]0;me\x07"]
SHAPE = {"image_size": 8, "patch_size": 4, "width": 8, "depth": 1, "num_heads": 2, "mlp_dim": 8, "channels": 3}


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    for label, name in enumerate(NAMES):
        for index in range(4):
            path = folder / name / f"{index}\x1b[1m.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((8, 8, 3), 40 * label + index, np.uint8)).save(path)
    return folder


@pytest.fixture
def run(tmp_path, photos):
    """A run that someone else has made: the names in its summary are as they are."""
    recipe = load_recipe("digits", model=SHAPE, mean=0.5, std=0.5, data=f"folder:{photos}")
    run = RunFolder.create(tmp_path / "run", recipe)
    run.write_model(1, randomise(keras_vit.build_vit(dataclasses.replace(recipe.model, num_classes=len(NAMES)))))
    run.write_summary({"class_names": NAMES, "fingerprint": ""})
    return run


def test_names_of_classes_are_text_from_the_start(photos):
    assert load_data(f"folder:{photos}", image_size=8).class_names == SHOWN
    (photos / "red\\x1b[31m\\x1b]0;me\\x07").mkdir()
    Image.new("RGB", (8, 8)).save(photos / "red\\x1b[31m\\x1b]0;me\\x07" / "a.png")
    with pytest.raises(ValueError, match=r"with two classes .*; allowed: names that differ as they are shown"):
        load_data(f"folder:{photos}", image_size=8)


def test_predictions(run, photos, tmp_path, capsys):
    files = {name: tmp_path / f"out.{name}" for name in ("csv", "json", "html")}
    options = [part for name, path in files.items() for part in (f"--{name}", str(path))]
    predict.main([str(run.path), str(photos), "--top", "6", *options])
    printed = capsys.readouterr().out
    assert not UNSEEN.search(printed.replace("\n", ""))
    assert all(name in printed for name in SHOWN)
    with open(files["csv"], newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert len(rows) == 1 + 4 * len(NAMES)
    assert all(sorted(row[1::2]) == sorted(SHOWN) for row in rows[1:])
    found = json.loads(files["json"].read_text())
    assert sorted(each["name"] for each in found[0]["classes"]) == sorted(SHOWN)
    page = files["html"].read_text()
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)&lt;" in page
    assert "\x1b" not in page


def test_evaluation(run, capsys):
    summary = run.summary
    run.write_summary({**summary, "class_names": SHOWN})
    with pytest.warns(UserWarning, match="has changed since"):
        evaluate.main([str(run.path), "--split", "train"])
    printed = capsys.readouterr().out
    assert not UNSEEN.search(printed.replace("\n", ""))
    assert all(name in printed for name in SHOWN)
    assert (run.plots / "confusion-train.png").is_file()
