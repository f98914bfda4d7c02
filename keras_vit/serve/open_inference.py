"""The Open Inference Protocol, KServe's version 2: requests and answers as Python values, with tensors in JSON or as bytes.

Source: https://github.com/kserve/open-inference-protocol, and its extension for binary tensor data.

Shapes: N images, H x W pixels, C channels, K classes.
"""

import json
import math
import struct
import typing

import numpy as np

from keras_vit.checks import is_integer, shown
from keras_vit.runs.prediction import Classifier
from keras_vit.serve.inputs import Images, check_count, check_shape, files_of, integers
from keras_vit.serve.limits import Limits, Refused

INPUT, DATATYPES = "images", ("UINT8", "BYTES")
SIZE = "binary_data_size"


def metadata(name: str, version: str, classifier: Classifier) -> dict:
    """The answer to GET /v2/models/NAME. The input takes BYTES too, which the protocol has no words for."""
    return {
        "name": name,
        "versions": [version],
        "platform": classifier.platform,
        "inputs": [{"name": INPUT, "datatype": "UINT8", "shape": [-1, *classifier.shape]}],
        "outputs": [{"name": output, **kind} for output, kind in outputs_of(classifier).items()],
    }


def outputs_of(classifier):
    classes = len(classifier.class_names)
    return {
        "probabilities": {"datatype": "FP32", "shape": [-1, classes]},
        "labels": {"datatype": "BYTES", "shape": [-1]},
        "class_names": {"datatype": "BYTES", "shape": [classes]},
    }


def read_request(request: dict, binary: bytes, classifier: Classifier, limits: Limits) -> Images:
    """The images of a request for `/infer`; `binary` are the bytes after its JSON."""
    inputs = request.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise Refused(400, f"inputs: received {shown(inputs)}; allowed: a list with one tensor, {INPUT}")
    (tensor,) = inputs
    if tensor.get("name") != INPUT:
        raise Refused(400, f"inputs.name: received {shown(tensor.get('name'))}; allowed: {INPUT}")
    datatype, shape = tensor.get("datatype"), tensor.get("shape")
    if datatype not in DATATYPES:
        allowed = "UINT8, pixels from 0 to 255 that the server normalises, and BYTES, picture files"
        raise Refused(400, f"inputs.datatype: received {shown(datatype)}; allowed: {allowed}")
    if not isinstance(shape, list) or not shape or not all(is_integer(side) and side >= 0 for side in shape):
        raise Refused(400, f"inputs.shape: received {shown(shape)}; allowed: a list of integers")
    if datatype == "UINT8":
        check_shape("inputs.shape", shape, classifier)
    elif len(shape) > 2 or shape[1:] not in ([], [1]):
        raise Refused(400, f"inputs.shape: received {shown(shape)}; allowed for BYTES: [N] or [N, 1]")
    check_count("inputs.shape", shape[0], limits)
    size = parameters_of(tensor, "inputs").get(SIZE)
    if size is not None:
        if "data" in tensor or not is_integer(size) or size != len(binary):
            allowed = f"{len(binary):,}, the bytes after the JSON, and no data"
            raise Refused(400, f"inputs.parameters.{SIZE}: received {shown(size)}; allowed: {allowed}")
        return from_binary(datatype, shape, binary)
    if binary:
        raise Refused(400, f"body: received {len(binary):,} bytes after the JSON; allowed: those of {SIZE}")
    data = tensor.get("data")
    if not isinstance(data, list):
        raise Refused(400, f"inputs.data: received {shown(data)}; allowed: a list")
    if datatype == "UINT8":
        return integers("inputs.data", data, tuple(shape))
    texts = [text[0] if isinstance(text, list) and len(text) == 1 else text for text in data]
    if len(texts) != shape[0]:
        raise Refused(400, f"inputs.data: received {len(texts):,} files; allowed: {shape[0]:,}, as inputs.shape")
    return files_of("inputs.data", texts, limits)


def from_binary(datatype, shape, binary):
    if datatype == "UINT8":
        if len(binary) != math.prod(shape):
            raise Refused(
                400, f"inputs.parameters.{SIZE}: received {len(binary):,}; allowed: {math.prod(shape):,}, as inputs.shape"
            )
        return np.frombuffer(binary, np.uint8).reshape(shape)
    files, start = [], 0
    while start < len(binary) and len(files) <= shape[0]:
        length = int.from_bytes(binary[start : start + 4], "little")
        files.append(binary[start + 4 : start + 4 + length])
        start += 4 + length
    if len(files) != shape[0] or start != len(binary):
        raise Refused(400, f"inputs: received bytes that are not {shape[0]:,} files; allowed: each after its length, 4 bytes")
    return files


def parameters_of(value, field):
    parameters = value.get("parameters") or {}
    if not isinstance(parameters, dict):
        raise Refused(400, f"{field}.parameters: received {shown(parameters)}; allowed: an object")
    return parameters


def read_outputs(request: dict, classifier: Classifier) -> dict[str, bool]:
    """Which outputs are wanted, in order, and whether each as bytes."""
    known = outputs_of(classifier)
    default = bool(parameters_of(request, "body").get("binary_data_output", False))
    outputs = request.get("outputs")
    if not outputs:
        return dict.fromkeys(known, default)
    if not isinstance(outputs, list) or not all(isinstance(output, dict) for output in outputs):
        raise Refused(400, f"outputs: received {shown(outputs)}; allowed: a list of tensors")
    wanted = {}
    for output in outputs:
        name = output.get("name")
        if not isinstance(name, str) or name not in known:
            raise Refused(400, f"outputs.name: received {shown(name)}; allowed: {', '.join(known)}")
        wanted[name] = bool(parameters_of(output, "outputs").get("binary_data", default))
    return wanted


def answer(
    probabilities: np.ndarray, wanted: dict[str, bool], classifier: Classifier, name: str, version: str, id: typing.Any = None
) -> tuple[bytes, int | None]:
    """The body of the answer to `/infer` from probabilities (N, K), and the length of its JSON if bytes follow it."""
    values = {
        "probabilities": probabilities,
        "labels": [classifier.class_names[label] for label in probabilities.argmax(axis=1)],
        "class_names": classifier.class_names,
    }
    outputs, binary = [], []
    for output, as_bytes in wanted.items():
        value = values[output]
        shape = list(value.shape) if isinstance(value, np.ndarray) else [len(value)]
        tensor = {"name": output, "datatype": outputs_of(classifier)[output]["datatype"], "shape": shape}
        if as_bytes:
            binary.append(to_binary(value))
            tensor["parameters"] = {SIZE: len(binary[-1])}
        else:
            tensor["data"] = value.ravel().tolist() if isinstance(value, np.ndarray) else value
        outputs.append(tensor)
    content = {"model_name": name, "model_version": version, "outputs": outputs}
    if isinstance(id, str):
        content["id"] = id
    text = json.dumps(content, separators=(",", ":")).encode()
    return b"".join([text, *binary]), len(text) if binary else None


def to_binary(value):
    if isinstance(value, np.ndarray):
        return value.astype("<f4").tobytes()
    return b"".join(struct.pack("<I", len(text)) + text for text in (each.encode() for each in value))
