"""Exports: every format from every backend, judged by the NumPy model; a mistake or a fault leaves nothing behind."""

import importlib.util
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import psutil
import pytest
from helpers import LIGHT, ROOT, TINY, children, dead_process, make_model, numpy, one_line_error, random_pixels, start, wait_for
from PIL import Image
from reference import Reference, weights_of
from sklearn.datasets import load_sample_images

from keras_vit import RunFolder, ViTConfig, build_vit, export_model, load_recipe
from keras_vit.backend import installed_backends
from keras_vit.data.decode import read_image
from keras_vit.export import export, formats, verify
from keras_vit.export.formats import BATCHES, EVERY, FORMATS, THRESHOLDS, choose_writer
from keras_vit.export.images import to_model, verification_images
from keras_vit.export.report import describe, export_table
from keras_vit.export.runtimes import FILES, Runtime, Worker
from keras_vit.export.verify import logits_of
from keras_vit.files import partial_prefix
from keras_vit.images import normalize
from keras_vit.parity import export_everywhere, randomise
from keras_vit.runs.calibration import probabilities_of

TOLERANCE = 1e-4  # absolute, of logits near 1 in float32: what is promised of an export
PROBABILITY = 0.02  # Pillow and TensorFlow decode and resize to within a few grey levels
MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.3)
NAMES = ("ant", "bee", "Käfer", "tick", "louse", "flea", "moth")

# A format that each backend writes itself, the quickest there is.
OWN = {"tensorflow": "litert", "jax": "onnx", "torch": "torch"}


def can_write(name):
    try:
        return bool(choose_writer(name))
    except ValueError:
        return False


WRITTEN_HERE = [name for name in FORMATS if can_write(name)]
ONNX_WRITERS_HERE = [
    backend
    for backend in installed_backends()
    if all(map(importlib.util.find_spec, (*FORMATS["onnx"].writers[backend], "onnxruntime")))
]
OWN_HERE = [name for name in (OWN[keras.backend.backend()],) if name in WRITTEN_HERE]


def pairs(names):
    """Each name with two models, each model with a name or two; all products would be no other test."""
    models = list(TINY)
    return [(name, models[(index + step) % len(models)]) for index, name in enumerate(names) for step in (0, 3)]


def pixels(model, batch=5, seed=1):
    return random_pixels(batch, *model.config.image_size, model.config.channels, seed=seed)


def expected_logits(model, images):
    """The logits of uint8 images (B, H, W, C) by the NumPy model, in float64."""
    x = (images / 255 - np.asarray(MEAN)) / np.asarray(STD)
    x = x.transpose(0, 3, 1, 2) if model.config.data_format == "channels_first" else x
    return Reference(model.config, weights_of(model))(x)["output"]


@pytest.fixture
def faked(monkeypatch):
    """Conversion and runtime without their processes: the artifact is an empty file, its logits are what `faked` is told."""
    answers = {"change": lambda logits: logits}

    def run_python(arguments, backend, **settings):
        folder = Path(arguments[-1])
        report = json.loads((folder / "export.json").read_text())
        (folder / FILES[report["format"]]).write_bytes(b"empty")
        answers["model"] = keras.saving.load_model(folder.parent / "model.keras", compile=False)

    class FakeRuntime:
        def __init__(self, format, folder):
            self.description = {"keras": False, "facts": {}}
            assert Path(folder, FILES[format]).is_file()

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def predict(self, images, folder):
            return answers["change"](logits_of(answers["model"], images))

    monkeypatch.setattr(export, "run_python", run_python)
    monkeypatch.setattr(verify, "Runtime", FakeRuntime)
    monkeypatch.setattr(formats, "find_spec", lambda package: True)
    monkeypatch.setattr(formats, "installed_backends", lambda: list(formats.BACKENDS))
    return answers


# What is written


