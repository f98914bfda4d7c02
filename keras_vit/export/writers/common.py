"""What artifacts of several formats share: the model with its normalisation, the output's name, and the metadata."""

import json

import keras

from keras_vit.images import scale_and_shift


def serving_model(model, report: dict) -> keras.Model:
    """The model as artifacts hold it, with normalisation inside if its images are uint8."""
    if report["input"] == "float32":
        return model
    scale, shift = scale_and_shift(report["mean"], report["std"])
    images = keras.Input(report["image_shape"], dtype="uint8", name="images")
    x = keras.layers.Rescaling(scale.tolist(), shift.tolist(), dtype="float32", name="normalisation")(images)
    if report["data_format"] == "channels_first":
        x = keras.layers.Permute((3, 1, 2), name="channels_first")(x)
    return keras.Model(images, model(x), name="serving")


def output_name(report: dict) -> str:
    return "logits" if report["class_names"] else "features"


def metadata(report: dict) -> dict[str, str]:
    """The settings that an artifact carries, as text by name."""
    names = ("class_names", "multi_label", "temperature", "mean", "std", "center_crop")
    names += ("input", "image_shape", "data_format", "precision")
    return {name: report[name] if isinstance(report[name], str) else json.dumps(report[name], ensure_ascii=False) for name in names}
