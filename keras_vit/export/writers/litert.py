"""LiteRT, formerly TensorFlow Lite."""

import json

import tensorflow as tf

from keras_vit.export.quantize import quantize_litert
from keras_vit.export.runtimes import FILES
from keras_vit.export.writers.common import metadata, output_name, serving_model
from keras_vit.private.tensorflow import add_litert_metadata


def write(model, folder, report, calibration):
    serving = serving_model(model, report)
    spec = tf.TensorSpec((report["batch_size"], *report["image_shape"]), report["input"], name="images")
    function = tf.function(lambda images: {output_name(report): serving(images, training=False)}).get_concrete_function(spec)
    module = tf.Module()  # given a Keras model instead, the converter would miss the variables
    module.weights = [weight.value for weight in model.weights]
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function], module)
    if report["precision"] == "float16":
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.target_spec.supported_types = [tf.float16]
    if report["precision"] in ("int8", "int8_static"):
        flatbuffer = quantize_litert(converter, calibration, report["batch_size"])
    else:
        flatbuffer = converter.convert()
    text = json.dumps(metadata(report), ensure_ascii=False)
    (folder / FILES["litert"]).write_bytes(add_litert_metadata(flatbuffer, "keras_vit", text))