@pytest.mark.backend
@pytest.mark.parametrize("name", OWN_HERE)
def test_export_against_numpy(tmp_path, monkeypatch, request, name):
    monkeypatch.setattr(export, "choose_writer", lambda name: keras.backend.backend())
    if keras.backend.backend() == "tensorflow":  # whose start takes seconds
        request.getfixturevalue("in_process")
    model = make_model("conv", depth=1)
    report = export_model(model, tmp_path / "out" / name, name, mean=MEAN, std=STD, class_names=NAMES, temperature=1.7)
    assert report["temperature"] == 1.7
    assert_exported(model, tmp_path / "out" / name, report)  # logits are the model's own; probabilities of signatures were verified


@pytest.mark.backend
@pytest.mark.parametrize("name", [name for name in OWN_HERE if name != "onnx"])  # it takes JAX long: among the slow ones
def test_export_with_merged_tokens(tmp_path, in_process, name):
    assert_merged(tmp_path, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", WRITTEN_HERE)
def test_every_format_with_merged_tokens(tmp_path, name):
    assert_merged(tmp_path, name)


def assert_merged(tmp_path, name):
    model = make_model(depth=1)
    report = export_model(model, tmp_path / "export", name, mean=MEAN, std=STD, merge_tokens=2)
    assert report["merge_tokens"] == 2
    assert report["difference"] < TOLERANCE
    assert model.config.merge_tokens == 0
    logits = Worker(name, tmp_path / "export", 0).run(pixels(model))
    assert np.abs(logits - expected_logits(model, pixels(model))).max() > 1e-3  # merged, and therefore not quite the same


@pytest.mark.slow
@pytest.mark.parametrize(("writer", "name"), pairs(ONNX_WRITERS_HERE))
def test_onnx_with_any_single_backend(tmp_path, monkeypatch, writer, name):
    monkeypatch.setattr(export, "choose_writer", lambda name: writer)
    model = make_model(name)
    report = export_model(model, tmp_path / "out" / "onnx", "onnx", mean=MEAN, std=STD, class_names=NAMES)
    assert report["written_by"] == writer
    assert_exported(model, tmp_path / "out" / "onnx", report)


@pytest.mark.slow
@pytest.mark.parametrize("writer", ONNX_WRITERS_HERE)
def test_onnx_with_merged_tokens_with_any_single_backend(tmp_path, monkeypatch, writer):
    monkeypatch.setattr(export, "choose_writer", lambda name: writer)
    report = export_model(make_model(), tmp_path / "onnx", "onnx", mean=MEAN, std=STD, merge_tokens=2)
    assert report["written_by"] == writer
    assert report["difference"] < TOLERANCE


def assert_exported(model, folder, report):
    """The artifact gives the NumPy model's logits for batches of any size, and the report says what was seen."""
    assert json.loads((folder / "export.json").read_text(encoding="utf-8")) == report
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "export.json"]
    assert report["bytes"] == sum(path.stat().st_size for path in files)
    written = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert os.fsencode(ROOT) not in written, "says where this library lies on whose disk"
    images = pixels(model)
    with Runtime(report["format"], folder, threads=1) as runtime:
        for size in (1, 2, 5):
            expected = expected_logits(model, images[:size])
            assert expected.std() > 1000 * TOLERANCE
            given = images[:size]
            if report["input"] == "float32":
                given = to_model(images[:size], report)
            np.testing.assert_allclose(runtime.predict(given, folder.parent), expected, atol=TOLERANCE)
    (folder.parent / "images.npy").unlink()
    (folder.parent / "logits.npy").unlink()
    assert [(row["images"], row["batch"]) for row in report["cases"]] == [
        (name, size) for name in ("random", "real") for size in BATCHES
    ]
    assert report["difference"] == max(row["difference"] for row in report["cases"]) <= THRESHOLDS["float32"]
    assert report["agreement"] == 1
    assert report["class_names"] == list(NAMES)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "model"), pairs(WRITTEN_HERE))
