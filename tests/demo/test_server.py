"""The served page: many visitors, bounded requests, no other file, no trace."""

import base64
import concurrent.futures
import importlib.util
import io
import json
import signal
import socket
import sys
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from helpers import error_line, start, wait_for
from PIL import Image

pytest.importorskip("gradio")

from keras_vit.cli import demo
from keras_vit.demo.page import GONE, HINT, answers, lines
from keras_vit.demo.server import API, MAX_BODY, MAX_UPLOAD, bound, refusal, workspace

CLOSE = 1e-6
REFUSED = (None, "picture: received another file; allowed: an uploaded one")  # Gradio's own check has no words


def post(address, content, kind="application/json"):
    """Status and text of a POST."""
    request = urllib.request.Request(address, content, {"content-type": kind})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def upload(address, content, name="picture.png"):
    """The path of an uploaded file."""
    head = f'--x\r\ncontent-disposition: form-data; name="files"; filename="{name}"\r\ncontent-type: image/png\r\n\r\n'
    status, text = post(f"{address}{API}/upload", head.encode() + content + b"\r\n--x--\r\n", "multipart/form-data; boundary=x")
    assert status == 200, text
    return json.loads(text)[0]


def classify(address, path, method="attention", block=-1, explained=""):
    """What the page answers: a list of the fields' values, or the text of an error."""
    file = path if path is None else {"path": path, "meta": {"_type": "gradio.FileData"}}
    status, text = post(f"{address}{API}/call/classify", json.dumps({"data": [file, method, block, explained]}).encode())
    assert status == 200, text
    with urllib.request.urlopen(f"{address}{API}/call/classify/{json.loads(text)['event_id']}", timeout=60) as answer:
        event, data = answer.read().decode().strip().split("\n")[-2:]
    data = json.loads(data.removeprefix("data: "))
    return data if event == "event: complete" else data["error"] if isinstance(data, dict) else data


def is_there(port):
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def png(seed):
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(out, "PNG")
    return out.getvalue()


def test_twenty_visitors_at_once(served, viewer, tmp_path):
    address, _ = served
    pictures = [png(seed) for seed in range(20)]
    with concurrent.futures.ThreadPoolExecutor(20) as pool:
        found = list(pool.map(lambda content: classify(address, upload(address, content)), pictures))
    for seed, (content, (message, classes, seen, took, *second)) in enumerate(zip(pictures, found, strict=True)):
        file = tmp_path / f"{seed}.png"
        file.write_bytes(content)
        wanted = viewer.answer(file)
        assert message == ""
        assert [each["label"] for each in classes["confidences"]] == [*wanted.classes]
        values = [each["confidence"] for each in classes["confidences"]]
        np.testing.assert_allclose(values, [*wanted.classes.values()], rtol=0, atol=CLOSE)
        with urllib.request.urlopen(f"{address}{API}/file={seen['path']}") as answer:
            np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(answer.read()))), wanted.picture)
        assert "ms for the classes" in took
        assert len(second) == 3


def test_what_is_no_picture_has_a_message_and_the_server_goes_on(served, files):
    address, _ = served
    for name, part in (
        ("corrupt.png", "cannot be read as a picture"),
        ("huge.png", "received 10000x10000 pixels; allowed: 89,478,485"),
        ("text.png", "cannot identify image file"),
        ("empty.png", "the file is empty"),
    ):
        message, *rest = classify(address, upload(address, files[name].read_bytes(), name))
        assert message.startswith('<p class="problem"')
        assert part in message
        assert rest[0] in (None, {})
        assert rest[1] is None
    assert classify(address, None)[0] == lines([HINT])
    message, _, _, took, *_ = classify(address, upload(address, files["thin.png"].read_bytes()))
    assert message == ""
    assert "1 × 20,000 pixels" in took


def test_no_other_file_and_no_other_address_is_read(served, files, run):
    address, folder = served
    picture = upload(address, png(0))
    data = f"data:image/png;base64,{base64.b64encode(png(1)).decode()}"
    for path in (str(files["good.png"]), "/etc/passwd", f"{folder}/../x", "http://127.0.0.1:1/a.png", data):
        assert classify(address, path) in REFUSED, path
    for path in (files["good.png"], "/etc/passwd", run.recipe_path):
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(f"{address}{API}/file={path}")
        with caught.value as error:
            assert error.code in (403, 404)
    Path(picture).unlink()
    assert classify(address, picture) == GONE


@pytest.mark.parametrize(("name", "value"), [("method", "nonsense"), ("block", 99), ("explained", "no class")])
def test_choices_are_those_of_the_page(served, name, value):
    address, _ = served
    assert "not in the list of choices" in classify(address, upload(address, png(0)), **{name: value})


