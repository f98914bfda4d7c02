"""Exports: every format from the backend in use, in its own runtime; what is refused; and that a failure leaves nothing."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_vit import RunFolder, ViTConfig, build_vit, export_model, load_recipe
from keras_vit import export as exports
from keras_vit.data import normalize
from keras_vit.machine import BACKENDS, installed_backends
from keras_vit.parity import randomise
from keras_vit.runtimes import FILES, Runtime

ROOT = Path(__file__).resolve().parents[1]
LOGITS = 1e-4  # over the largest logit, where that is above 1
NAMES = ["ant", "bee", "cat", "dog eared", "élan"]
MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.3, 0.25]
TINY = {"image_size": (16, 24), "patch_size": (8, 6), "width": 16, "depth": 2, "num_heads": 2, "mlp_dim": 24, "num_classes": 5}
# Between them: each stem, pooling, MLP, fixed and learned positions, prefix tokens, both data formats.
MODELS = {
    "tf_saved_model": {"stem": "conv", "patch_size": 8, "pool": "gap", "position": "sincos2d"},
    "onnx": {"pool": "map", "registers": 1, "layer_scale": 0.1, "qk_norm": True},
    "litert": {"stem": "conv", "patch_size": 8, "pool": "gap", "mlp": "gelu_tanh"},
    "openvino": {"mlp": "swiglu", "distillation": True, "registers": 1, "data_format": "channels_first"},
    "torch": {"mlp": "gelu_quick", "pre_norm": True, "pool": "cls_gap"},
}
once = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="starts processes of each backend: once is enough")


def made(**options):
    return randomise(build_vit(ViTConfig(**{**TINY, **options})))


def pixels(count, seed=5, shape=(16, 24, 3)):
    return np.random.default_rng(seed).integers(256, size=(count, *shape)).astype("uint8")


def check_runs(model, folder, tmp_path, images=None, mean=MEAN, std=STD):
    """The artifact gives the model's logits for images and batches that its verification has not seen."""
    report = json.loads((folder / "export.json").read_text())
    images = pixels(5) if images is None else images
    inputs = normalize(images, mean, std)
    if model.config.data_format == "channels_first":
        inputs = inputs.transpose(0, 3, 1, 2)
    expected = keras.ops.convert_to_numpy(model(inputs))
    with Runtime(report["format"], folder) as runtime:
        ours = runtime.predict(images if report["input"] == "uint8" else inputs, tmp_path, batch_size=2)
        assert runtime.ask(do="time", batch_size=2, seconds=0.01)["seconds"] > 0
    assert np.abs(expected).std() > 0.1
    np.testing.assert_allclose(ours, expected, atol=LOGITS * max(1, np.abs(expected).max()))


@pytest.mark.parametrize("format", exports.FORMATS)
def test_every_format(format, tmp_path):
    model = made(**MODELS[format])
    report = export_model(model, tmp_path / "out", format, mean=MEAN, std=STD, class_names=NAMES)
    assert (report["format"], report["precision"], report["input"]) == (format, "float32", "uint8")
    assert report["difference"] <= 1e-4 * 20
    assert report["agreement"] == 1
    assert [(case["images"], case["batch"]) for case in report["cases"]] == [(n, b) for n in ("random", "real") for b in (1, 3, 64)]
    assert json.loads((tmp_path / "out" / "export.json").read_text()) == report
    assert report["bytes"] == sum(
        f.stat().st_size for f in (tmp_path / "out").rglob("*") if f.is_file() and f.name != "export.json"
    )
    assert sorted(tmp_path.iterdir()) == [tmp_path / "out"]
    check_runs(model, tmp_path / "out", tmp_path)
    assert json.loads(read_metadata(format, tmp_path / "out")["class_names"]) == NAMES