def test_every_format_and_every_model(tmp_path, name, model):
    model = make_model(model)
    report = export_model(model, tmp_path / "out" / name, name, mean=MEAN, std=STD, class_names=NAMES)
    assert_exported(model, tmp_path / "out" / name, report)


@pytest.mark.slow
@pytest.mark.parametrize("backend", installed_backends())
def test_every_format_from_every_backend(backend):
    target = {"config": ViTConfig(**TINY["map"]).to_dict()}
    rows = export_everywhere(target, WRITTEN_HERE, [backend], report=lambda line: None)
    assert [(row["format"], row["error"]) for row in rows] == [(name, None) for name in WRITTEN_HERE]
    for row in rows:
        assert row["written_by"] in FORMATS[row["format"]].writers
        assert row["difference"] <= THRESHOLDS["float32"]
        assert row["agreement"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", WRITTEN_HERE)
def test_artifacts_carry_their_preprocessing(tmp_path, name):
    model = make_model("gap")
    report = export_model(model, tmp_path / name, name, mean=MEAN, std=STD, class_names=NAMES, temperature=1.7)
    assert report["input"] == "uint8"
    assert_exported(model, tmp_path / name, report)
    found = READERS[name](tmp_path / name)
    assert json.loads(found["class_names"]) == list(NAMES)
    np.testing.assert_allclose([json.loads(found[key]) for key in ("mean", "std")], [MEAN, STD])
    assert json.loads(found["image_shape"]) == [12, 18, 3]
    assert json.loads(found["temperature"]) == 1.7
    assert found["input"] == "uint8"


def metadata_of_onnx(folder):
    import onnx

    proto = onnx.load(folder / "model.onnx")
    inputs, outputs = proto.graph.input, proto.graph.output
    assert [value.name for value in (*inputs, *outputs)] == ["images", "logits"]
    assert inputs[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert inputs[0].type.tensor_type.shape.dim[0].dim_param
    return {entry.key: entry.value for entry in proto.metadata_props}


def metadata_of_litert(folder):
    from tensorflow.lite.tools import flatbuffer_utils

    model = flatbuffer_utils.read_model(str(folder / "model.tflite"))
    graph = model.subgraphs[0]
    assert [graph.tensors[index].shapeSignature.tolist() for index in graph.inputs] == [[-1, 12, 18, 3]]
    buffers = {entry.name: entry.buffer for entry in model.metadata}
    return json.loads(bytes(model.buffers[buffers[b"keras_vit"]].data).decode())


def metadata_of_openvino(folder):
    import openvino

    model = openvino.Core().read_model(folder / "model.xml")
    assert [port.get_any_name() for port in (*model.inputs, *model.outputs)] == ["images", "logits"]
    assert model.get_rt_info(["model_info", "labels"]).astype(str).split() == list(NAMES)
    return {key: str(value) for key, value in model.get_rt_info(["keras_vit"]).value.items()}


def metadata_of_torch(folder):
    import torch

    files = {"keras_vit.json": ""}
    torch.export.load(folder / "model.pt2", extra_files=files)
    return json.loads(files["keras_vit.json"])


def metadata_of_saved_model(folder):
    """Text is in the report alone here; the labels are in the graph, in `serving_default`."""
    report = json.loads((folder / "export.json").read_text(encoding="utf-8"))
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in report.items()}


READERS = {
    "tf_saved_model": metadata_of_saved_model,
    "onnx": metadata_of_onnx,
    "litert": metadata_of_litert,
    "openvino": metadata_of_openvino,
    "torch": metadata_of_torch,
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "precision"),
    [
        (name, precision)
        for name in (*WRITTEN_HERE, "keras")
        for precision in EVERY[name].precisions
        if precision in ("float16", "bfloat16")
    ],
)
def test_lower_precision_is_smaller_and_close(tmp_path, name, precision):
    model = make_model("gap", width=192, mlp_dim=768)
    full = 4 * model.count_params()
    report = export_model(model, tmp_path / "out", name, precision=precision, mean=MEAN, std=STD)
    assert report["difference"] > 0, "nothing was rounded"
    # The file of Keras holds the weights in float32, whatever is computed in.
    weights = sum(path.stat().st_size for path in (tmp_path / "out").rglob("*") if path.name != "saved_model.pb")
    assert weights < (1.2 if name == "keras" else 0.8) * full


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in WRITTEN_HERE if FORMATS[name].fixed_batch])
def test_a_fixed_batch(tmp_path, name):
    model = make_model("map")
    report = export_model(model, tmp_path / "out", name, mean=MEAN, std=STD, batch_size=2)
    assert [(row["images"], row["batch"]) for row in report["cases"]] == [("random", 2), ("real", 2)]
    images = pixels(model, batch=2)
    with Runtime(name, tmp_path / "out") as runtime:
        np.testing.assert_allclose(runtime.predict(images, tmp_path), expected_logits(model, images), atol=TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("name", WRITTEN_HERE)
def test_features_of_one_grey_channel(tmp_path, name):
    """A model without a head has an output of features, and no class."""
    model = make_model("gap", num_classes=0, channels=1)
    report = export_model(model, tmp_path / "out", name)
    assert report["class_names"] == []
    assert report["input"] == "float32"
    assert report["difference"] <= TOLERANCE


@pytest.mark.slow
def test_saved_model_cli_gives_the_class_of_predict(tmp_path):
    model, folder, path = make_model("gap", image_size=(24, 36)), tmp_path / "model", tmp_path / "china.jpg"
    export_model(model, folder, "tf_saved_model", mean=MEAN, std=STD, class_names=NAMES, center_crop=0.8, temperature=1.7)
    Image.fromarray(load_sample_images().images[0]).save(path, quality=95)
    np.save(tmp_path / "files.npy", np.array([path.read_bytes()]))
    tool = str(Path(sys.executable).with_name("saved_model_cli"))
    command = [tool, "run", "--dir", str(folder), "--tag_set", "serve", "--signature_def", "serving_bytes"]
    command += ["--inputs", f"images={tmp_path / 'files.npy'}", "--outdir", str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    labels = np.load(tmp_path / "labels.npy", allow_pickle=True)  # how NumPy writes strings of any length
    probabilities = np.load(tmp_path / "probabilities.npy")
    logits = model.predict(normalize(read_image(path, (24, 36, 3), 0.8)[None], MEAN, STD), verbose=0)[0]
    expected = np.exp(logits / 1.7) / np.exp(logits / 1.7).sum()
    assert labels[0, 0].decode() == NAMES[expected.argmax()]
    by_label = {label.decode(): probability for label, probability in zip(labels[0], probabilities[0], strict=True)}
    np.testing.assert_allclose([by_label[name] for name in NAMES], expected, atol=PROBABILITY)
    assert (np.diff(probabilities[0]) <= 0).all()
    shown = subprocess.run([tool, "show", "--dir", str(folder), "--all"], capture_output=True, text=True, timeout=120).stdout
    for text in ("serving_default", "serving_bytes", "'serve'", "labels", "probabilities", "logits", "DT_STRING", "DT_UINT8"):
        assert text in shown


@pytest.mark.slow
@pytest.mark.parametrize(("name", "precision"), [(name, p) for name in WRITTEN_HERE for p in EVERY[name].precisions if "int8" in p])
def test_int8(tmp_path, name, precision):
    model = make_model("conv", width=96, mlp_dim=384, num_heads=4)
    images = export.photographs(40, (16, 24, 3))
    whole = export_model(model, tmp_path / "whole", name, mean=MEAN, std=STD, images=images)
    small = export_model(model, tmp_path / "small", name, precision=precision, mean=MEAN, std=STD, images=images)
    assert small["bytes"] < 0.5 * whole["bytes"]
    assert whole["difference"] < small["difference"]
    assert small["agreement"] > 0.8


@pytest.mark.slow
def test_int8_of_keras_loads_again(tmp_path):
    """The quantised model in a file gives the numbers that it gave before, also after another round trip."""
    model = make_model("map")
    export_model(model, tmp_path / "out", "keras", precision="int8", mean=MEAN, std=STD)
    loaded = keras.saving.load_model(tmp_path / "out" / "model.keras", compile=False)
    assert loaded.get_layer("block_0").attention.qkv.quantization_mode == "int8"
    inputs = normalize(pixels(model), MEAN, STD)
    expected, ours = (numpy(each(inputs)) for each in (model, loaded))
    assert 0 < np.abs(ours - expected).max() < 0.3 * expected.std()
    loaded.save(tmp_path / "again.keras")
    again = keras.saving.load_model(tmp_path / "again.keras", compile=False)
    np.testing.assert_array_equal(numpy(again(inputs)), ours)


# Mistakes and faults


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"format": "pdf"}, "format: received 'pdf'; allowed: tf_saved_model, onnx, litert, openvino, torch, keras"),
        ({"precision": "float8"}, "precision: received 'float8'; allowed for onnx: float32, float16, int8"),
        ({"precision": "bfloat16"}, "precision: received 'bfloat16'; allowed for onnx: float32, float16, int8"),
        (
            {"format": "torch", "precision": "int8"},
            "precision: received 'int8'; allowed for torch: float32, float16, bfloat16 .*torchao",
        ),
        ({"input": "bytes"}, "input: received 'bytes'; allowed: auto, uint8, float32"),
        ({"input": "uint8"}, "input: received 'uint8'; allowed without mean and std: float32"),
        ({"batch_size": 0}, "batch_size: received 0"),
        ({"format": "tf_saved_model", "batch_size": 4}, "batch_size: received 4; allowed for tf_saved_model: None"),
        ({"class_names": ["ant", "bee"]}, "class_names: received 2; allowed: 7, the classes of the model"),
        ({"mean": (0.1, 0.2), "std": 1}, r"mean: received \(0.1, 0.2\); allowed: a number, or one for each of 3 channels"),
        ({"temperature": 0}, "temperature: received 0; allowed: a number above 0"),
        ({"mean": 0.5, "std": 0}, "std: received 0; allowed: a number above 0"),
        ({"mean": float("nan"), "std": 1}, "mean: received nan; allowed: a number"),
        ({"images": np.zeros((2, 12, 18, 3))}, r"images: received float64 of shape \(2, 12, 18, 3\); allowed: uint8 of shape"),
        ({"images": np.zeros((2, 9, 9, 3), "uint8")}, r"images: received uint8 .* allowed: uint8 of shape \(N, 12, 18, 3\)"),
        ({"precision": "int8"}, "images: received none; .* int8 is calibrated on real images"),
        ({"format": "litert", "precision": "int8_static"}, "images: received none; .* int8_static is calibrated on real images"),
    ],
)
def test_settings_that_do_not_fit(tmp_path, faked, settings, message):
    with pytest.raises(ValueError, match=message):
        export_model(make_model(), tmp_path / "deep" / "out", **{"format": "onnx", **settings})
    assert not list(tmp_path.iterdir())


