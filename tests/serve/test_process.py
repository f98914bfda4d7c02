"""`keras-vit serve` as a process: many clients at once, clients that hang up, signals, and what cannot be served."""

import concurrent.futures
import json
import re
import shutil
import signal
import socket
import struct
import subprocess
import threading
import time
import urllib.error
import urllib.request

import keras
import numpy as np
import pytest
from helpers import ROOT, error_line, start, wait_for
from PIL import Image

import keras_vit
from keras_vit.cli import serve as command
from keras_vit.serve.limits import Limits

pytest.importorskip("fastapi")

EXACT = 1e-6


@pytest.fixture(scope="module")
def server(run, tmp_path_factory):
    """A running server, its log, and its address."""
    log = tmp_path_factory.mktemp("log") / "log"
    process = start("-m", "keras_vit.cli", "serve", run.path, "--port", 0, log=log)
    try:
        found = wait_for(lambda: re.search(r" at (http://127\.0\.0\.1:\d+); Ctrl-C ends it", log.read_text()), process)
        yield process, log, found[1]
    finally:
        process.kill()
        process.wait()


def post(address, content):
    request = urllib.request.Request(f"{address}/v1/models/my-run:predict", content.encode())
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, json.loads(response.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def raw(address, data):
    """An open connection that has sent some bytes."""
    opened = socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])))
    opened.sendall(data)
    return opened


def reset(connection):
    """Ends a connection at once, as a process that is killed does."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def test_commands_of_the_guide(server, tmp_path):
    """Every curl command of docs/guides/serve.md, as it stands there but for the port and the name."""
    if not shutil.which("curl") or not shutil.which("base64"):
        pytest.skip("needs curl and base64")
    _, _, address = server
    guide = (ROOT / "docs" / "guides" / "serve.md").read_text(encoding="utf-8")
    commands = re.findall(r"<!-- tested -->\n```sh\n(.*?)```", guide, re.DOTALL)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 20, 3), dtype=np.uint8)).save(tmp_path / "photo.jpg")
    answers = []
    for lines in commands:
        script = lines.replace("http://127.0.0.1:8000", address).replace("NAME", "my-run")
        done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr) == (0, ""), lines
        answers.append(done.stdout)
    predicted, status, metadata, inferred, health, ready, metrics = answers
    outputs = {output["name"]: output["data"] for output in json.loads(inferred)["outputs"]}
    (row,) = json.loads(predicted)["predictions"]
    assert row["labels"][0] == outputs["labels"][0]
    assert sorted(row["probabilities"]) == sorted(outputs["probabilities"])
    assert json.loads(status)["model_version_status"][0]["state"] == "AVAILABLE"
    assert json.loads(metadata)["model_spec"]["name"] == "my-run"
    assert (json.loads(health), json.loads(ready)) == ({"status": "ok"}, {"ready": True})
    named = {name for name in re.findall(r"`(keras_vit_\w+)`", guide)}
    assert len(named) == 5
    assert all(name in metrics for name in named)


def test_eight_clients_others_that_hang_up_and_sigterm(server, run):
    process, log, address = server
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 12, 3), dtype=np.uint8)
    wanted = keras_vit.predict(run.model(), images, top=3, **run.known)
    head = b"POST /v1/models/my-run:predict HTTP/1.1\r\nHost: x\r\nContent-Length: 999999\r\n\r\n"
    leaving = threading.Event()

    def hang_up():
        content = json.dumps({"instances": images.tolist()}).encode()
        whole = head.replace(b"999999", b"%d" % len(content)) + content
        for _ in range(20):
            for data in (b"POST /v1", head, head + b'{"instances": [', whole):  # the last one before its answer
                reset(raw(address, data))
            if leaving.wait(0.02):
                break

    def ask(index):
        status, content = post(address, json.dumps({"instances": images[index : index + 1].tolist()}))
        assert status == 200
        (row,) = content["predictions"]
        assert row["labels"] == wanted[index].classes
        np.testing.assert_allclose(row["probabilities"], wanted[index].probabilities, atol=EXACT)

    others = threading.Thread(target=hang_up)
    others.start()
    try:
        with concurrent.futures.ThreadPoolExecutor(8) as clients:
            list(clients.map(ask, range(40)))
    finally:
        leaving.set()
        others.join()
    with raw(address, b"POST / HTTP/1.1\r\nno header\r\n\r\n") as broken:
        assert broken.recv(100).startswith(b"HTTP/1.1 400")
    ask(0)
    # Half of a request is there when the signal comes: it is answered first.
    content = json.dumps({"instances": images[:1].tolist()}).encode()
    with raw(address, head.replace(b"999999", b"%d" % len(content)) + content[:100]) as open_one:
        time.sleep(0.3)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        assert process.poll() is None
        open_one.sendall(content[100:])
        assert open_one.recv(1000).startswith(b"HTTP/1.1 200")
        assert process.wait(30) == 0
    with pytest.raises(ConnectionRefusedError):
        raw(address, b"")
    lines = log.read_text().splitlines()
    assert lines[0] == f"my-run (keras_{keras.backend.backend()}) at {address}; Ctrl-C ends it"
    assert lines[-1] == "ended"
    assert {*lines[1:-1]} <= {"WARNING:  Invalid HTTP request received."}


def test_what_cannot_be_served(run, tmp_path, capsys, monkeypatch):
    def fails(*options):
        return error_line(capsys, command.main, [str(option) for option in options])

    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        allowed = "allowed: an address of this machine with a free port"
        assert fails(run.path, "--port", port) == f"--port: received {port} (Address already in use); {allowed}"
    assert fails(run.path, "--host", "192.0.2.1").startswith("--host: received '192.0.2.1' (")
    assert fails(run.path, "--host", "no such host") == (
        "--host: received 'no such host'; allowed: an address or name of this machine"
    )
    assert fails(run.path, "--port", 70_000) == "--port: received 70000; allowed: an integer from 0 to 65535"
    assert fails(run.path, "--max-batch", 0) == "max_batch: received 0; allowed: an integer of at least 1"
    assert fails(run.path, "--max-queue", 9) == "max_queue: received 9; allowed: at least 256, that of max_images"
    assert fails(run.path, "--name", "a/b") == "--name: received 'a/b'; allowed: letters, digits, -, _ and ."
    assert fails(run.path, "--port", 0, "--multi-label") == "--multi-label: received true; allowed with a run, which knows it: none"
    assert "which is no folder; allowed: a run folder" in fails(tmp_path / "none", "--port", 0)
    (tmp_path / "recipe.yaml").write_bytes(run.recipe_path.read_bytes())
    assert "which has no best.keras; allowed: a run with a validated epoch" in fails(tmp_path, "--port", 0)
    monkeypatch.setattr(command, "PACKAGES", ("fastapi", "no_such_package"))
    assert fails(run.path) == "serve: needs no_such_package: pip install 'keras-vision-transformer[serve]'"


def test_names_of_models(tmp_path):
    from keras_vit.serve.server import name_of

    (tmp_path / "export").mkdir()
    names = {"export": "export", "a b": "a-b", "export/onnx": tmp_path.name, "x.keras": "x", "best.keras": tmp_path.name, "é": "-"}
    names["export/onnx/model.onnx"] = tmp_path.name
    for path, name in names.items():
        assert name_of(tmp_path / path) == name
    assert Limits().bytes_of_body == 32 * 2**20
