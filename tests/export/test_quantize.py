"""Int8: what is quantised and what is not, the numbers it gives, and where the ranges come from."""

import dataclasses
from importlib.util import find_spec

import helpers
import keras
import numpy as np
import pytest
from helpers import predict
from reference import Reference, random_images, weights_of

from keras_vit import RunFolder, ViTConfig, build_vit, export_model, load_recipe
from keras_vit.backend import installed_backends
from keras_vit.data.dataset import load_data
from keras_vit.export.formats import FORMATS, choose_writer
from keras_vit.export.images import calibration_images, run_images
from keras_vit.export.quantize import quantize_litert, quantize_onnx
from keras_vit.export.runtimes import Runtime
from keras_vit.parity import randomise
from keras_vit.private.keras import flatten_layers
from keras_vit.processes import run_python

# Keras says so of every layer that has no weights to quantise, the input first.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize` method:UserWarning"),
    pytest.mark.usefixtures("little_garbage"),
]

ROUNDING = 1e-6  # absolute, of numbers near 1 in float32
INT8 = 0.1  # of the logits' standard deviation: what rounding kernels and activations to 8 bits may cost the small models here
BACKENDS = 1e-5  # absolute, of logits near 1: the same file under another backend

MODELS = {
    "gap": {},
    "map": {"pre_logits_dim": 10},
    "conv": {"registers": 1, "distillation": True},
}
MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.3)


def make_model(name="gap", **settings):
    return helpers.make_model(name, **{"depth": 1, **MODELS[name], **settings})


def round_kernel(kernel, largest):
    """Int8 values of a kernel (I, O) up to a largest one, and the scale of each output (O,)."""
    scale = np.abs(kernel).max(axis=0) / largest
    return np.round(kernel / scale), scale


# Keras


@pytest.mark.parametrize(("name", "turns"), [("gap", 2), pytest.param("map", 1, marks=pytest.mark.backend), ("conv", 1)])
def test_keras_is_saved_and_loaded(tmp_path, name, turns):
    model = make_model(name)
    images = random_images(model.config)
    whole = predict(model, images)
    np.testing.assert_allclose(whole, Reference(model.config, weights_of(model))(images)["output"], atol=1e-4)
    config = model.get_config()
    model.quantize("int8")
    expected = predict(model, images)
    assert 10 * ROUNDING < np.abs(expected - whole).max() < INT8 * whole.std()
    for turn in range(turns):  # what was loaded is saved again
        path = tmp_path / f"{turn}.keras"
        model.save(path)
        loaded = keras.saving.load_model(path)
        np.testing.assert_allclose(predict(loaded, images), expected, atol=ROUNDING)
        assert loaded.get_config() == model.get_config() != config
        assert loaded.dtype_policy.name == "float32"
        assert quantised(loaded) == quantised(model) == dense_layers(model)
        model = loaded


def quantised(model):
    return {layer.path for layer in flatten_layers(model) if getattr(layer, "quantization_mode", None) == "int8"}


def dense_layers(model):
    return {layer.path for layer in flatten_layers(model) if isinstance(layer, keras.layers.Dense)}


@pytest.mark.backend
def test_keras_keeps_what_is_not_quantised(tmp_path):
    """A part of the layers in int8, the others in the policy that they have: the head in float32 in a model that is not."""
    model = randomise(build_vit(ViTConfig(**{**helpers.TINY["gap"], "depth": 1}), dtype="mixed_bfloat16"))
    images = random_images(model.config)
    model.quantize("int8", filters=lambda layer: layer.name in ("fc1", "qkv"))
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert quantised(loaded) == {"block_0/mlp/fc1", "block_0/attention/qkv"}
    for either in (model, loaded):
        policies = {layer.path: layer.dtype_policy.name for layer in flatten_layers(either) if layer.path}
        assert policies["head"] == "float32"
        assert policies["block_0/mlp/fc1"] == "int8_from_mixed_bfloat16"
        assert policies["block_0/mlp/fc2"] == "mixed_bfloat16"
    np.testing.assert_array_equal(predict(loaded, images), predict(model, images))


@pytest.mark.slow
def test_keras_loads_under_every_backend(tmp_path):
    model = make_model("map")
    model.quantize("int8")
    model.save(tmp_path / "model.keras")
    images = random_images(model.config)
    np.save(tmp_path / "images.npy", images)
    code = (
        "import sys, keras, keras_vit, numpy as np; folder = sys.argv[1]; model = keras.saving.load_model(folder + '/model.keras');"
        "np.save(folder + '/logits.npy', model.predict(np.load(folder + '/images.npy'), verbose=0))"
    )
    for backend in installed_backends():
        run_python(["-c", code, str(tmp_path)], backend)
        np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), predict(model, images), atol=BACKENDS)