def test_signatures_with_other_probabilities_are_found(tmp_path):
    """A SavedModel that leaves the temperature out has the right labels and fails."""
    model = make_model(depth=1)
    report = describe(model, "tf_saved_model", "float32", "uint8", MEAN, STD, NAMES, None, temperature=1.7)

    class Answering:
        def ask(self, do, images=None, files=None):
            shape = (*model.config.image_size, 3)
            images = np.load(images) if files is None else np.stack([read_image(path, shape) for path in files])
            values = probabilities_of(expected_logits(model, images), False, self.temperature)
            return {"labels": [NAMES[row.argmax()] for row in values], "probabilities": values.max(1).tolist()}

    runtime = Answering()
    runtime.temperature = 1.7
    verify.check_signatures(runtime, model, report, pixels(model), tmp_path)
    runtime.temperature = 1.0
    with one_line_error(r"^tf_saved_model: not exported: probabilities differ by [\d.]+e-0[12]; allowed: 1.0e-03$"):
        verify.check_signatures(runtime, model, report, pixels(model), tmp_path)


def test_only_a_model_or_a_run(tmp_path, faked):
    run = RunFolder.create(tmp_path / "run", load_recipe("digits"))
    with pytest.raises(ValueError, match=r"has no best.keras; allowed: a run with a validated epoch"):
        export_model(run, tmp_path / "run" / "export" / "onnx", "onnx")
    assert sorted(path.name for path in run.path.iterdir()) == ["recipe.yaml"]


