import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from keras_vit.runs import plots
from keras_vit.runs.calibration import calibrate

NAMES = ["Straße", "a very long name of a class of images", "猫", "cost in $ and $", "naïve\nlines"]


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def read(path):
    """The picture's pixels, checked to be one: it decodes, is not blank, and nothing else was left beside it."""
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    assert pixels.std() > 5
    assert not list(Path(path).parent.glob(".*"))
    return pixels


def make_rows(epochs=5, seconds=2.0, validated=1):
    return [
        {"epoch": e, "seconds": seconds * e, "epoch_seconds": seconds, "loss": 2 / e, "accuracy": 1 - 1 / (e + 1)}
        | ({"val_loss": 2.2 / e, "val_accuracy": 1 - 1.1 / (e + 1)} if e % validated == 0 else {})
        for e in range(1, epochs + 1)
    ]


@pytest.mark.parametrize("shape", [(5, 12, 20, 3), (5, 20, 12, 1), (70, 8, 8, 3), (1, 8, 8, 4)])
def test_batch_picture_shows_every_pixel(tmp_path, rng, shape):
    images = rng.integers(0, 256, size=shape, dtype=np.uint8)
    targets = np.eye(5)[np.arange(shape[0]) % 5]
    plots.batch_picture(images, targets, NAMES, tmp_path / "new folder" / "batch.png")
    first = read(tmp_path / "new folder" / "batch.png")
    columns = min(8, shape[0])
    assert first.shape[1] > 150 * columns
    assert first.shape[0] > 0.5 * 150 * (min(shape[0], 64) // columns)
    changed = images.copy()
    changed[-1 if shape[0] <= 64 else 63, -1, -1] ^= 128
    plots.batch_picture(changed, targets, NAMES, tmp_path / "changed.png")
    difference = (read(tmp_path / "changed.png") != first).any(axis=2)
    pixel = (1.4 * plots.DPI / max(shape[1:3])) ** 2  # of the image, in pixels of the picture
    assert 0.6 * pixel < difference.sum() < 1.6 * pixel


def test_batch_picture_tells_label_weights(tmp_path, rng):
    images = rng.integers(0, 256, size=(2, 8, 8, 3), dtype=np.uint8)
    pictures = []
    for weight in (1.0, 0.7, 0.6):
        targets = np.array([[weight, 1 - weight, 0, 0, 0], [0, 0, 1, 0, 0]])
        plots.batch_picture(images, targets, NAMES, tmp_path / "batch.png")
        pictures.append(read(tmp_path / "batch.png"))
    assert pictures[0].shape[0] < pictures[1].shape[0]  # a second line of text
    assert (pictures[1] != pictures[2]).any()


@pytest.mark.parametrize(
    ("target", "lines"),
    [
        ([0, 1, 0, 0], ["dog"]),
        ([0.3, 0.7, 0, 0], ["dog 0.70", "cat 0.30"]),
        ([0.025, 0.925, 0.025, 0.025], ["dog 0.93"]),  # label smoothing
        ([0.125, 0.025, 0.025, 0.825], ["ox 0.82", "cat 0.12"]),  # both
        ([0.25, 0.25, 0.25, 0.25], ["cat 0.25"]),
    ],
)
def test_label_lines(target, lines):
    assert plots.label_lines(np.array(target), ["cat", "dog", "bee", "ox"], 20) == lines


def test_label_lines_of_two_classes_name_both_when_mixed():
    assert plots.label_lines(np.array([0.6, 0.4]), ["cat", "dog"], 20) == ["cat 0.60", "dog 0.40"]


def test_class_names_fit_and_can_be_drawn():
    for text in ("a very long name of a class", "猫と犬の写真を集めた", "ß" * 40):
        short = plots.shorten(text, 10)
        assert plots.text_width(short) <= 10
        assert short[0] == text[0]
        assert short[-1] == text[-1]
        assert "…" in short
    assert plots.shorten("cat", 10) == "cat"
    assert plots.class_label(NAMES, 4, 20) == "naïve lines"
    assert plots.class_label(["Stra\u0308sse"], 0, 20) == "Strässe"
    assert plots.class_label(["\U00012000"], 0, 20) == "#0"  # cuneiform: no font here has it
    assert plots.legible("a\U00012000b") == "a?b"


@pytest.mark.parametrize("classes", [2, 5, 30, 300])
def test_confusion(tmp_path, rng, classes):
    matrix = rng.integers(1, 5, size=(classes, classes)) + 20 * np.eye(classes, dtype=int)
    matrix[-1] = 0  # a class without images
    names = (NAMES * 60)[:classes]
    plots.confusion(matrix, names, tmp_path / "a.png", title="$ 5 of 猫 $")
    first = read(tmp_path / "a.png")
    assert first.shape[0] >= 4.5 * plots.DPI
    assert first.shape[1] > first.shape[0]
    matrix[0, 1] += 30
    plots.confusion(matrix, names, tmp_path / "b.png", title="$ 5 of 猫 $")
    assert (read(tmp_path / "b.png") != first).any()


def test_confusion_colours_by_the_share_of_the_true_class(tmp_path):
    plots.confusion(np.diag([1000, 1, 1]), ["a", "b", "c"], tmp_path / "a.png")
    pixels = read(tmp_path / "a.png").reshape(-1, 3).astype(int)
    dark = (abs(pixels - (8, 48, 107)) <= 1).all(axis=1)  # the end of the scale: three cells of a ninth each
    light = (abs(pixels - (247, 251, 255)) <= 1).all(axis=1)  # its start: the other six
    assert dark.sum() / light.sum() == pytest.approx(0.5, abs=0.06)


def test_reliability(tmp_path, rng):
    confidence = rng.uniform(0.2, 1, size=500)
    plots.reliability(calibrate(confidence, rng.random(500) < confidence), tmp_path / "good.png")
    plots.reliability(calibrate(confidence, rng.random(500) < confidence / 2), tmp_path / "bad.png")
    good, bad = read(tmp_path / "good.png"), read(tmp_path / "bad.png")
    assert good.shape == bad.shape == (1020, 870, 3)
    blue = np.array([int(plots.ACCURATE[i : i + 2], 16) for i in (1, 3, 5)])
    bars = [np.count_nonzero((picture == blue).all(axis=2)) for picture in (good, bad)]
    assert bars[1] < 0.7 * bars[0]


def test_curves(tmp_path):
    runs = {"a": make_rows(), "b": make_rows(epochs=40, seconds=1.5, validated=3)}
    plots.curves(runs, tmp_path / "a.png")
    first = read(tmp_path / "a.png")
    assert first.shape == (1125, 2100, 3)
    for color in plots.COLORS[:2]:
        assert (first == [int(color[i : i + 2], 16) for i in (1, 3, 5)]).all(axis=2).sum() > 500
    runs["a"][-1]["val_loss"] = 3.0
    plots.curves(runs, tmp_path / "b.png")
    changed = (read(tmp_path / "b.png") != first).any(axis=2)
    assert changed[:562].any()
    assert not changed[:, 1500:].any()
    assert not changed[600:].any()


def test_curves_of_no_epoch_of_one_and_of_many_runs(tmp_path):
    pictures = []
    for runs in ([("a", 0)], [("a", 1)], [(str(i), 3) for i in range(9)]):
        plots.curves({name: make_rows(epochs) for name, epochs in runs}, tmp_path / "a.png")
        pictures.append(read(tmp_path / "a.png"))
        assert pictures[-1].shape == (1125, 2100, 3)
    coloured = [(np.ptp(picture[:, :1400].astype(int), axis=2) > 60).sum() for picture in pictures]  # without the key
    assert coloured[0] == 0
    assert 100 < coloured[1] < coloured[2] / 10  # points, and lines


def test_series_leaves_out_epochs_without_validation():
    metrics = make_rows(epochs=5, validated=2)
    epochs, values = plots.series(metrics, "epoch", "val_accuracy", 100)
    assert epochs == (2, 4)
    assert values == pytest.approx((100 * (1 - 1.1 / 3), 100 * (1 - 1.1 / 5)))


@pytest.mark.parametrize("grid", [(3, 5), (1, 7), (1, 1), (14, 14), (40, 3)])
def test_position_maps(tmp_path, rng, grid):
    count = grid[0] * grid[1]
    vectors = rng.normal(size=(count, 8))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    plots.position_maps((vectors @ vectors.T).reshape(grid * 2), tmp_path / "a.png")
    pixels = read(tmp_path / "a.png")
    # The end of the scale is at every position's own place and in the colour bar.
    assert (abs(pixels.astype(int) - (253, 231, 37)) <= 2).all(axis=2).sum() > 9
    assert max(pixels.shape) >= 4 * plots.DPI


def test_pictures_from_threads_are_equal(tmp_path, rng):
    matrix = rng.integers(0, 9, size=(5, 5))
    draw = [threading.Thread(target=plots.confusion, args=(matrix, NAMES, tmp_path / f"{index}.png")) for index in range(3)]
    for thread in draw:
        thread.start()
    for thread in draw:
        thread.join()
    pictures = [read(tmp_path / f"{index}.png") for index in range(3)]
    assert (pictures[0] == pictures[1]).all()
    assert (pictures[0] == pictures[2]).all()