def test_a_quantised_model_is_not_exported(tmp_path):
    model = make_model()
    model.quantize("int8")
    with pytest.raises(ValueError, match=r"^model_or_run: received a quantised model; allowed: the original one"):
        export_model(model, tmp_path / "out", "keras")
    assert not (tmp_path / "out").exists()


# ONNX, LiteRT: a dense layer and a product without weights, written by hand

KERNEL = np.random.default_rng(3).normal(size=(48, 32)).astype("float32") * np.geomspace(0.1, 10, 32, dtype="float32")
SAMPLES = np.random.default_rng(4).uniform(-1, 3, size=(21, 5, 48)).astype("float32")


def product(x):
    """(B, 5, 48) -> (B, 5, 5)"""
    y = x @ KERNEL
    return y @ np.swapaxes(y, 1, 2)


def onnx_product(batch):
    import onnx

    nodes = [
        onnx.helper.make_node("MatMul", ["x", "kernel"], ["y"], name="dense"),
        onnx.helper.make_node("Transpose", ["y"], ["z"], name="transposed", perm=[0, 2, 1]),
        onnx.helper.make_node("MatMul", ["y", "z"], ["scores"], name="scores"),
    ]
    graph = onnx.helper.make_graph(
        nodes,
        "product",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [batch, 5, 48])],
        [onnx.helper.make_tensor_value_info("scores", onnx.TensorProto.FLOAT, [batch, 5, 5])],
        [onnx.numpy_helper.from_array(KERNEL, "kernel")],
    )
    return onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)


@pytest.mark.skipif(not (find_spec("onnx") and find_spec("onnxruntime")), reason="needs onnx and onnxruntime")
@pytest.mark.parametrize("batch", ["batch", 4])
def test_onnx_by_hand(batch):
    import onnx
    import onnxruntime

    model = quantize_onnx(onnx_product(batch), SAMPLES)
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    values, scale = round_kernel(KERNEL, 64)
    np.testing.assert_array_equal(arrays["kernel_quantized"], values)
    np.testing.assert_allclose(arrays["kernel_scale"], scale, rtol=ROUNDING)
    step = np.ptp(SAMPLES) / 255  # the range of all samples: of a batch that is not full, too
    np.testing.assert_allclose(arrays["x_scale"], step, rtol=1e-4)
    assert not {"y_scale", "z_scale", "scores_scale"} & set(arrays), "the product without weights stays in float32"
    assert {tensor.data_type for tensor in model.graph.initializer} >= {onnx.TensorProto.INT8, onnx.TensorProto.UINT8}

    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (ours,) = session.run(None, {"x": SAMPLES[:4]})
    zero = arrays["x_zero_point"].astype("float64")
    rounded = (np.clip(np.round(SAMPLES[:4] / step) + zero, 0, 255) - zero) * step
    y = rounded @ (values * scale)
    expected = y @ np.swapaxes(y, 1, 2)
    np.testing.assert_allclose(ours, expected, atol=1e-3 * expected.std())
    np.testing.assert_allclose(ours, product(SAMPLES[:4]), atol=INT8 * expected.std())


@pytest.mark.skipif(not find_spec("tensorflow"), reason="needs tensorflow")
@pytest.mark.parametrize("batch", [None, 4])
def test_litert_by_hand(batch):
    """Ranges as they come follow an input of any size, ranges fixed beforehand cut off what is beyond them."""
    import tensorflow as tf
    from tensorflow.lite.tools import flatbuffer_utils

    function = tf.function(lambda x: {"y": tf.reshape(tf.reshape(x, (-1, 48)) @ KERNEL, (-1, 5, 32))})
    concrete = function.get_concrete_function(tf.TensorSpec((batch, 5, 48), tf.float32, name="x"))
    values, scale = round_kernel(KERNEL, 127)
    results = {}
    for name, samples in (("as they come", None), ("fixed", SAMPLES)):
        content = quantize_litert(tf.lite.TFLiteConverter.from_concrete_functions([concrete], tf.Module()), samples, batch)
        model = flatbuffer_utils.convert_bytearray_to_object(content)
        kernel = next(tensor for tensor in model.subgraphs[0].tensors if list(tensor.shape) == [32, 48])
        np.testing.assert_array_equal(model.buffers[kernel.buffer].data.view("int8").reshape(32, 48).T, values)
        np.testing.assert_allclose(kernel.quantization.scale, scale, rtol=ROUNDING)
        results[name] = litert_run(content)
    for factor in (1, 10):
        expected = factor * SAMPLES[:4] @ KERNEL
        for name, run in results.items():
            change = np.abs(run(factor * SAMPLES[:4]) - expected) / expected.std()
            assert change.max() > ROUNDING
            assert (change.max() < INT8) == (name == "as they come" or factor == 1)


def litert_run(content):
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=content, num_threads=1)
    source, target = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]

    def run(x):
        interpreter.resize_tensor_input(source, x.shape)
        interpreter.allocate_tensors()
        interpreter.set_tensor(source, x)
        interpreter.invoke()
        return interpreter.get_tensor(target)

    return run