def test_a_run_brings_normalisation_and_images(tmp_path, faked):
    run = RunFolder.create(tmp_path / "run", load_recipe("digits"))
    config = ViTConfig(image_size=8, channels=1, patch_size=4, width=8, depth=1, num_heads=2, mlp_dim=12, num_classes=10)
    run.write_model(1, randomise(build_vit(config)))
    path, recipe = run.path / "export" / "onnx", run.recipe
    report = export_model(run, path, "onnx", input="float32")
    assert report["mean"] == np.broadcast_to(recipe.mean, 1).tolist()
    assert report["std"] == np.broadcast_to(recipe.std, 1).tolist()
    assert report["class_names"] == [str(index) for index in range(10)]
    assert {row["images"] for row in report["cases"]} == {"random", "real"}
    assert report["temperature"] == 1
    run.write_summary({"class_names": list("abcdefghij"), "temperature": 1.3})
    report = export_model(run, path, "onnx", input="float32", mean=0.3, overwrite=True)
    assert (report["class_names"], report["mean"], report["temperature"]) == (list("abcdefghij"), [0.3], 1.3)


def test_a_run_without_its_data_is_compared_on_photographs(tmp_path, faked):
    recipe = load_recipe("digits", data="folder:/no/such/folder", model={"image_size": 8, "channels": 3})
    run = RunFolder.create(tmp_path / "run", recipe)
    config = ViTConfig(image_size=8, patch_size=4, width=8, depth=1, num_heads=2, mlp_dim=12, num_classes=10)
    run.write_model(1, randomise(build_vit(config)))
    report = export_model(run, tmp_path / "out", "onnx", input="float32")
    assert {row["images"] for row in report["cases"]} == {"random", "real"}
    with pytest.raises(ValueError, match="/no/such/folder"):
        export_model(run, tmp_path / "int8", "onnx", precision="int8")


