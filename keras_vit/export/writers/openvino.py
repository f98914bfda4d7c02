"""OpenVINO, from the ONNX model."""

import openvino

from keras_vit.export.runtimes import FILES
from keras_vit.export.writers import onnx
from keras_vit.export.writers.common import metadata


def write(model, folder, report, calibration):
    precision = report["precision"]
    onnx.write(model, folder, {**report, "precision": "int8" if precision == "int8" else "float32"}, calibration)
    converted = openvino.convert_model(folder / FILES["onnx"])
    for name, text in metadata(report).items():
        converted.set_rt_info(text, ["keras_vit", name])
    if report["class_names"]:  # OpenVINO's Model API reads them here
        converted.set_rt_info(" ".join(name.replace(" ", "_") for name in report["class_names"]), ["model_info", "labels"])
    openvino.save_model(converted, folder / FILES["openvino"], compress_to_fp16=precision == "float16")
    del converted  # it may still have the ONNX file mapped
    for file in folder.glob("model.onnx*"):
        file.unlink()
