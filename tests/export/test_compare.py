"""The comparison of exports: its arithmetic, and processes that take turns."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from helpers import LIGHT, predict

from keras_vit import build_vit, load_recipe
from keras_vit.export import compare
from keras_vit.export.compare import LATENCY, ROUNDS, THROUGHPUT, compare_exports, comparison_table, keras_artifact
from keras_vit.export.runtimes import FILES
from keras_vit.images import normalize
from keras_vit.parity import randomise
from keras_vit.runs.folder import RunFolder

TOLERANCE = 1e-4  # absolute, of logits near 1: the same model in another process


@pytest.fixture
def run(tmp_path):
    settings = {"image_size": 8, "patch_size": 2, "width": 32, "depth": 1, "num_heads": 2, "mlp_dim": 48}
    recipe = load_recipe("digits", model=settings)
    run = RunFolder.create(tmp_path / "run", recipe)
    run.write_model(1, randomise(build_vit(dataclasses.replace(recipe.model, num_classes=10))))
    return run


def write_export(run, folder, **changes):
    """The run's model as an export, its report changed."""
    folder.parent.mkdir(exist_ok=True)
    keras_artifact(run, folder)
    settings = {**json.loads((folder / "export.json").read_text()), **changes}
    (folder / "export.json").write_text(json.dumps(settings))
    return folder


def test_processes(run, monkeypatch):
    """An export in bfloat16 beside the model, and one for single images."""
    monkeypatch.setenv("KERAS_BACKEND", LIGHT)
    home, model = run.path / "export", run.model()
    half = write_export(run, home / "half", precision="bfloat16")
    lower = build_vit(model.config, dtype="bfloat16")
    lower.set_weights(model.get_weights())
    lower.save(half / FILES["keras"])
    write_export(run, home / "one", batch_size=1)
    said = []
    rows = compare_exports(run, home, images=100, seconds=0.1, report=said.append)
    assert any("one: written for batches of 1; left out" in line for line in said)
    assert [(row["name"], row["precision"]) for row in rows] == [("Keras", "float32"), ("half", "bfloat16")]
    test, recipe = run.recipe.load_data().test, run.recipe
    logits = predict(model, normalize(test.images(np.arange(100)), recipe.mean, recipe.std))
    original, half = rows
    assert original["accuracy"] == np.mean(logits.argmax(-1) == test.labels[:100])
    assert original["difference"] == 0
    assert TOLERANCE < half["difference"] < 0.1 * logits.std()
    for row in rows:
        assert 0 < row["latency"] < 10
        assert row["throughput"] > 1
    assert json.loads((home / "compare.json").read_text())["rows"] == rows
    assert json.loads((home / "compare.json").read_text())["images"] == 100
    assert comparison_table(rows).row_count == 2