def test_targets_that_exist(tmp_path, faked):
    model, path = make_model(), tmp_path / "out"
    path.mkdir()
    export_model(model, path, "onnx")  # an empty folder is none
    with pytest.raises(ValueError, match=r"path: received .*out', which exists; allowed: a new path, or overwrite=True"):
        export_model(model, path, "onnx")
    export_model(model, path, "litert", overwrite=True)
    assert sorted(file.name for file in path.iterdir()) == ["export.json", "model.tflite"]
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "thesis.tex").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(ValueError, match=r"path: .*theirs', which exists and is no export"):
            export_model(model, theirs, "onnx", overwrite=overwrite)
        with pytest.raises(ValueError, match=r"path: .*thesis.tex', which exists and is no export"):
            export_model(model, theirs / "thesis.tex", "onnx", overwrite=overwrite)
        with pytest.raises(
            ValueError, match=r"path: received .*out'; allowed: a path in a writable folder, which .*thesis.tex' is not"
        ):
            export_model(model, theirs / "thesis.tex" / "out", "onnx", overwrite=overwrite)
    assert (theirs / "thesis.tex").read_text() == "years of work"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out", "theirs"]


def test_a_folder_that_may_not_be_written_to(tmp_path, faked, monkeypatch):
    monkeypatch.setattr(export.os, "access", lambda path, mode: False)  # to root everything may be written
    with pytest.raises(ValueError, match=r"path: received .*; allowed: a path in a writable folder, which .* is not"):
        export_model(make_model(), tmp_path / "out", "onnx")