def test_requests_are_bounded(served):
    address, folder = served
    before = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
    for path, most in (("/upload", MAX_UPLOAD), ("/queue/join", MAX_BODY)):
        with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])), 10) as client:
            client.sendall(f"POST {API}{path} HTTP/1.1\r\nhost: x\r\ncontent-length: {10**9}\r\n\r\n".encode())
            answer = client.recv(4096).decode()
        assert " 413 " in answer.split("\r\n")[0]
        assert f"received {10**9} bytes; allowed: " in answer
        assert most < 10**8
    assert sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file()) == before
    assert post(f"{address}{API}/process_recording", b"{}") == (404, "no such page")
    assert post(f"{address}{API}/queue/join", b"not json")[0] in (400, 422)
    assert classify(address, upload(address, png(0)))[0] == ""


@pytest.mark.parametrize(
    ("method", "path", "headers", "code"),
    [
        ("GET", "/", [], 0),
        ("GET", f"{API}/file=/a", [], 0),
        ("GET", f"{API}/proxy=http://example.com", [], 404),
        ("GET", "/docs", [], 404),
        ("DELETE", "/", [], 404),
        ("POST", f"{API}/queue/join", [], 411),
        ("POST", f"{API}/queue/join", [(b"content-length", b"-1")], 411),
        ("POST", f"{API}/queue/join", [(b"content-length", str(MAX_BODY).encode())], 0),
        ("POST", f"{API}/queue/join", [(b"content-length", str(MAX_BODY + 1).encode())], 413),
        ("POST", f"{API}/upload", [(b"content-length", str(MAX_UPLOAD).encode())], 0),
        ("POST", f"{API}/vibe-edit", [(b"content-length", b"1")], 404),
    ],
)
def test_refusals(method, path, headers, code):
    assert refusal({"path": path, "method": method, "headers": headers})[0] == code


def test_the_page_may_load_nothing_from_elsewhere_and_names_are_text(served):
    address, _ = served
    with urllib.request.urlopen(address) as answer:
        text, policy = answer.read().decode(), answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'self'")
    assert "http" not in policy
    assert "<i>title</i>" not in text
    assert "<b>second" not in text
    assert "<img src=x" not in text


def test_messages_are_escaped(viewer, tmp_path):
    path = tmp_path / "<b>x.png"
    path.write_text("text")
    message, *_ = answers([viewer], str(path), "attention", -1, "")
    assert "&lt;b&gt;x.png" in message
    assert "<b>" not in message


def test_a_port_in_use_and_a_wrong_host(capsys, run):
    with bound("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        line = error_line(capsys, demo.main, [str(run.path), "--port", str(port)])
    assert line == f"--port: received {port}, which is in use; allowed: another port, or 0 for a free one"
    for host in ("203.0.113.1", "no host"):
        line = error_line(capsys, demo.main, [str(run.path), "--host", host])
        assert line == f"--host: received {host!r}; allowed: an address of this machine, such as 127.0.0.1"


def test_wrong_options(capsys, run, tmp_path):
    assert error_line(capsys, demo.main, [str(tmp_path)]).endswith("which has no recipe.yaml; allowed: a run folder")
    assert error_line(capsys, demo.main, [str(run.path)] * 4) == "RUN: received 4; allowed: 1 to 3"
    assert error_line(capsys, demo.main, [str(run.path), "--port", "70000"]).startswith("--port: received 70000; allowed: ")


def test_without_gradio(capsys, run, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("keras_vit.demo")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    line = error_line(capsys, demo.main, [str(run.path)])
    assert line == "demo: needs gradio: pip install 'keras-vision-transformer[demo]'"
    with pytest.raises(SystemExit) as stopped:
        demo.main(["--help"])
    assert stopped.value.code == 0


def test_the_folder_of_uploads_is_deleted():
    with workspace() as folder:
        (Path(folder) / "upload").mkdir()
        (Path(folder) / "upload" / "a.png").touch()
    assert not Path(folder).exists()


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_command_in_silence(run, tmp_path, number, code):
    log = tmp_path / "log"
    process = start("-m", "keras_vit.cli", "demo", run.path, "--port", 0, log=log)
    try:
        wait_for(lambda: "http://" in log.read_text(), process)
        address = next(word for word in log.read_text().split() if word.startswith("http://"))
        assert classify(address, upload(address, png(0)))[0] == ""
        with urllib.request.urlopen(f"{address}{API}/heartbeat/x"):  # a visitor whose page is open
            process.send_signal(number)
            assert process.wait(20) == code
    finally:
        process.kill()
        process.wait()
    printed = log.read_text().splitlines()
    assert [line.partition(":")[0] for line in printed] == ["no examples", "http"], printed
