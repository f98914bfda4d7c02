"""Pictures that are made to harm: formats that are not meant, bombs, and many large ones at a time."""

import io
import logging
import shutil
import subprocess
import sys
import threading
import time
import zlib

import numpy as np
import pytest
from helpers import one_line_error, random_pixels
from PIL import Image, UnidentifiedImageError

from keras_vit.data import decode
from keras_vit.data.decode import DECODED, MAX_PIXELS, Room, inspect_image, parallel, read_crop, read_image
from keras_vit.runs.prediction import Classifier, predict_files

POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n(/tmp/x) (w) file\nshowpage\n%%EOF\n"


def chunk(kind, content):
    return len(content).to_bytes(4) + kind + content + zlib.crc32(kind + content).to_bytes(4)


def png(width, height):
    """A grey PNG of zeros: 1 bit a pixel, a few kilobytes for millions of pixels."""
    head = width.to_bytes(4) + height.to_bytes(4) + b"\x01\x00\x00\x00\x00"
    rows = zlib.compress(bytes((1 + (width + 7) // 8) * height), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def readers(path):
    yield lambda: read_image(path, (8, 8, 3))
    yield lambda: read_crop(path, (8, 8, 1), (0, 0, 1, 1))
    yield lambda: inspect_image(path)


@pytest.mark.parametrize("content", [POSTSCRIPT, b"%PDF-1.4\n", b"<svg/>", b"BM"], ids=["eps", "pdf", "svg", "bmp"])
def test_formats_that_are_not_meant_reach_no_other_program(tmp_path, content, monkeypatch):
    if shutil.which("gs"):
        monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *a, **k: pytest.fail("Ghostscript was started"))
    for suffix in (".jpg", ".png"):
        path = tmp_path / f"a{suffix}"
        path.write_bytes(content)
        for read in readers(path):
            with pytest.raises((UnidentifiedImageError, OSError, SyntaxError)):
                read()
    seen = Classifier((8, 8, 3), ["a", "b"], lambda images: np.zeros((len(images), 2)))
    with one_line_error("^path: 1 of 1 files could not be read"):
        [*predict_files(seen, [path], notes=[])]


def test_every_opening_names_its_formats(tmp_path, monkeypatch):
    """None of Pillow's other formats is even tried."""
    asked = []
    opened = Image.open
    monkeypatch.setattr(Image, "open", lambda *args, **more: asked.append(more) or opened(*args, **more))
    Image.fromarray(random_pixels(8, 8, 3)).save(tmp_path / "a.png")
    for read in readers(tmp_path / "a.png"):
        read()
    read_image(tmp_path / "a.png", (8, 8, 4))
    assert len(asked) == 4
    for more in asked:
        assert set(more["formats"]) <= set(decode.FORMATS)


def test_a_broken_file_leaves_nothing_on_stderr(capsys, monkeypatch):
    """Pillow logs a line for a TIFF file of nine samples a pixel."""
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # pytest's, without which Python writes to stderr
    out = io.BytesIO()
    Image.fromarray(random_pixels(9, 7, 3)).save(out, "TIFF")
    content = out.getvalue()
    assert content.count(b"\x15\x01\x03\0\x01\0\0\0\x03") == 1  # tag 277, a short: 3
    content = content.replace(b"\x15\x01\x03\0\x01\0\0\0\x03", b"\x15\x01\x03\0\x01\0\0\0\x09")
    with pytest.raises(UnidentifiedImageError, match="cannot identify"):
        inspect_image(io.BytesIO(content))
    assert capsys.readouterr().err == ""


@pytest.mark.filterwarnings("ignore:Image size")
def test_a_bomb_is_refused_by_its_header(tmp_path):
    (tmp_path / "a.png").write_bytes(png(30_000, 3_000))
    began = time.monotonic()
    for read in readers(tmp_path / "a.png"):
        with one_line_error(r"^image: received 30000x3000 pixels; allowed: 89,478,485$"):
            read()
    assert time.monotonic() - began < 5


def test_large_pictures_are_decoded_one_after_the_other(monkeypatch):
    """Eight of 20 million pixels where 30 million may be decoded at a time; small ones go side by side."""
    room, most, lock = Room(30_000_000), [0], threading.Lock()
    monkeypatch.setattr(decode, "DECODED", room)
    now = [0]
    fit = decode.fit

    def counting(image, *arguments):
        with lock:
            now[0] += image.width * image.height
            most[0] = max(most[0], now[0])
        try:
            time.sleep(0.01)
            return fit(image, *arguments)
        finally:
            with lock:
                now[0] -= image.width * image.height

    monkeypatch.setattr(decode, "fit", counting)
    for content, largest in ((png(5000, 4000), 20_000_000), (png(3000, 2000), 30_000_000)):
        most[0] = 0
        found = parallel(lambda content: read_image(io.BytesIO(content), (4, 4, 1)), [content] * 8)
        assert (np.stack(found) == 0).all()
        assert 0 < most[0] <= largest
        assert room.free == room.most


@pytest.mark.slow
def test_the_memory_of_many_large_pictures_is_that_of_one(tmp_path):
    """Eight threads, eight PNGs of 88 million pixels: 0.35 GB as RGB, of which a thread would keep its own."""
    pytest.importorskip("resource")
    (tmp_path / "a.png").write_bytes(png(9400, 9400))
    script = f"""
import os, resource
os.cpu_count = lambda: 8
from keras_vit.data.decode import parallel, read_image
from keras_vit.machine import tune
tune()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
parallel(lambda path: read_image(path, (8, 8, 3)), [{str(tmp_path / "a.png")!r}] * 8)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    output = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, check=True).stdout
    assert int(output) / 1024 < 800


def test_room_is_given_back_and_one_that_is_too_large_has_all():
    room, order = Room(10), []
    with pytest.raises(KeyError), room.taken(4):
        raise KeyError
    assert room.free == 10
    with room.taken(99):
        assert room.free == 0
        thread = threading.Thread(target=lambda: [order.append(each) for each in [1] if room.taken(1).__enter__() is None])
        thread.start()
        thread.join(0.2)
        assert thread.is_alive()
        assert not order
    thread.join(5)
    assert order == [1]


def test_what_takes_copies_counts_for_more(tmp_path, monkeypatch):
    needs = []
    monkeypatch.setattr(DECODED, "taken", lambda need: needs.append(need) or Room(1).taken(0))
    pixels = random_pixels(10, 20, 4)
    for name, image in (
        ("a.png", Image.fromarray(pixels[..., :3])),
        ("b.png", Image.fromarray(pixels)),
        ("c.png", Image.fromarray(pixels[..., 0].astype(np.uint16))),
        ("d.webp", Image.fromarray(pixels[..., :3])),
        ("e.jpg", Image.fromarray(np.tile(pixels[..., :3], (16, 16, 1)))),
    ):
        image.save(tmp_path / name)
        read_image(tmp_path / name, (10, 20, 3))
    assert needs == [200, 800, 800, 800, 200 * 16]  # a JPEG is decoded at a quarter of each side
    assert MAX_PIXELS == DECODED.most == 89_478_485