def test_replacing_keeps_the_old_export_until_the_new_one_is_there(tmp_path, faked, monkeypatch):
    model, path = make_model(), tmp_path / "out"
    export_model(model, path, "onnx")
    replace = os.replace

    def full(source, target):
        if Path(source).name == "new":
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(export.os, "replace", full)
    with pytest.raises(ValueError, match=r"path: .* cannot be written \(No space left on device\)"):
        export_model(model, path, "litert", overwrite=True)
    assert sorted(file.name for file in path.iterdir()) == ["export.json", "model.onnx"]
    assert [file.name for file in tmp_path.iterdir()] == ["out"]


def test_what_a_kill_left_is_deleted_by_the_next_export(tmp_path, faked):
    for pid in (dead_process(), os.getppid()):
        (tmp_path / f"{partial_prefix(pid)}x" / "new").mkdir(parents=True)
    export_model(make_model(), tmp_path / "out", "onnx")
    assert sorted(file.name for file in tmp_path.iterdir()) == [f"{partial_prefix(os.getppid())}x", "out"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda logits: logits + 1e-2, r"logits differ .* allowed in float32: 1.0e-04"),
        (lambda logits: logits * np.nan, "logits differ .* by inf"),
        (lambda logits: logits[:, ::-1], "logits differ"),
        (lambda logits: logits[:, 1:], r"received logits of shape \(1, 6\); allowed: \(1, 7\)"),
    ],
)
def test_an_artifact_that_differs_leaves_nothing(tmp_path, faked, change, message):
    faked["change"] = change
    with pytest.raises(ValueError, match=f"^onnx: .*{message}"):
        export_model(make_model(), tmp_path / "deep" / "out", "onnx")
    assert not list(tmp_path.iterdir())


def test_the_threshold_is_of_the_spread_in_lower_precision(tmp_path, faked):
    model, share = make_model(), THRESHOLDS["float16"]
    deviation = expected_deviation(model)
    faked["change"] = lambda logits: logits + 0.7 * share * deviation
    report = export_model(model, tmp_path / "out", "onnx", precision="float16")
    assert report["difference"] == pytest.approx(0.7 * share * deviation, rel=1e-3)
    faked["change"] = lambda logits: logits + 1.5 * share * deviation
    with pytest.raises(ValueError, match=r"allowed in float16: 2.0e-02"):
        export_model(model, tmp_path / "out", "onnx", precision="float16", overwrite=True)
    export_model(model, tmp_path / "out", "onnx", precision="float16", overwrite=True, threshold=2 * share)
    with pytest.raises(ValueError, match=r"allowed in float32: 0.0e\+00"):
        export_model(model, tmp_path / "other", "onnx", threshold=0)


def expected_deviation(model):
    """The standard deviation of the logits of the images that exports are compared on."""
    cases = verification_images(model, None, None, None)
    report = {"mean": None, "data_format": "channels_last"}
    return np.mean([logits_of(model, to_model(images, report)).std() for _, images in cases])


def test_agreement_counts_images(tmp_path, faked):
    def one_wrong(logits):
        if len(logits) == 3:
            logits = logits.copy()
            logits[0] = -logits[0]
        return logits

    faked["change"] = one_wrong
    report = export_model(make_model(), tmp_path / "out", "onnx", threshold=1e3)
    assert report["agreement"] == pytest.approx(1 - 2 / (2 * sum(BATCHES)))
    assert [row["agreement"] for row in report["cases"] if row["batch"] == 3] == pytest.approx([2 / 3, 2 / 3])


