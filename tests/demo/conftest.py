"""A run with random weights and a served page of it, in this process."""

import dataclasses
import functools
import threading
from pathlib import Path

import numpy as np
import pytest
from demo.made import make_run
from helpers import wait_for
from PIL import Image


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    import keras

    keras.utils.set_random_seed(0)
    return make_run(tmp_path_factory.mktemp("runs") / "first", data="folder:/no/such/folder")


@pytest.fixture(scope="session")
def viewer(run):
    from keras_vit.demo.answers import Viewer

    return Viewer.of_run(run)


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """A picture, and what is none, by name."""
    folder = tmp_path_factory.mktemp("files")
    pixels = np.random.default_rng(0).integers(0, 256, (30, 25, 3), dtype=np.uint8)
    found = {
        name: folder / name for name in ("good.png", "corrupt.png", "huge.png", "text.png", "empty.png", "thin.png", "words.txt")
    }
    Image.fromarray(pixels).save(found["good.png"])
    found["corrupt.png"].write_bytes(found["good.png"].read_bytes()[:300])
    Image.new("1", (10_000, 10_000)).save(found["huge.png"])
    found["text.png"].write_text("not a picture")
    found["words.txt"].write_text("not a picture")
    found["empty.png"].touch()
    Image.new("RGB", (1, 20_000), "red").save(found["thin.png"])
    return found


@pytest.fixture(scope="session")
def served(viewer):
    """The address of a page with two viewers, served by a thread of this process, and the folder of its uploads."""
    import uvicorn

    from keras_vit.demo.page import CSS, build
    from keras_vit.demo.server import Server, application, bound, workspace

    second = dataclasses.replace(viewer, name="<b>second</b>", class_names=[*viewer.class_names[:-1], "cat"])
    with workspace() as folder, bound("127.0.0.1", 0) as listening:
        example = Path(folder) / "test-1.png"
        Image.fromarray(np.random.default_rng(1).integers(0, 256, (12, 16, 3), dtype=np.uint8)).save(example)
        page = functools.partial(build, [viewer, second], "A <i>title</i>", [example], ["a note"])
        server = Server(uvicorn.Config(application(page, CSS), log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        wait_for(lambda: server.started, seconds=20)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", folder
        server.should_exit = server.force_exit = True
        thread.join(10)