def read_metadata(format, folder):
    """What an artifact says of itself, read by its own format's means."""
    if format == "tf_saved_model":  # its labels are in its answers
        answer = classify(folder, np.resize(pixels(3), (3, 16, 24, 3)), folder.parent)
        assert set(answer["labels"]) <= set(NAMES)
        return {"class_names": json.dumps(NAMES)}
    if format == "onnx":
        import onnx

        return {entry.key: entry.value for entry in onnx.load(folder / "model.onnx").metadata_props}
    if format == "openvino":
        import openvino

        model = openvino.Core().read_model(folder / "model.xml")
        assert model.get_rt_info(["model_info", "labels"]).value == "ant bee cat dog_eared élan"
        return {"class_names": model.get_rt_info(["keras_vit", "class_names"]).value}
    if format == "torch":
        import torch

        extra = {"keras_vit.json": ""}
        torch.export.load(folder / "model.pt2", extra_files=extra)
        return json.loads(extra["keras_vit.json"])
    data = (folder / "model.tflite").read_bytes()
    start = data.index(b'{"class_names"')
    return json.JSONDecoder().raw_decode(data[start:].decode("utf-8", errors="ignore"))[0]


def classify(folder, images, files):
    np.save(Path(files, "pixels.npy"), images)
    with Runtime("tf_saved_model", folder) as runtime:
        return runtime.ask(do="classify", images=str(Path(files, "pixels.npy")))