def test_numbers(run, tmp_path, monkeypatch):
    """Runtimes whose logits and times are known, in folders that are named."""
    test = run.recipe.load_data().test
    right = np.eye(10)[test.labels]
    turns = []

    class FakeRuntime:
        def __init__(self, format, folder):
            self.name = folder.name
            self.times = {LATENCY: [], THROUGHPUT: []}

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def predict(self, images, files, batch_size):
            assert images.dtype == (np.float32 if self.name == "floats" else np.uint8)
            part = slice(FakeRuntime.start, FakeRuntime.start + len(images))
            FakeRuntime.start = part.stop % len(test)
            wrong = {"keras": 0, "worse": 90, "floats": 36}[self.name]
            logits = right.copy()
            logits[:wrong] = 0.25 - right[:wrong]
            return logits[part]

        def ask(self, do, batch_size, seconds):
            assert (do, seconds) == ("time", 3.0 / ROUNDS)
            turns.append((self.name, batch_size))
            self.times[batch_size].append(0)
            noise = 1 + len(self.times[batch_size])  # the machine grows slower from turn to turn
            return {"seconds": noise * {"keras": 4, "worse": 1, "floats": 8}[self.name] * (1 if batch_size == LATENCY else 3)}

    FakeRuntime.start = 0
    monkeypatch.setattr(compare, "Runtime", FakeRuntime)
    monkeypatch.setattr(compare, "PART", 100)
    worse = write_export(run, tmp_path / "other" / "worse", precision="int8")
    (worse / FILES["keras"]).write_bytes(b"x" * 1000)
    shape = list(run.model().config.image_shape)
    floats = write_export(run, run.path / "export" / "floats", format="onnx", input="float32", image_shape=shape)
    (floats / FILES["keras"]).rename(floats / FILES["onnx"])
    rows = compare_exports(run, run.path / "export", [worse, floats], seconds=3.0, report=lambda line: None)

    assert turns == [(name, batch) for name in ("keras", "worse", "floats") for batch in (LATENCY, THROUGHPUT)] * ROUNDS
    assert [row["name"] for row in rows] == ["Keras", str(worse), "floats"]
    assert [row["accuracy"] for row in rows] == [1, 1 - 90 / len(test), 1 - 36 / len(test)]
    assert [row["accuracy_change"] for row in rows] == [0, rows[1]["accuracy"] - 1, rows[2]["accuracy"] - 1]
    assert [row["difference"] for row in rows] == [0, 1.75, 1.75]
    assert rows[1]["bytes"] == 1000
    assert [row["size"] for row in rows] == [1, 1000 / rows[0]["bytes"], 1]  # the last one is the float32 export of its format
    middle = 1 + (ROUNDS + 1) / 2
    assert [row["latency"] for row in rows] == [4 * middle, middle, 8 * middle]
    assert [row["throughput"] for row in rows] == pytest.approx([THROUGHPUT / (3 * row["latency"]) for row in rows])
    assert [row["latency_ratio"] for row in rows] == [row["throughput_ratio"] for row in rows] == [1, 4, 0.5]
    cells = [list(column.cells) for column in comparison_table(rows).columns]
    assert cells[4] == cells[6] == ["1.00", "4.00", "0.50"]
    assert cells[7] == [f"{row['accuracy']:.2%}" for row in rows]
    assert cells[8] == ["+0.00", f"-{9000 / len(test):.2f}", f"-{3600 / len(test):.2f}"]


def test_mistakes(run, tmp_path):
    home = run.path / "export"
    with pytest.raises(ValueError, match=r"^--compare: received no exports in"):
        compare_exports(run, home)
    for options, message in (({"images": 0}, "images: received 0"), ({"seconds": 0.0}, "seconds: received 0.0")):
        with pytest.raises(ValueError, match=f"^{message}"):
            compare_exports(run, home, **options)
    with pytest.raises(ValueError, match=r"^--compare: received a model; allowed: a run folder"):
        compare_exports(run.model(), home)
    export = write_export(run, home / "onnx", format="onnx")
    with pytest.raises(ValueError, match=r"^--compare: .*which has no model.onnx"):
        compare_exports(run, home)
    for content in (None, "{", '{"batch_size": null}'):
        folder = tmp_path / f"{content}"
        folder.mkdir()
        if content:
            (folder / "export.json").write_text(content)
        with pytest.raises(ValueError, match=r"^--compare: .*; allowed: a folder with an intact export.json \(.*\)$"):
            compare_exports(run, home, [folder])
    shutil.rmtree(export)
    for name, value in (("temperature", 0.0), ("temperature", -1.0), ("temperature", float("nan")), ("center_crop", 2.0)):
        export = write_export(run, home / "changed", **{name: value})
        with pytest.raises(ValueError, match=rf"^--compare: .*intact export.json \({name}: received"):
            compare_exports(run, home, [export])
        shutil.rmtree(export)
    write_export(run, home / "other", parameters=7)
    with pytest.raises(ValueError, match=r"^--compare: .*other', of another model; allowed: exports of the run's model$"):
        compare_exports(run, home, images=1, report=lambda line: None)