# Exports


@pytest.fixture
def run(tmp_path):
    settings = {"image_size": 8, "patch_size": 2, "width": 64, "depth": 2, "num_heads": 2, "mlp_dim": 128}
    recipe = load_recipe("digits", model=settings)
    run = RunFolder.create(tmp_path / "run", recipe)
    run.write_model(1, randomise(build_vit(dataclasses.replace(recipe.model, num_classes=10))))
    return run


def test_calibrated_on_training_images_alone(run):
    model = run.model()
    images = calibration_images(model, run, None, "int8")
    assert images.shape == (256, 8, 8, 1)
    np.testing.assert_array_equal(calibration_images(model, run, None, "int8"), images)
    data = load_data("digits", image_size=8, channels=1, seed=run.recipe.seed, validation=run.recipe.validation)
    known = {part: {image.tobytes() for image in pixels(getattr(data, part))} for part in ("train", "validation", "test")}
    taken = {image.tobytes() for image in images}
    assert taken <= known["train"]
    assert len(taken) > 200
    assert not taken & (known["test"] | known["validation"])
    own = random_pixels(model, 5)
    assert calibration_images(model, run, own, "int8") is own


def pixels(split):
    return split.images(np.arange(len(split)))


def random_pixels(model, count):
    return helpers.random_pixels(count, *model.config.image_size, model.config.channels, seed=1)


@pytest.mark.parametrize("name", [name for name, kind in FORMATS.items() if kind.calibrated])
def test_calibration_needs_images(tmp_path, name):
    model, precision = make_model(), FORMATS[name].calibrated[0]
    try:
        choose_writer(name)
    except ValueError:
        pytest.skip(f"nothing here writes {name}")
    message = f"^images: received none; allowed: uint8 images .*, or a run, as {precision} is calibrated on real images$"
    with pytest.raises(ValueError, match=message):
        export_model(model, tmp_path / "out", name, precision=precision)
    wrong = np.zeros((2, 12, 18, 3))
    with pytest.raises(ValueError, match=r"^images: received float64 of shape \(2, 12, 18, 3\); allowed: uint8"):
        export_model(model, tmp_path / "out", name, precision=precision, images=wrong)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "precision", "reason"),
    [
        ("torch", "int8", r"allowed for torch: float32, float16, bfloat16 \(.* torchao\)"),
        ("tf_saved_model", "int8", r"allowed for tf_saved_model: .* \(TensorFlow's int8 format is litert\)"),
        ("keras", "int8_static", "allowed for keras: float32, float16, bfloat16, int8$"),
        ("onnx", "int8_static", "allowed for onnx: float32, float16, int8$"),
    ],
)
def test_what_there_is_no_int8_of(tmp_path, name, precision, reason):
    with pytest.raises(ValueError, match=f"^precision: received '{precision}'; {reason}"):
        export_model(make_model(), tmp_path / "out", name, precision=precision)


def check_export(run, folder, name, precision):
    """An int8 export of a run, which is still the same function of its test images."""
    model = run.model()
    report = export_model(run, folder / f"{name}-{precision}", name, precision=precision)
    assert report["precision"] == precision
    images = run_images(run, "test", count=6)
    mean, std = (np.asarray(report[key]) for key in ("mean", "std"))
    expected = Reference(model.config, weights_of(model))((images / 255 - mean) / std)["output"]
    with Runtime(name, folder / f"{name}-{precision}", threads=1) as runtime:
        change = np.abs(runtime.predict(images, folder) - expected).max()
    assert 10 * ROUNDING < change < 3 * INT8 * expected.std()
    assert report["difference"] > 10 * ROUNDING
    return report


OWN = {"tensorflow": "litert", "torch": "onnx" if find_spec("onnxruntime") else "keras", "jax": "keras"}[keras.backend.backend()]


def test_int8_export(run, in_process, tmp_path):
    report = check_export(run, tmp_path, OWN, "int8")
    weights = 4 * run.model().count_params()
    assert report["bytes"] < 0.9 * weights
    assert report["class_names"] == [str(digit) for digit in range(10)]


ALL = [(name, precision) for name, kind in FORMATS.items() for precision in kind.precisions if precision.startswith("int8")]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "precision"), ALL)
def test_every_int8_export(run, tmp_path, name, precision):
    whole = export_model(run, tmp_path / name, name)
    assert check_export(run, tmp_path, name, precision)["bytes"] < 0.65 * whole["bytes"]


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("batch_size", [None, 3])
def test_int8_of_other_models(tmp_path, model, batch_size):
    model = make_model(model, width=32, mlp_dim=64)
    for name, precision in (("onnx", "int8"), ("litert", "int8_static")):
        settings = {"mean": MEAN, "std": STD, "images": random_pixels(model, 40), "batch_size": batch_size}
        report = export_model(model, tmp_path / f"{name}", name, precision=precision, **settings)
        assert report["difference"] > 10 * ROUNDING
