"""A `.keras` file, in lower precision or in int8."""

from keras_vit.export.runtimes import FILES


def write(model, folder, report, calibration):
    if report["precision"] == "int8":
        model.quantize("int8")
    model.save(folder / FILES["keras"])
