"""A SavedModel of TensorFlow, with signatures that read pictures.

Shapes: B batch, h x w a picture, H x W the model's image, C channels, K classes.
"""

import tensorflow as tf

from keras_vit.export.models import interface
from keras_vit.export.serving import cover, decode
from keras_vit.export.writers.common import output_name
from keras_vit.images import scale_and_shift


def write(model, folder, report, calibration):
    signatures = {"serve": serve(model, report)}
    if report["class_names"] and report["mean"]:
        signatures["serving_default"] = serve_pixels(model, report)
        if interface(model).channels in (1, 3):
            signatures["serving_bytes"] = serve_files(model, report)
    else:
        signatures["serving_default"] = signatures["serve"]
    module = tf.Module()
    module.weights = [weight.value for weight in model.weights]
    tf.saved_model.save(module, str(folder), signatures=signatures)


def signature(function, shape, dtype):
    return tf.function(function, input_signature=[tf.TensorSpec(shape, dtype, name="images")])


def serve(model, report):
    """Normalised float32 images -> logits."""
    name = output_name(report)
    return signature(lambda images: {name: model(images, training=False)}, (None, *interface(model).image_shape), tf.float32)


def serve_pixels(model, report):
    """uint8 images (B, h, w, C) -> labels and probabilities (B, K)."""
    found = interface(model)

    def classify_pixels(images):
        return classify(model, report, cover(images, found.image_size, report["center_crop"]))

    return signature(classify_pixels, (None, None, None, found.channels), tf.uint8)


def serve_files(model, report):
    """Encoded JPEG or PNG files (B,) -> labels and probabilities (B, K)."""
    found = interface(model)
    image = tf.TensorSpec(found.pictures, tf.float32)

    def read(encoded):
        return cover(decode(encoded, found.channels)[None], found.image_size, report["center_crop"])[0]

    def classify_files(images):
        return classify(model, report, tf.map_fn(read, images, fn_output_signature=image))

    return signature(classify_files, (None,), tf.string)


def classify(model, report, images):
    """Labels and probabilities (B, K) of images (B, H, W, C) from 0 to 255, the likeliest class first."""
    scale, shift = scale_and_shift(report["mean"], report["std"])
    images = images * tf.constant(scale, tf.float32) + tf.constant(shift, tf.float32)
    if report["data_format"] == "channels_first":
        images = tf.transpose(images, (0, 3, 1, 2))
    logits = tf.cast(model(images, training=False), tf.float32) / report["temperature"]
    probabilities = tf.sigmoid(logits) if report["multi_label"] else tf.nn.softmax(logits)
    probabilities, order = tf.math.top_k(probabilities, k=len(report["class_names"]), sorted=True)
    return {"labels": tf.gather(tf.constant(report["class_names"]), order), "probabilities": probabilities}
