"""TensorFlow Serving's REST: requests and answers as Python values.

The signatures are those of this library's exports as SavedModel: labels and probabilities, the likeliest class first.
Source: https://www.tensorflow.org/tfx/serving/api_rest

Shapes: N images, K classes.
"""

import typing

import numpy as np

from keras_vit.checks import shown
from keras_vit.runs.prediction import Classifier
from keras_vit.serve.inputs import Images, files_of, pixels
from keras_vit.serve.limits import Limits, Refused

SIGNATURES = ("serving_default", "serving_bytes")
INPUT = "images"


def read_request(request: dict, classifier: Classifier, limits: Limits) -> tuple[Images, bool]:
    """The images of a request for `:predict`, and whether they came as rows (`instances`) or as a column (`inputs`)."""
    signature = request.get("signature_name", "") or SIGNATURES[0]
    if signature not in SIGNATURES:
        raise Refused(400, f"signature_name: received {shown(signature)}; allowed: {', '.join(SIGNATURES)}")
    given = [name for name in ("instances", "inputs") if name in request]
    if len(given) != 1:
        raise Refused(400, f"body: received {' and '.join(given) or 'neither instances nor inputs'}; allowed: one of the two")
    (field,) = given
    values = request[field]
    if field == "inputs":
        values = named(field, values)
        values = values if isinstance(values, list) else [values]  # one file; one image has its own list in this format too
    elif isinstance(values, list):
        values = [named(field, value) for value in values]
    if isinstance(values, list) and any(isinstance(value, dict) for value in values):
        texts = [value.get("b64") if isinstance(value, dict) and len(value) == 1 else None for value in values]
        for value, text in zip(values, texts, strict=True):
            if not isinstance(text, str):
                raise Refused(400, f"{field}: received {shown(value)} beside files; allowed: an object with b64, a text, for each")
        return files_of(field, texts, limits), field == "instances"
    if signature == "serving_bytes":
        raise Refused(400, f"{field}: received {shown(values)}; allowed for serving_bytes: objects with b64")
    return pixels(field, values, classifier, limits), field == "instances"


def named(field, value):
    """The value of the only input, which may be named."""
    if not isinstance(value, dict) or "b64" in value:
        return value
    if list(value) != [INPUT]:
        raise Refused(400, f"{field}: received {shown(list(value))}; allowed: {INPUT}, or b64")
    return value[INPUT]


def answer(probabilities: np.ndarray, classifier: Classifier, rows: bool) -> dict[str, typing.Any]:
    """The answer to `:predict` from probabilities (N, K)."""
    order = np.argsort(-probabilities, axis=1, kind="stable")
    labels = [[classifier.class_names[label] for label in row] for row in order]
    values = np.take_along_axis(probabilities, order, axis=1).tolist()
    if rows:
        return {"predictions": [{"labels": row, "probabilities": p} for row, p in zip(labels, values, strict=True)]}
    return {"outputs": {"labels": labels, "probabilities": values}}


def status(version: str, fault: str | None) -> dict:
    """The answer to GET /v1/models/NAME."""
    state, code = ("AVAILABLE", "OK") if fault is None else ("UNAVAILABLE", "INTERNAL")
    known = {"version": version, "state": state, "status": {"error_code": code, "error_message": fault or ""}}
    return {"model_version_status": [known]}


def metadata(name: str, version: str, classifier: Classifier) -> dict:
    """The answer to GET /v1/models/NAME/metadata."""
    classes = len(classifier.class_names)
    outputs = {"labels": tensor("DT_STRING", -1, classes), "probabilities": tensor("DT_FLOAT", -1, classes)}
    inputs = {"serving_default": tensor("DT_UINT8", -1, *classifier.shape), "serving_bytes": tensor("DT_STRING", -1)}
    signatures = {
        name: {"inputs": {INPUT: inputs[name]}, "outputs": outputs, "method_name": "tensorflow/serving/predict"}
        for name in SIGNATURES
    }
    return {
        "model_spec": {"name": name, "signature_name": "", "version": version},
        "metadata": {"signature_def": {"signature_def": signatures}},
    }


def tensor(dtype, *sides):
    dim = [{"size": str(side), "name": ""} for side in sides]
    return {"dtype": dtype, "tensor_shape": {"dim": dim, "unknown_rank": False}, "name": ""}