@once
@pytest.mark.parametrize("backend", BACKENDS)
def test_onnx_from_each_backend(backend, tmp_path, monkeypatch):
    """As a user has it who has no other: each backend's own exporter, exact GELU and a batch of any size."""
    monkeypatch.setattr(exports, "choose_writer", lambda format: backend)
    model = made(pool="map", stem="conv", patch_size=8, registers=1)
    report = export_model(model, tmp_path / "out", "onnx", mean=MEAN, std=STD, class_names=NAMES)
    assert report["written_by"] == backend
    check_runs(model, tmp_path / "out", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("options", MODELS.values(), ids=str)
@pytest.mark.parametrize("format", exports.FORMATS)
def test_every_format_of_every_model(format, options, tmp_path):
    model = made(**options)
    export_model(model, tmp_path / "out", format, mean=MEAN, std=STD, class_names=NAMES)
    check_runs(model, tmp_path / "out", tmp_path)


@once
def test_a_fixed_batch_of_floats_without_classes(tmp_path):
    model = made(num_classes=0, channels=2)
    report = export_model(model, tmp_path / "out", "onnx", batch_size=2)
    assert (report["input"], report["class_names"]) == ("float32", [])
    assert [(case["images"], case["batch"]) for case in report["cases"]] == [("random", 2)]  # no photograph has two channels
    check_runs(model, tmp_path / "out", tmp_path, images=pixels(6, shape=(16, 24, 2)), mean=0.5, std=0.5)
    with Runtime("onnx", tmp_path / "out") as runtime, pytest.raises(ValueError, match=r"^onnx: "):
        runtime.predict(np.zeros((3, 16, 24, 2), "float32"), tmp_path)


# SavedModel


@pytest.fixture(scope="module")
def saved_model(tmp_path_factory):
    """A model whose classes differ from photograph to photograph, and its SavedModel."""
    model = made(pool="gap", depth=1)
    folder = tmp_path_factory.mktemp("saved") / "model"
    export_model(model, folder, "tf_saved_model", mean=MEAN, std=STD, class_names=NAMES)
    return model, folder


def pictures(folder):
    """JPEG and PNG files: large, small, grey, and with transparency."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    china, flower = (Image.fromarray(image) for image in load_sample_images().images)
    rng = np.random.default_rng(0)
    alpha = Image.fromarray(np.dstack([np.asarray(flower), np.full((427, 640), 255, "uint8")]))
    alpha.paste((0, 0, 0, 0), (100, 0, 500, 300))
    files = {
        "china.jpg": china,
        "tall.jpg": flower.crop((100, 0, 250, 427)),
        "grey.jpg": china.convert("L"),
        "small.png": flower.resize((11, 9)),
        "alpha.png": alpha,
        "noise.png": Image.fromarray(rng.integers(256, size=(30, 40, 3)).astype("uint8")),
    }
    for name, image in files.items():
        image.save(folder / name, **({"quality": 95} if name.endswith("jpg") else {}))
    return [folder / name for name in files]


@once
def test_encoded_files_are_read_as_in_training(saved_model, tmp_path):
    from keras_vit.sources import read_image

    model, folder = saved_model
    paths = pictures(tmp_path)
    images = np.stack([read_image(path, (16, 24, 3)) for path in paths])
    logits = keras.ops.convert_to_numpy(model(normalize(images, MEAN, STD)))
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    with Runtime("tf_saved_model", folder) as runtime:
        answer = runtime.ask(do="classify", files=[str(path) for path in paths])
        assert answer["labels"] == [NAMES[index] for index in logits.argmax(-1)]
        assert len(set(answer["labels"])) > 1
        # Two decoders and two resizers: a level of 255 here and there.
        np.testing.assert_allclose(answer["probabilities"], probabilities.max(-1), atol=0.03)
        for name, data in (("text.jpg", b"no picture"), ("cut.png", paths[3].read_bytes()[:40]), ("bomb.png", bomb())):
            (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match=r"^tf_saved_model: .*allowed: up to 89,478,485 pixels"):
            runtime.ask(do="classify", files=[str(tmp_path / "bomb.png")])
    with Runtime("tf_saved_model", folder) as runtime, pytest.raises(ValueError, match="allowed: encoded JPEG or PNG files"):
        runtime.ask(do="classify", files=[str(tmp_path / "text.jpg")])


def bomb():
    """The first bytes of a PNG file that says it has 60,000 x 60,000 pixels."""
    return b"\x89PNG\r\n\x1a\n" + (13).to_bytes(4, "big") + b"IHDR" + (60_000).to_bytes(4, "big") * 2 + b"\x08\x02\x00\x00\x00"


@once
def test_saved_model_cli_gives_the_class_of_predict(saved_model, tmp_path):
    from keras_vit.sources import read_image

    model, folder = saved_model
    path = pictures(tmp_path)[0]
    np.save(tmp_path / "jpeg.npy", np.array([path.read_bytes()]))
    tool = Path(sys.executable).parent / "saved_model_cli"
    command = [tool, "run", "--dir", folder, "--tag_set", "serve", "--signature_def", "serving_bytes"]
    command += ["--inputs", f"images={tmp_path / 'jpeg.npy'}", "--outdir", tmp_path / "out"]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    label = np.load(tmp_path / "out" / "labels.npy", allow_pickle=True)[0, 0].decode()  # NumPy keeps strings of TensorFlow so
    predicted = model.predict(normalize(read_image(path, (16, 24, 3))[None], MEAN, STD), verbose=0)
    assert label == NAMES[predicted[0].argmax()]
    shown = subprocess.run([str(tool), "show", "--dir", str(folder), "--all"], capture_output=True, text=True).stdout
    for name in ("serving_default", "serving_bytes", "'serve'", "labels", "probabilities", "logits", "DT_STRING", "DT_UINT8"):
        assert name in shown


# Precisions


@once
@pytest.mark.parametrize("format", ["onnx", "litert"])
def test_int8(format, tmp_path):
    model = made(stem="conv", patch_size=8, width=64, mlp_dim=256, num_heads=4, depth=4, pool="gap")
    images = exports.photographs(40, (16, 24, 3))
    whole = export_model(model, tmp_path / "whole", format, mean=MEAN, std=STD, images=images)
    small = export_model(model, tmp_path / "small", format, precision="int8", mean=MEAN, std=STD, images=images)
    assert small["bytes"] < 0.5 * whole["bytes"]
    assert whole["difference"] < small["difference"]
    assert small["agreement"] > 0.8


def test_int8_of_keras_loads_again(tmp_path):
    """Under the backend in use, the quantised model in a file gives the numbers that it gave before."""
    model = made(pool="map", stem="conv", patch_size=8, distillation=False)
    report = export_model(model, tmp_path / "out", "keras", precision="int8", mean=MEAN, std=STD, images=pixels(8))
    loaded = keras.saving.load_model(tmp_path / "out" / "model.keras", compile=False)
    assert loaded.get_layer("block_0").attention.qkv.quantization_mode == "int8"
    assert keras.backend.standardize_dtype(loaded.get_layer("block_0").attention.qkv._kernel.dtype) == "int8"
    inputs = normalize(pixels(3), MEAN, STD)
    expected, ours = (keras.ops.convert_to_numpy(m(inputs)) for m in (model, loaded))
    assert 0 < np.abs(ours - expected).max() < 0.3 * expected.std()
    loaded.save(tmp_path / "again.keras")
    again = keras.saving.load_model(tmp_path / "again.keras", compile=False)
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(again(inputs)), ours)
    assert report["difference"] > 0


@once
@pytest.mark.parametrize(("format", "precision"), [("torch", "bfloat16"), ("onnx", "float16"), ("litert", "float16")])
def test_halves(format, precision, tmp_path):
    model = made()
    report = export_model(model, tmp_path / "out", format, precision=precision, mean=MEAN, std=STD)
    assert 1e-5 < report["difference"] < 0.3
    assert report["agreement"] > 0.9


# What is refused


@pytest.mark.parametrize(
    ("format", "options", "message"),
    [
        ("pickle", {}, "format: received 'pickle'; allowed: tf_saved_model, onnx, litert, openvino, torch, keras"),
        ("onnx", {"precision": "bfloat16"}, "precision: received 'bfloat16'; onnx has float32, float16, int8"),
        ("torch", {"precision": "int8"}, "precision: received 'int8'; torch has float32, float16, bfloat16"),
        ("onnx", {"input": "int8"}, "input: received 'int8'; allowed: auto, uint8, float32"),
        ("onnx", {"input": "uint8"}, "input: received 'uint8'; allowed without mean and std: float32"),
        ("onnx", {"batch_size": 0}, "batch_size: received 0; allowed: an integer of at least 1"),
        ("tf_saved_model", {"batch_size": 4}, "batch_size: received 4; tf_saved_model takes batches of any size"),
        ("onnx", {"class_names": ["a"]}, "class_names: received 1; allowed: 5, the classes of the model"),
        ("onnx", {"mean": [0.1, 0.2], "std": 1.0}, "mean: received [0.1, 0.2]; allowed: a number, or one for each of 3 channels"),
        ("onnx", {"mean": 0.1, "std": 0.0}, "std: received 0.0; allowed: numbers above 0"),
        ("litert", {"precision": "int8"}, "images: none; int8 is calibrated on real images"),
        ("onnx", {"images": np.zeros((2, 8, 8, 3), "uint8")}, "images: received uint8 of shape (2, 8, 8, 3)"),
        ("onnx", {"images": np.zeros((2, 16, 24, 3))}, "images: received float64"),
    ],
)
def test_settings_that_do_not_fit(format, options, message, tmp_path):
    with pytest.raises(ValueError, match=r"^[^\n]+$") as error:
        export_model(made(), tmp_path / "out", format, **options)
    assert message in str(error.value)
    assert not list(tmp_path.iterdir())


def test_targets(tmp_path):
    model = made()
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.txt").write_text("x")
    for name in ("file", "folder"):
        with pytest.raises(ValueError, match=r"^path: .* exists and is no export"):
            export_model(model, tmp_path / name, "onnx", overwrite=True)
    with pytest.raises(ValueError, match=r"^path: .*file' is no folder that may be written to"):
        export_model(model, tmp_path / "file" / "below", "onnx")
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "export.json").write_text("{}")
    with pytest.raises(ValueError, match=r"^path: .* exists; allowed: another path, or to overwrite it"):
        export_model(model, tmp_path / "old", "onnx")
    assert (tmp_path / "folder" / "thesis.txt").read_text() == "x"
    with pytest.raises(ValueError, match=r"^model_or_run: received a Sequential"):
        export_model(keras.Sequential(), tmp_path / "out", "onnx")


def test_an_export_is_replaced(tmp_path):
    model = made()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "export.json").write_text("{}")
    (tmp_path / "out" / "old.bin").write_text("x")
    export_model(model, tmp_path / "out", "keras", overwrite=True)
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["export.json", "model.keras"]
    assert sorted(tmp_path.iterdir()) == [tmp_path / "out"]


def test_over_the_threshold_nothing_is_left(tmp_path):
    with pytest.raises(ValueError, match=r"^torch: not exported: logits differ .* allowed in float32: -1.0e\+00$"):
        export_model(made(), tmp_path / "out", "torch", threshold=-1)
    assert not list(tmp_path.iterdir())


def test_a_conversion_that_fails_leaves_nothing(tmp_path, monkeypatch):
    model = made()

    def broken(arguments, backend, **settings):
        raise ValueError(f"{backend}: no kernel for it")

    monkeypatch.setattr(exports, "run_python", broken)
    with pytest.raises(ValueError, match=r"^onnx: the conversion failed: torch: no kernel for it$"):
        export_model(model, tmp_path / "out", "onnx")
    assert not list(tmp_path.iterdir())


def test_missing_packages_are_named_with_the_command(monkeypatch, tmp_path):
    model = made()
    real = exports.find_spec

    def without(*names):
        monkeypatch.setattr(exports, "find_spec", lambda name: None if name in names else real(name))

    without("onnxruntime")
    with pytest.raises(ValueError, match=r"^onnx: its runtime, which verifies it, is not installed: pip install onnxruntime$"):
        export_model(model, tmp_path / "out", "onnx")
    without("onnxscript", "jax2onnx", "tf2onnx")
    needed = {"torch": "onnxscript", "jax": "jax2onnx", "tensorflow": "tf2onnx"}[keras.backend.backend()]
    with pytest.raises(ValueError, match=rf"^onnx: written by {keras.backend.backend()}, .*: pip install {needed}$"):
        export_model(model, tmp_path / "out", "onnx")
    without("onnxscript")
    assert exports.choose_writer("onnx") == "jax"
    without()
    assert exports.choose_writer("onnx") == "torch"
    monkeypatch.setattr(exports, "installed_backends", lambda: ["jax"])
    assert exports.choose_writer("openvino") == "jax"
    without("tensorflow")
    with pytest.raises(
        ValueError, match=r"^litert: written by tensorflow, which needs what is not installed: pip install tensorflow$"
    ):
        export_model(model, tmp_path / "out", "litert")


def test_runs_bring_their_settings(tmp_path):
    recipe = load_recipe(
        "digits", model={**TINY, "image_size": 8, "patch_size": 4, "channels": 1, "num_classes": 10}, mean=0.3, std=0.2
    )
    run = RunFolder.create(tmp_path / "run", recipe)
    with pytest.raises(ValueError, match=r"^run: .*has no best.keras"):
        export_model(run, tmp_path / "out", "keras")
    run.write_model(randomise(build_vit(recipe.model)))
    run.write_summary({"class_names": list("abcdefghij")})
    report = export_model(run, tmp_path / "out", "keras")
    assert (report["mean"], report["std"], report["class_names"]) == ([0.3], [0.2], list("abcdefghij"))
    assert {case["images"] for case in report["cases"]} == {"random", "real"}


@once
def test_an_interrupt_leaves_nothing(tmp_path):
    made().save(tmp_path / "model.keras")
    command = [sys.executable, "experiments/export.py", str(tmp_path / "model.keras"), "--format", "litert"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True)
    work = tmp_path / "model-export"
    deadline = time.time() + 60
    while not (work.is_dir() and list(work.glob("*/model.keras"))):  # the writer is about to start
        assert time.time() < deadline
        time.sleep(0.05)
    time.sleep(1.5)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert errors.strip().splitlines()[-1] == "interrupted"
    assert not list(work.iterdir())
    children = subprocess.run(["pgrep", "-g", str(process.pid)], capture_output=True, text=True).stdout.split()
    assert not children


def test_a_runtime_that_fails_says_so(tmp_path):
    (tmp_path / "export.json").write_text("{}")
    with pytest.raises(ValueError, match=r"^torch: "):
        Runtime("torch", tmp_path)
    assert set(FILES) == set(exports.EVERY)
    assert installed_backends()
