"""Models of a user's own around a ViT, and Keras's own export of a ViT: the numbers of the Keras model."""

import importlib.util
import warnings

import keras
import numpy as np
import pytest
from helpers import TINY, logits, make_model, one_line_error, random_pixels
from test_export import OWN, WRITTEN_HERE

from keras_vit import export_model
from keras_vit.export.models import check_model, float32_model, interface, with_dtype

TOLERANCE = 1e-5  # absolute, of logits near 1 in float32
BACKEND = keras.backend.backend()
SLOW = [pytest.mark.slow] if BACKEND == "jax" else []  # a conversion takes it long
NEEDED = {"tensorflow": "tf2onnx", "jax": "jax2onnx", "torch": "onnxscript"}[BACKEND]
CAN_WRITE_ONNX = all(map(importlib.util.find_spec, (NEEDED, "onnx", "onnxruntime")))


def users_model(name="gap", **settings):
    """Pixels from 0 to 255 -> features of a ViT -> logits of five classes."""
    vit = make_model(name, num_classes=0, depth=1, **settings)
    pixels = keras.Input(vit.config.image_shape, name="pixels")
    x = vit(keras.layers.Rescaling(1 / 127.5, -1)(pixels))
    x = keras.layers.Dense(12, "relu", name="mine")(x)
    return keras.Model(pixels, keras.layers.Dense(5, name="classes")(x))


def assert_same(path, model, images):
    """The artifact's logits, in batches of three and of one, are the model's."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path)
    expected = logits(model, images)
    assert expected.std() > 0.1
    for size in (3, 1):
        (found,) = session.run(None, {session.get_inputs()[0].name: images[:size]})
        np.testing.assert_allclose(found, expected[:size], atol=TOLERANCE)


@pytest.mark.backend
@pytest.mark.skipif(not CAN_WRITE_ONNX, reason=f"needs onnx, onnxruntime and {NEEDED}")
@pytest.mark.parametrize(
    ("name", "merged"),
    [
        pytest.param("gap", 0, marks=SLOW),
        *(pytest.param(name, 0, marks=pytest.mark.slow) for name in TINY if name != "gap"),
        pytest.param("gap", 1, marks=pytest.mark.slow),
    ],
)
def test_keras_own_export_to_onnx(tmp_path, name, merged):
    model = make_model(name, merge_tokens=merged)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the converters' own
        model.export(str(tmp_path / "m.onnx"), format="onnx", verbose=False)
    images = np.random.default_rng(0).normal(size=(3, *model.config.image_shape)).astype("float32")
    assert_same(tmp_path / "m.onnx", model, images)


@pytest.mark.backend
@pytest.mark.skipif(not CAN_WRITE_ONNX, reason=f"needs onnx, onnxruntime and {NEEDED}")
@pytest.mark.slow
def test_keras_own_export_of_a_users_model(tmp_path):
    model = users_model()
    images = random_pixels(3, 12, 18, 3).astype("float32")
    model(images)  # Keras's export wants a model that has been called
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.export(str(tmp_path / "m.onnx"), format="onnx", verbose=False)
    assert_same(tmp_path / "m.onnx", model, images)


@pytest.mark.backend
@pytest.mark.parametrize("name", [pytest.param(OWN[BACKEND], marks=SLOW)] if OWN[BACKEND] in WRITTEN_HERE else [])
def test_a_users_model_is_exported(tmp_path, in_process, name):
    report = export_model(users_model(), tmp_path / "out", name, mean=0, std=1 / 255, class_names=["a", "b", "c", "d", "e"])
    assert report["input"] == "uint8"
    assert report["image_shape"] == [12, 18, 3]
    assert report["difference"] < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("model", ["gap", "conv"])  # channels last, channels first
@pytest.mark.parametrize("name", WRITTEN_HERE)
def test_a_users_model_is_exported_in_every_format(tmp_path, name, model):
    settings = {"mean": 0, "std": 1 / 255} if model == "gap" else {}
    report = export_model(users_model(model), tmp_path / "out", name, **settings)
    assert report["input"] == ("uint8" if settings else "float32")
    assert report["difference"] < TOLERANCE * 10


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ("torch", "tf_saved_model") if name in WRITTEN_HERE])
def test_a_users_model_in_bfloat16(tmp_path, name):
    report = export_model(users_model(), tmp_path / "out", name, precision="bfloat16", mean=0, std=1 / 255)
    assert report["difference"] > 1e-5


def test_what_a_model_takes_and_gives():
    found = interface(users_model("conv"))
    assert (found.image_size, found.channels, found.data_format, found.num_classes) == ((16, 24), 3, "channels_first", 5)
    assert found.image_shape == (3, 16, 24)
    assert found.pictures == (16, 24, 3)


def test_models_in_lower_precision_are_exported_from_float32():
    model = users_model()
    assert float32_model(model) is model
    lower = with_dtype(model, "bfloat16")
    images = random_pixels(3, 12, 18, 3).astype("float32")
    again = float32_model(lower)
    difference = np.abs(logits(lower, images).astype("float32") - logits(model, images)).max()
    assert 1e-4 < difference < 0.2
    assert {layer.dtype_policy.name for layer in again.layers} == {"float32"}
    np.testing.assert_allclose(logits(again, images), logits(model, images), atol=0.02)  # weights were rounded


def test_models_that_cannot_be_exported():
    images, pixels = keras.Input((8, 8, 3)), keras.Input((8, 8, 3), dtype="uint8")
    some = keras.Input((None, 8, 3))
    allowed = "; allowed: a ViT, a Keras model from images of one size to logits, or a RunFolder"
    wrong = {
        "a str" + allowed: "model.keras",
        r"a Functional from \[\(None, 8, 8, 3\)\] to \[\(None, 8, 8, 3\)\]" + allowed: keras.Model(
            images, keras.layers.ReLU()(images)
        ),
        r"a Functional from \[\(None, None, 8, 3\)\] to .*": keras.Model(some, keras.layers.GlobalMaxPooling2D()(some)),
        "a Sequential that is not built" + allowed: keras.Sequential([keras.layers.Dense(3)]),
        "a Functional that takes uint8; allowed: float32": keras.Model(
            pixels, keras.layers.Flatten()(keras.layers.Rescaling(1)(pixels))
        ),
    }
    for message, model in wrong.items():
        with one_line_error(f"^model_or_run: received {message}"):
            check_model(model)
    with one_line_error("^merge_tokens: received 2 for a Functional; allowed: None, except for a ViT"):
        export_model(users_model(), "nowhere", "torch", merge_tokens=2)
