"""TensorFlow's private names: each does what is expected of it, and without it the public way is taken after one warning."""

import importlib

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")
private = importlib.import_module("keras_vit.private.tensorflow")
pytestmark = pytest.mark.private

KERNEL = np.random.default_rng(0).normal(size=(6, 4)).astype("float32")


@pytest.fixture(autouse=True)
def looked_for_anew():
    private.litert_tools.cache_clear()
    yield
    private.litert_tools.cache_clear()


@pytest.fixture(scope="module")
def flatbuffer():
    function = tf.function(lambda x: x @ KERNEL).get_concrete_function(tf.TensorSpec((2, 6), tf.float32))
    return tf.lite.TFLiteConverter.from_concrete_functions([function], tf.Module()).convert()


def test_metadata_is_added_and_the_model_unchanged(flatbuffer):
    assert private.litert_tools()
    content = private.add_litert_metadata(flatbuffer, "keras_vit", "Käfer, 猫")
    assert content.count("Käfer, 猫".encode()) == 1
    x = np.random.default_rng(1).normal(size=(2, 6)).astype("float32")
    interpreter = pytest.importorskip("ai_edge_litert.interpreter").Interpreter(model_content=content)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
    interpreter.invoke()
    np.testing.assert_allclose(interpreter.get_tensor(interpreter.get_output_details()[0]["index"]), x @ KERNEL, atol=1e-6)


@pytest.mark.parametrize("names", [{"LITERT_MODULES": ("tensorflow.gone", "tensorflow.lost")}, {"SCHEMA_NAMES": ("Gone",)}])
def test_without_the_tools_there_is_no_metadata_and_one_warning(monkeypatch, flatbuffer, names):
    for name, value in names.items():
        monkeypatch.setattr(private, name, value)
    with pytest.warns(UserWarning, match="LiteRT files get no metadata") as caught:
        assert [private.add_litert_metadata(flatbuffer, "keras_vit", "text") for _ in range(2)] == [flatbuffer] * 2
    assert len(caught) == 1


def test_without_the_name_onednn_is_not_used_after_one_warning(monkeypatch):
    private.has_onednn.cache_clear()
    monkeypatch.setattr(private, "ONEDNN_MODULE", "tensorflow.gone")
    try:
        with pytest.warns(UserWarning, match="lacks IsMklEnabled") as caught:
            assert [private.has_onednn() for _ in range(2)] == [False, False]
    finally:
        private.has_onednn.cache_clear()
    assert len(caught) == 1
    monkeypatch.undo()
    assert isinstance(private.has_onednn(), bool)
