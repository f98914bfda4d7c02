"""Artifacts in their own runtimes: no Keras there, the right numbers, and a fault is an answer and not a hang."""

import ast
import json
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from keras_vit.export import runtimes
from keras_vit.export.runtimes import FILES, LOADERS, Runtime

TOLERANCE = 1e-6  # absolute, of a product of (6,) x (6, 4) in float32
REPORT = {"input": "float32", "image_shape": [1, 2, 3], "data_format": "channels_last"}
KERNEL = np.random.default_rng(3).normal(size=(6, 4)).astype("float32")


def write_torch(folder):
    import torch

    class Product(torch.nn.Module):
        def forward(self, images):
            return images.reshape(-1, 6) @ torch.from_numpy(KERNEL)

    batch = {"images": {0: torch.export.Dim.DYNAMIC}}
    program = torch.export.export(Product(), (torch.zeros(2, 1, 2, 3),), dynamic_shapes=batch)
    torch.export.save(program, folder / FILES["torch"])


def write_onnx(folder):
    import onnx

    shape = onnx.helper.make_tensor("shape", onnx.TensorProto.INT64, [2], [-1, 6])
    nodes = [
        onnx.helper.make_node("Reshape", ["images", "shape"], ["flat"]),
        onnx.helper.make_node("MatMul", ["flat", "kernel"], ["logits"]),
    ]
    graph = onnx.helper.make_graph(
        nodes,
        "product",
        [onnx.helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, ["batch", 1, 2, 3])],
        [onnx.helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", 4])],
        [shape, onnx.numpy_helper.from_array(KERNEL, "kernel")],
    )
    opset = [onnx.helper.make_opsetid("", 18)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=10), folder / FILES["onnx"])


def write_openvino(folder):
    import openvino
    from openvino import opset13

    images = opset13.parameter([-1, 1, 2, 3], name="images", dtype=np.float32)
    logits = opset13.matmul(opset13.reshape(images, [-1, 6], False), opset13.constant(KERNEL), False, False)
    openvino.save_model(openvino.Model([logits], [images], "product"), folder / FILES["openvino"], compress_to_fp16=False)


def write_saved_model(folder):
    import tensorflow as tf

    @tf.function(input_signature=[tf.TensorSpec((None, 1, 2, 3), tf.float32, name="images")])
    def serve(images):
        return {"logits": tf.reshape(images, (-1, 6)) @ KERNEL}

    module = tf.Module()
    tf.saved_model.save(module, str(folder), signatures={"serve": serve})


def write_litert(folder):
    import tensorflow as tf

    function = tf.function(lambda images: {"logits": tf.reshape(images, (-1, 6)) @ KERNEL})
    concrete = function.get_concrete_function(tf.TensorSpec((None, 1, 2, 3), tf.float32, name="images"))
    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete], tf.Module())
    (folder / FILES["litert"]).write_bytes(converter.convert())


# By format: what writes the product without any of this library, and the packages that it takes.
BY_HAND = {
    "tf_saved_model": (write_saved_model, "tensorflow"),
    "onnx": (write_onnx, "onnx", "onnxruntime"),
    "litert": (write_litert, "tensorflow"),
    "openvino": (write_openvino, "openvino"),
    "torch": (write_torch, "torch"),
}
HERE = [name for name, (_, *packages) in BY_HAND.items() if all(find_spec(package) for package in packages)]


def test_every_runtime_is_tested():
    assert set(BY_HAND) | {"keras"} == set(FILES) == set(LOADERS)
    assert HERE, "no backend is installed"


def test_the_file_stands_alone():
    """What a user may copy beside an artifact: the standard library, NumPy, and inside the loaders their runtimes."""
    tree = ast.parse(Path(runtimes.__file__).read_text(encoding="utf-8"))
    imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {alias.name for node in imports for alias in node.names} | {node.module for node in imports if hasattr(node, "module")}
    roots = {name.partition(".")[0] for name in names if name}
    assert "keras_vit" not in roots
    assert {root for root in roots if root.islower() and root not in sys.stdlib_module_names} <= {"numpy"}


@pytest.mark.parametrize("format", HERE)
def test_runs_without_keras(tmp_path, format):
    folder = tmp_path / format
    folder.mkdir()
    BY_HAND[format][0](folder)
    (folder / "export.json").write_text(json.dumps(REPORT))
    images = np.random.default_rng(0).normal(size=(7, 1, 2, 3)).astype("float32")
    expected = images.reshape(7, 6) @ KERNEL
    with Runtime(format, folder, threads=1) as runtime:
        assert runtime.description["keras"] is False
        for size in (1, 3, 7, 2):  # there and back: LiteRT allocates anew for each
            np.testing.assert_allclose(runtime.predict(images[:size], tmp_path), expected[:size], atol=TOLERANCE)
        np.testing.assert_allclose(runtime.predict(images, tmp_path, batch_size=3), expected, atol=TOLERANCE)
        assert 0 < runtime.ask(do="time", batch_size=4, seconds=0.01)["seconds"] < 10
        with pytest.raises(ValueError, match=f"^{format}: \\w+: "):  # another size of image: what the runtime says, in one line
            runtime.predict(images[..., :2], tmp_path)
        assert runtime.process.wait(timeout=30) == 1
    assert runtime.process.poll() is not None


@pytest.mark.parametrize("format", HERE)
def test_damaged_artifact_is_one_line(tmp_path, format):
    (tmp_path / "export.json").write_text(json.dumps(REPORT))
    (tmp_path / FILES[format]).write_bytes(b"\x08\x01 this is none")
    with pytest.raises(ValueError, match=f"^{format}: ") as caught:
        Runtime(format, tmp_path)
    assert "\n" not in str(caught.value)


def test_a_runtime_that_dies_is_an_error_and_no_hang(tmp_path):
    format = "onnx" if "onnx" in HERE else HERE[0]  # the quickest to start
    BY_HAND[format][0](tmp_path)
    (tmp_path / "export.json").write_text(json.dumps(REPORT))
    with Runtime(format, tmp_path) as runtime:
        runtime.process.kill()
        runtime.process.wait()
        with pytest.raises(ValueError, match=f"^{format}: its process ended with exit code -9"):
            runtime.predict(np.zeros((1, 1, 2, 3), "float32"), tmp_path)


def test_nothing_runs_on_after_an_interrupt(tmp_path, monkeypatch):
    started = []

    def interrupted(runtime):
        started.append(runtime.process)
        raise KeyboardInterrupt

    monkeypatch.setattr(Runtime, "answer", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Runtime(HERE[0], tmp_path)
    assert started[0].poll() is not None
