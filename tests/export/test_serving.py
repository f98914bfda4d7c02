"""Pictures read by TensorFlow's operations, for SavedModels, as training reads them with Pillow."""

import importlib.util

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from keras_vit.data.decode import MAX_PIXELS, read_image

if importlib.util.find_spec("tensorflow") is None:
    pytest.skip("what is tested here is TensorFlow's", allow_module_level=True)

import tensorflow as tf

from keras_vit.export.serving import cover, decode, orientation

SIZE = (24, 36)
# The mean and the largest difference, of 255 levels. Pillow decodes a large JPEG at half its size or less.
LEVELS = {".png": (0.4, 6), ".jpg": (1.5, 25)}


def picture(index=0):
    return Image.fromarray(load_sample_images().images[index])


def with_orientation(value, order=b"II"):
    exif = Image.Exif()
    exif[0x010F] = "a maker's name"  # before the orientation, in the order of tags
    exif.endian = "<" if order == b"II" else ">"
    exif[0x0112] = value
    exif[0x0131] = "a program"  # and behind it
    return exif


def transparent():
    image = picture().convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image


# Files as users have them: the picture, the suffix, and how it is written.
FILES = {
    "jpeg": lambda: (picture().crop((40, 20, 560, 400)), "jpg", {"quality": 95}),
    "tall": lambda: (picture(1).crop((100, 0, 250, 427)), "jpg", {"quality": 95}),
    "progressive": lambda: (picture(1), "jpg", {"quality": 95, "progressive": True}),
    "grey": lambda: (picture().convert("L"), "jpg", {"quality": 95}),
    "png": lambda: (picture(1), "png", {}),
    "transparent": lambda: (transparent(), "png", {}),
    "palette": lambda: (picture().quantize(200), "png", {}),
    "16-bit": lambda: (Image.fromarray(np.asarray(picture().convert("L"), np.uint16) * 257), "png", {}),
    "small": lambda: (picture().resize((20, 9)), "png", {}),
    "as large": lambda: (picture().resize((36, 24)), "png", {}),
}


def write(path, name):
    image, suffix, settings = FILES[name]()
    path = path / f"file.{suffix}"
    image.save(path, **settings)
    return path


def read(path, channels=3):
    return cover(decode(tf.constant(path.read_bytes()), channels)[None], SIZE)[0].numpy()


def assert_alike(ours, path, channels=3):
    theirs = read_image(path, (*SIZE, channels)).astype("float32")
    difference = np.abs(ours - theirs)
    assert ours.shape == theirs.shape
    assert theirs.std() > 20
    mean, largest = LEVELS[path.suffix]
    assert difference.mean() < mean
    assert difference.max() < largest


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", FILES)
def test_files_are_read_as_in_training(tmp_path, name, channels):
    path = write(tmp_path, name)
    ours = read(path, channels)
    assert_alike(ours, path, channels)
    np.testing.assert_array_equal(ours, np.round(ours))


@pytest.mark.parametrize("order", [b"II", b"MM"])
@pytest.mark.parametrize("value", range(1, 9))
def test_jpegs_stand_upright(tmp_path, value, order):
    path, exif = tmp_path / "turned.jpg", with_orientation(value, order)
    picture().save(path, quality=95, exif=exif)
    assert order in path.read_bytes()[:64]
    assert orientation(tf.constant(path.read_bytes())) == value
    assert_alike(read(path), path)


def test_damaged_exif_is_none(tmp_path):
    path = tmp_path / "turned.jpg"
    picture().resize((40, 30)).save(path, exif=with_orientation(6))
    whole = path.read_bytes()
    tiff, end = whole.index(b"Exif\0\0") + 6, whole.index(b"a program") + 10
    assert orientation(tf.constant(whole)) == 6
    assert orientation(tf.constant(whole[: tiff - 1])) == 1
    assert orientation(tf.constant(whole[: tiff + 4] + b"\xff" * 4 + whole[tiff + 8 :])) == 1  # a table far behind the end
    rng = np.random.default_rng(0)
    for cut in range(tiff, end):
        assert orientation(tf.constant(whole[:cut])) in (1, 6)
        noise = rng.integers(256, size=end - cut, dtype="uint8").tobytes()
        assert 1 <= orientation(tf.constant(whole[:cut] + noise + whole[end:])) <= 8


def test_batches_of_pixels(tmp_path):
    images = np.stack([np.asarray(picture(index)) for index in (0, 1)])
    for ours, image in zip(cover(tf.constant(images), SIZE).numpy(), images, strict=True):
        Image.fromarray(image).save(tmp_path / "image.png")
        assert_alike(ours, tmp_path / "image.png")


def png_of_size(width, height):
    """The first bytes of a PNG file that claims a size."""
    sides = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    return b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + sides + b"\x08\x02\0\0\0" + bytes(64)


def jpeg_of_size(tmp_path, width, height):
    """A JPEG file whose header claims a size that it has not."""
    picture().resize((16, 16)).save(tmp_path / "file.jpg")
    content = bytearray((tmp_path / "file.jpg").read_bytes())
    start = content.index(b"\xff\xc0") + 5
    content[start : start + 4] = height.to_bytes(2, "big") + width.to_bytes(2, "big")
    return bytes(content)


def test_bombs_are_refused_before_they_are_decoded(tmp_path):
    for content in (
        png_of_size(MAX_PIXELS, 2),
        png_of_size(2**31 - 1, 2**31 - 1),
        png_of_size(2**32 - 1, 2**32 - 1),
        jpeg_of_size(tmp_path, 60_000, 60_000),
    ):
        with pytest.raises(tf.errors.InvalidArgumentError, match="allowed: up to 89,478,485 pixels; received"):
            tf.function(decode, reduce_retracing=True)(tf.constant(content), 3)


@pytest.mark.parametrize("content", [b"", b"GIF89a" + bytes(64), b"\x89PNG\r\n\x1a\n", b"no picture", b"\xff"])
def test_other_files_are_refused(content):
    with pytest.raises(tf.errors.InvalidArgumentError, match="allowed: encoded JPEG or PNG files"):
        tf.function(decode)(tf.constant(content), 3)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_cut_off_files_are_errors(tmp_path, suffix):
    picture().save(tmp_path / f"file.{suffix}")
    content = (tmp_path / f"file.{suffix}").read_bytes()
    with pytest.raises(tf.errors.InvalidArgumentError):
        tf.function(decode)(tf.constant(content[: len(content) // 2]), 3)
