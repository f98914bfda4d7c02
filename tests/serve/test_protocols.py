"""Both protocols: the same probabilities as `keras_vit.predict`, in every form that images and answers have."""

import base64
import io
import json
import struct

import numpy as np
import pytest
from PIL import Image

import keras_vit

pytest.importorskip("fastapi")

EXACT = 1e-6
SHOWN = ["<script>alert(1)</script>", 'a, "b"; c', r"line\nbreak"]
V1, V2 = "/v1/models/pets", "/v2/models/pets"


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (5, 8, 12, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Pictures of several sizes and formats."""
    folder, files = tmp_path_factory.mktemp("files"), []
    for index, suffix in enumerate(("png", "jpg", "webp")):
        path = folder / f"{index}.{suffix}"
        Image.fromarray(np.random.default_rng(index).integers(0, 256, (40 + index, 30, 3), dtype=np.uint8)).save(path)
        files.append(path)
    return files


def wanted(run, images):
    """Probabilities (N, K) in the order of the classes, by `keras_vit.predict`."""
    found = keras_vit.predict(run.model(), images, top=3, **run.known)
    rows = [dict(zip(each.classes, each.probabilities, strict=True)) for each in found]
    return np.array([[row[name] for name in SHOWN] for row in rows])


def encoded(files):
    return [base64.b64encode(file.read_bytes()).decode() for file in files]


def outputs(response):
    """The tensors of an answer of version 2 as arrays and lists."""
    assert response.status_code == 200, response.text
    length = response.headers.get("Inference-Header-Content-Length")
    text, rest = (response.content, b"") if length is None else (response.content[: int(length)], response.content[int(length) :])
    content, values = json.loads(text), {}
    assert (content["model_name"], content["model_version"]) == ("pets", "1")
    for output in content["outputs"]:
        if "data" in output:
            value = output["data"]
        else:
            size = output["parameters"]["binary_data_size"]
            value, rest = rest[:size], rest[size:]
            value = np.frombuffer(value, "<f4") if output["datatype"] == "FP32" else texts(value)
        values[output["name"]] = np.array(value).reshape(output["shape"]) if output["datatype"] == "FP32" else value
    assert rest == b""
    return values


def texts(binary):
    found = []
    while binary:
        (length,) = struct.unpack("<I", binary[:4])
        found.append(binary[4 : 4 + length].decode())
        binary = binary[4 + length :]
    return found


def infer(client, datatype, shape, data, **more):
    tensor = {"name": "images", "datatype": datatype, "shape": shape, "data": data}
    return client.post(f"{V2}/infer", json={"inputs": [tensor], **more})


@pytest.mark.backend
def test_pixels_and_files_in_both_protocols(client, run, images, files):
    expected = wanted(run, images)
    found = outputs(infer(client, "UINT8", [5, 8, 12, 3], images.ravel().tolist(), id="a"))
    np.testing.assert_allclose(found["probabilities"], expected, atol=EXACT)
    assert found["labels"] == [SHOWN[label] for label in expected.argmax(1)]
    assert found["class_names"] == SHOWN
    answer = client.post(f"{V1}:predict", json={"instances": images.tolist()})
    for row, values in zip(answer.json()["predictions"], expected, strict=True):
        assert row["labels"] == [SHOWN[label] for label in np.argsort(-values)]
        np.testing.assert_allclose(row["probabilities"], np.sort(values)[::-1], atol=EXACT)
    expected = wanted(run, files)
    found = outputs(infer(client, "BYTES", [3], encoded(files)))
    np.testing.assert_allclose(found["probabilities"], expected, atol=EXACT)
    answer = client.post(f"{V1}:predict", json={"instances": [{"b64": text} for text in encoded(files)]})
    assert [row["labels"][0] for row in answer.json()["predictions"]] == found["labels"]


def test_forms_of_tensorflow_serving(client, images, files):
    """Rows and columns, named and unnamed inputs, both signatures: the same numbers."""

    def ask(**request):
        response = client.post(
            f"{V1}/versions/1:predict", content=json.dumps(request), headers={"Content-Type": "application/json"}
        )
        assert response.status_code == 200, response.text
        return response.json()

    rows = ask(instances=images.tolist())["predictions"]
    column = {"labels": [row["labels"] for row in rows], "probabilities": [row["probabilities"] for row in rows]}
    assert ask(inputs=images.tolist()) == {"outputs": column}
    assert ask(inputs={"images": images.tolist()}, signature_name="serving_default") == {"outputs": column}
    assert ask(instances=[{"images": image} for image in images.tolist()])["predictions"] == rows
    b64 = [{"b64": text} for text in encoded(files)]
    rows = ask(instances=b64, signature_name="serving_bytes")["predictions"]
    assert ask(instances=[{"images": text} for text in b64])["predictions"] == rows
    assert ask(inputs={"images": b64})["outputs"]["labels"] == [row["labels"] for row in rows]
    assert ask(inputs=b64[0])["outputs"]["labels"] == [rows[0]["labels"]]


def test_curl_without_a_content_type(client, images):
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    content = json.dumps({"instances": images.tolist()})
    assert client.post(f"{V1}:predict", content=content, headers=form).status_code == 200
    assert client.post(f"{V1}:predict", content=content).status_code == 200  # none at all


def test_tensors_as_bytes(client, images, files):
    plain = outputs(infer(client, "UINT8", [5, 8, 12, 3], images.tolist()))  # nested lists, too

    def ask(datatype, shape, binary, **request):
        tensor = {"name": "images", "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": len(binary)}}
        text = json.dumps({"inputs": [tensor], **request}).encode()
        headers = {"Inference-Header-Content-Length": str(len(text)), "Content-Type": "application/octet-stream"}
        return outputs(client.post(f"{V2}/versions/1/infer", content=text + binary, headers=headers))

    found = ask("UINT8", [5, 8, 12, 3], images.tobytes(), parameters={"binary_data_output": True})
    np.testing.assert_array_equal(found["probabilities"], plain["probabilities"].astype("f4"))
    assert (found["labels"], found["class_names"]) == (plain["labels"], SHOWN)
    wanted = [{"name": "labels", "parameters": {"binary_data": True}}, {"name": "probabilities"}]
    found = ask("UINT8", [5, 8, 12, 3], images.tobytes(), outputs=wanted)
    assert list(found) == ["labels", "probabilities"]
    assert found["labels"] == plain["labels"]
    binary = b"".join(struct.pack("<I", len(data)) + data for data in (file.read_bytes() for file in files))
    found = ask("BYTES", [3, 1], binary)
    np.testing.assert_array_equal(
        found["probabilities"], outputs(infer(client, "BYTES", [3, 1], [[text] for text in encoded(files)]))["probabilities"]
    )


def test_what_the_server_says_of_itself(client):
    assert client.get("/v2").json()["extensions"] == ["binary_tensor_data"]
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"ready": True}
    assert client.get("/health").json() == {"status": "ok"}
    assert client.get(f"{V2}/versions/1/ready").json() == {"name": "pets", "ready": True}
    model = client.get(V2).json()
    assert model["inputs"] == [{"name": "images", "datatype": "UINT8", "shape": [-1, 8, 12, 3]}]
    assert model["outputs"] == [
        {"name": "probabilities", "datatype": "FP32", "shape": [-1, 3]},
        {"name": "labels", "datatype": "BYTES", "shape": [-1]},
        {"name": "class_names", "datatype": "BYTES", "shape": [3]},
    ]
    assert client.get(V1).json()["model_version_status"][0]["state"] == "AVAILABLE"
    signatures = client.get(f"{V1}/metadata").json()["metadata"]["signature_def"]["signature_def"]
    dims = signatures["serving_default"]["inputs"]["images"]["tensor_shape"]["dim"]
    assert [side["size"] for side in dims] == ["-1", "8", "12", "3"]
    assert set(signatures["serving_bytes"]["outputs"]) == {"labels", "probabilities"}


def test_metrics(client, images):
    prometheus = pytest.importorskip("prometheus_client.parser")

    def read():
        text = client.get("/metrics").text
        return {
            (sample.name, sample.labels.get("protocol"), sample.labels.get("status")): sample.value
            for family in prometheus.text_string_to_metric_families(text)
            for sample in family.samples
            if "le" not in sample.labels
        }

    before = read()
    infer(client, "UINT8", [5, 8, 12, 3], images.tolist())
    infer(client, "UINT8", [5, 8, 12], [])
    after = read()

    def more(*key):
        return after[key] - before.get(key, 0)

    assert more("keras_vit_requests_total", "open_inference", "200") == 1
    assert more("keras_vit_requests_total", "open_inference", "400") == 1
    assert more("keras_vit_request_seconds_count", "open_inference", None) == 2
    assert more("keras_vit_batch_images_sum", None, None) == 5
    assert more("keras_vit_batch_images_count", None, None) == 2  # of 4 and 1: the largest batch has 4
    assert after["keras_vit_queued_images", None, None] == 0


def test_a_picture_is_read_as_in_training(client, run, tmp_path):
    """Turned upright by its EXIF orientation, and on white where it is transparent."""
    pixels = np.random.default_rng(1).integers(0, 256, (24, 16, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", exif=exif, quality=95)
    (tmp_path / "turned.jpg").write_bytes(out.getvalue())
    clear = np.concatenate([pixels, pixels[..., :1]], axis=-1)
    Image.fromarray(clear).save(tmp_path / "clear.png")
    files = [tmp_path / "turned.jpg", tmp_path / "clear.png"]
    found = outputs(infer(client, "BYTES", [2], encoded(files)))
    np.testing.assert_allclose(found["probabilities"], wanted(run, files), atol=EXACT)
