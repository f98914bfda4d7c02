"""ONNX, from any backend."""

import keras
import onnx

from keras_vit.export.quantize import quantize_onnx
from keras_vit.export.runtimes import FILES
from keras_vit.export.writers.common import metadata, output_name, serving_model

LARGE = 1_500_000_000  # bytes; a protocol buffer holds 2 GB, and the weights of a larger model get a file of their own


def write(model, folder, report, calibration):
    converters = {"torch": from_torch, "jax": from_jax, "tensorflow": from_tensorflow}
    proto = converters[keras.backend.backend()](model, report)
    if report["precision"] == "float16":
        from onnxruntime.transformers.float16 import convert_float_to_float16

        proto = convert_float_to_float16(proto, keep_io_types=True)
    if report["precision"] == "int8":
        proto = quantize_onnx(proto, calibration)
    onnx.helper.set_model_props(proto, metadata(report))
    proto.producer_name = "keras_vit"
    path = folder / FILES["onnx"]
    onnx.save(proto, path, save_as_external_data=proto.ByteSize() > LARGE, location="model.onnx.data")
    onnx.checker.check_model(path)


def from_torch(model, report):
    import torch

    from keras_vit.export.writers.torch import exported_program

    proto = torch.onnx.export(
        exported_program(model, report),
        input_names=["images"],
        output_names=[output_name(report)],
        dynamo=True,
        external_data=False,
        verbose=False,
    ).model_proto
    for part in (*proto.graph.node, *proto.graph.value_info):  # source lines and paths of this machine
        part.ClearField("metadata_props")
    return proto


def from_jax(model, report):
    import jax
    import jax2onnx

    serving = serving_model(model, report)
    shape = jax.ShapeDtypeStruct((report["batch_size"] or "batch", *report["image_shape"]), report["input"])
    names = {"input_names": ["images"], "output_names": [output_name(report)]}
    return jax2onnx.to_onnx(lambda images: serving(images, training=False), [shape], model_name="keras_vit", opset=21, **names)


def from_tensorflow(model, report):
    import tensorflow as tf
    import tf2onnx

    serving = serving_model(model, report)
    signature = [tf.TensorSpec((report["batch_size"], *report["image_shape"]), report["input"], name="images")]
    function = tf.function(lambda images: {output_name(report): serving(images, training=False)}, input_signature=signature)
    return tf2onnx.convert.from_function(function, input_signature=signature, opset=18)[0]