@pytest.mark.parametrize(
    ("name", "backend", "missing", "written_by"),
    [
        ("onnx", "torch", (), "torch"),
        ("onnx", "tensorflow", (), "torch"),
        ("onnx", "jax", ("jax2onnx", "tf2onnx"), "torch"),
        ("onnx", "torch", ("onnxscript",), "jax"),
        ("onnx", "torch", ("onnxscript", "jax2onnx"), "tensorflow"),
        ("onnx", "jax", ("torch", "tensorflow"), "jax"),
        ("torch", "jax", (), "torch"),
        ("litert", "torch", (), "tensorflow"),
        ("litert", "torch", ("ai_edge_litert",), "tensorflow"),
        ("openvino", "jax", ("torch", "jax2onnx"), "tensorflow"),
        ("onnx", "torch", ("onnxruntime",), "pip install onnxruntime$"),
        ("litert", "torch", ("ai_edge_litert", "tensorflow"), "pip install tensorflow$"),
        ("tf_saved_model", "torch", ("tensorflow",), "pip install tensorflow$"),
        ("torch", "jax", ("torch",), "pip install torch$"),
        ("openvino", "torch", ("openvino",), "pip install openvino$"),
        ("onnx", "jax", ("onnx",), "written by jax .*: pip install onnx$"),
        ("onnx", "jax", ("jax2onnx", "tensorflow", "torch"), "written by jax .*: pip install jax2onnx$"),
        (
            "onnx",
            "tensorflow",
            ("torch", "jax", "onnx", "tf2onnx", "onnxruntime"),
            "tensorflow .*: pip install onnx tf2onnx onnxruntime$",
        ),
        ("openvino", "torch", ("onnxscript", "jax", "tensorflow"), "written by torch .*: pip install onnxscript$"),
        ("litert", "jax", ("tensorflow", "ai_edge_litert"), "written by tensorflow .*: pip install tensorflow$"),
    ],
)
def test_who_writes_and_what_is_missing(monkeypatch, name, backend, missing, written_by):
    monkeypatch.setattr(formats, "find_spec", lambda package: None if package in missing else True)
    monkeypatch.setattr(formats, "installed_backends", lambda: [name for name in formats.BACKENDS if name not in missing])
    monkeypatch.setattr(keras.backend, "backend", lambda: backend)
    if not written_by.endswith("$"):
        assert choose_writer(name) == written_by
    else:
        with pytest.raises(ValueError, match=f"^{name}: .*{written_by}"):
            choose_writer(name)


def test_a_conversion_that_fails_is_one_line(tmp_path, faked, monkeypatch):
    def fails(arguments, backend, **settings):
        assert settings["CUDA_VISIBLE_DEVICES"] == "-1"
        raise ValueError(f"{backend}: RuntimeError: no such operator")

    monkeypatch.setattr(export, "run_python", fails)
    with pytest.raises(ValueError, match=r"^onnx: the conversion failed: \w+: RuntimeError: no such operator$"):
        export_model(make_model(), tmp_path / "deep" / "out", "onnx")
    assert not list(tmp_path.iterdir())


def test_the_table_shows_what_was_measured(tmp_path, faked):
    faked["change"] = lambda logits: logits + 0.001
    report = export_model(make_model(), tmp_path / "out", "onnx", threshold=1)
    from rich.console import Console

    console = Console(width=200, file=io.StringIO())
    console.print(export_table([report]))
    row = next(line for line in console.file.getvalue().splitlines() if "onnx" in line)
    for cell in ("onnx", "float32", "1.0e-03", "100.0%", report["written_by"]):
        assert cell in row


# The command


@pytest.mark.parametrize(("stop", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)])
def test_an_interrupt_leaves_nothing(tmp_path, stop, code):
    make_model().save(tmp_path / "model.keras")
    log = tmp_path.with_suffix(".log")
    process = start("experiments/export.py", tmp_path / "model.keras", "--format", "keras", log=log, backend=LIGHT)
    writers = wait_for(lambda: children("import write", process), process)
    process.send_signal(stop)
    assert process.wait(60) == code
    assert "Traceback" not in log.read_text()
    _, alive = psutil.wait_procs(writers, timeout=10)
    assert not alive
    assert [path.name for path in tmp_path.iterdir()] == ["model.keras"]
