"""Each bad request gets one line of JSON, and the next request its answer."""

import base64
import io
import json
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("fastapi")

V1, V2 = "/v1/models/pets:predict", "/v2/models/pets/infer"
GOOD = np.zeros((1, 8, 12, 3), np.uint8)


def tensor(datatype="UINT8", shape=(1, 8, 12, 3), data=None, **more):
    data = GOOD.ravel().tolist() if data is None else data
    return {"inputs": [{"name": "images", "datatype": datatype, "shape": list(shape), "data": data, **more}]}


def png(width, height, rows=b""):
    """A PNG file that claims a size."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def cut_jpeg():
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(out, "JPEG")
    return out.getvalue()[:900]


def b64(data):
    return base64.b64encode(data).decode()


def refused(client, response, status, message):
    assert (response.status_code, response.headers["content-type"]) == (status, "application/json"), response.text
    assert message in response.json()["error"], response.text
    assert list(response.json()) == ["error"]
    assert "Traceback" not in response.text
    assert "\n" not in response.text
    assert client.post(V2, json=tensor()).status_code == 200


PIXELS = "allowed: integers from 0 to 255"
REQUESTS = {
    "shape": (tensor(shape=(1, 8, 8, 3)), "inputs.shape: received shape (1, 8, 8, 3); allowed: (N, 8, 12, 3)"),
    "rank": (tensor(shape=(8, 12, 3)), "inputs.shape: received shape (8, 12, 3); allowed: (N, 8, 12, 3)"),
    "negative shape": (tensor(shape=(-1, 8, 12, 3)), "inputs.shape: received [-1, 8, 12, 3]; allowed: a list of integers"),
    "count": (tensor(shape=(7, 8, 12, 3)), "inputs.shape: received 7 images; allowed: 1 to 6"),
    "none": (tensor(shape=(0, 8, 12, 3), data=[]), "inputs.shape: received 0 images; allowed: 1 to 6"),
    "too few": (tensor(data=[0] * 5), "inputs.data: received shape (5,); allowed: (1, 8, 12, 3)"),
    "dtype": (tensor("FP32"), "inputs.datatype: received 'FP32'; allowed: UINT8, pixels from 0 to 255 that the server normalises"),
    "float": (tensor(data=[0.5] * 288), f"inputs.data: received 0.5; {PIXELS}"),
    "whole float": (tensor(data=[1.0] * 288), f"inputs.data: received 1.0; {PIXELS}"),
    "boolean": (tensor(data=[True] * 288), f"inputs.data: received True; {PIXELS}"),
    "text": (tensor(data=["7"] * 288), f"inputs.data: received '7'; {PIXELS}"),
    "too large": (tensor(data=[0] * 287 + [256]), f"inputs.data: received 256; {PIXELS}"),
    "negative": (tensor(data=[-1] * 288), f"inputs.data: received -1; {PIXELS}"),
    "huge": (tensor(data=[10**100] * 288), f"inputs.data: received an integer of 333 bits; {PIXELS}"),
    "null": (tensor(data=[None] * 288), f"inputs.data: received None; {PIXELS}"),
    "ragged": (tensor(data=[[[[0] * 3] * 12] * 7 + [[[0] * 3] * 11]]), "inputs.data: received lists of different lengths"),
    "name": ({"inputs": [{"name": "image"}]}, "inputs.name: received 'image'; allowed: images"),
    "two tensors": ({"inputs": [{}, {}]}, "allowed: a list with one tensor, images"),
    "no tensor": ({}, "inputs: received None; allowed: a list with one tensor"),
    "output": (tensor() | {"outputs": [{"name": "logits"}]}, "outputs.name: received 'logits'; allowed: probabilities, labels"),
    "parameters": (tensor() | {"parameters": 3}, "body.parameters: received 3; allowed: an object"),
    "bytes without any": (tensor(parameters={"binary_data_size": 288}), "inputs.parameters.binary_data_size: received 288"),
    "no base64": (tensor("BYTES", [1], ["%%"]), "inputs.data: received '%%' ("),
    "no text": (tensor("BYTES", [1], [3]), "allowed: base64 of an encoded picture, such as JPEG or PNG"),
    "empty file": (tensor("BYTES", [1], [""]), "inputs: received no picture; allowed: an encoded picture"),
    "text file": (tensor("BYTES", [1], [b64(b"hello")]), "inputs: received no picture; allowed: an encoded picture"),
    "cut picture": (tensor("BYTES", [1], [b64(cut_jpeg())]), "inputs: received a picture that cannot be read (image file is trunc"),
    "100 megapixels": (tensor("BYTES", [1], [b64(png(10_000, 10_000))]), "received 10000x10000 pixels; allowed: 89,478,485"),
    "1000 megapixels": (tensor("BYTES", [1], [b64(png(50_000, 20_000))]), "inputs: received a picture that cannot be read ("),
    "number of files": (tensor("BYTES", [2], [b64(cut_jpeg())]), "inputs.data: received 1 files; allowed: 2, as inputs.shape"),
}
INSTANCES = {
    "shape": ({"instances": [[1, 2]]}, "instances: received shape (1, 2); allowed: (N, 8, 12, 3)"),
    "number": ({"instances": 3}, "instances: received 3; allowed: a list of images"),
    "numbers": ({"instances": [3]}, "instances: received shape (1); allowed: (N, 8, 12, 3)"),
    "empty": ({"instances": []}, "instances: received 0 images; allowed: 1 to 6"),
    "float": ({"inputs": (GOOD / 255).tolist()}, f"inputs: received 0.0; {PIXELS}"),
    "neither": ({"examples": []}, "body: received neither instances nor inputs; allowed: one of the two"),
    "both": ({"instances": [], "inputs": []}, "body: received instances and inputs; allowed: one of the two"),
    "signature": ({"signature_name": "serve", "instances": []}, "signature_name: received 'serve'; allowed: serving_default, serv"),
    "input": ({"instances": [{"picture": 1}]}, "instances: received ['picture']; allowed: images, or b64"),
    "mixed": ({"instances": [{"b64": ""}, 3]}, "instances: received 3 beside files; allowed: an object with b64, a text, for each"),
    "b64": ({"instances": [{"b64": 3}]}, "allowed: an object with b64, a text, for each"),
    "surrogate": ({"instances": [{"\ud800": 3}]}, r"instances: received ['\ud800']; allowed: images, or b64"),
    "html": ({"instances": [{"<b>\n": 3}]}, r"instances: received ['<b>\n']; allowed: images, or b64"),
}


@pytest.mark.filterwarnings("ignore:Image size")  # as the server does
@pytest.mark.parametrize(("request_", "message"), REQUESTS.values(), ids=REQUESTS)
def test_open_inference(client, request_, message):
    refused(client, client.post(V2, content=json.dumps(request_), headers={"Content-Type": "application/json"}), 400, message)


@pytest.mark.parametrize(("request_", "message"), INSTANCES.values(), ids=INSTANCES)
def test_tensorflow_serving(client, request_, message):
    refused(client, client.post(V1, content=json.dumps(request_)), 400, message)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "body: received no JSON (Expecting value"),
        (b"{", "body: received no JSON (Expecting property name"),
        (b"\xff\xfe{", "body: received no JSON ("),
        (b"[1]", "body: received [1]; allowed: a JSON object"),
        (b'{"instances": [NaN]}', "body: received no JSON (NaN is no number)"),
        (b'{"instances": [' + b"9" * 5000 + b"]}", "body: received no JSON (Exceeds the limit"),
        (b"[" * 1500, "body: received no JSON (maximum recursion depth"),
        (b'{"a":[' + b"[]," * 30_000, "body: received more than 1,636 lists and objects; allowed: those of 6 images"),
    ],
    ids=["nothing", "cut", "no UTF-8", "list", "NaN", "long number", "deep", "many lists"],
)
def test_bad_json(client, content, message):
    refused(client, client.post(V1, content=content), 400, message)


def test_bodies_and_their_kinds(client):
    def stream():
        for _ in range(40):
            yield b" " * 2**16

    too_large = client.post(V2, content=b"{}", headers={"Content-Length": str(2**30)})
    refused(client, too_large, 413, "body: received 1,073,741,824 bytes; allowed: 1,048,576")
    assert too_large.headers["connection"] == "close"
    refused(client, client.post(V1, content=stream()), 413, "body: received more than 1,048,576 bytes; allowed: 1,048,576")
    for kind in ("text/plain", "multipart/form-data"):
        response = client.post(V1, content=b"{}", headers={"Content-Type": kind})
        refused(client, response, 415, f"content-type: received '{kind}'; allowed: application/json")
    zipped = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
    refused(client, client.post(V2, content=b"{}", headers=zipped), 415, "content-encoding: received 'gzip'; allowed: none")
    for length in ("x", "-1", "99999", "9" * 30):
        headers = {"Inference-Header-Content-Length": length, "Content-Type": "application/octet-stream"}
        refused(client, client.post(V2, content=b"{}", headers=headers), 400, "allowed: 0 to 2, the bytes of the body")


def test_bytes_that_are_no_tensor(client):
    def ask(datatype, shape, binary):
        request = tensor(datatype, shape, parameters={"binary_data_size": len(binary)})
        del request["inputs"][0]["data"]
        text = json.dumps(request).encode()
        return client.post(V2, content=text + binary, headers={"Inference-Header-Content-Length": str(len(text))})

    refused(client, ask("UINT8", [1, 8, 12, 3], b"123"), 400, "binary_data_size: received 3; allowed: 288, as inputs.shape")
    for binary in (b"", b"\xff\xff\xff\xff", b"\x01\x00\x00\x00ab", b"\x00\x00"):
        message = "inputs: received bytes that are not 1 files; allowed: each after its length, 4 bytes"
        refused(client, ask("BYTES", [1], binary), 400, message)


@pytest.mark.parametrize(
    ("method", "path", "status", "message"),
    [
        (
            "GET",
            "/",
            404,
            "path: received '/'; allowed: /v1/models/pets, /v2/models/pets, /health, /metrics and what is below them",
        ),
        ("GET", "/docs", 404, "path: received '/docs'"),
        ("GET", "/v2/models/dogs", 404, "model: received 'dogs'; allowed: pets"),
        ("POST", "/v1/models/dogs:predict", 404, "model: received 'dogs'; allowed: pets"),
        ("GET", "/v2/models/%3Cb%3E%0A", 404, r"model: received '<b>\n'; allowed: pets"),
        ("GET", "/v1/models/pets/versions/2", 404, "version: received '2'; allowed: 1"),
        ("POST", "/v1/models/pets:classify", 405, "method: received POST; allowed: GET"),
        ("DELETE", "/v2/models/pets/infer", 405, "method: received DELETE; allowed: POST"),
    ],
)
def test_paths(client, method, path, status, message):
    refused(client, client.request(method, path), status, message)
