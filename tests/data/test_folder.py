"""Folders of pictures: what is read and skipped, how it looks, crops, and what is kept."""

import os
import pathlib

import numpy as np
import pytest
from helpers import one_line_error
from PIL import Image

from keras_vit.data import decode, photos
from keras_vit.data.augment import AugmentConfig, random_boxes
from keras_vit.data.batches import order, training_batch
from keras_vit.data.dataset import load_data
from keras_vit.data.decode import read_image
from keras_vit.data.seeds import BATCH, Draws, generator


def rows(split):
    return {image.tobytes() for image in split.images(np.arange(len(split)))}


def picture(height=24, width=17, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture
def folder(tmp_path):
    """Two classes of ten pictures, with a space and letters beyond ASCII in the names."""
    for number, name in enumerate(("café noir", "東京 タワー")):
        (tmp_path / "my data" / name).mkdir(parents=True)
        for i in range(10):
            picture(seed=10 * number + i).save(tmp_path / "my data" / name / f"Bild {i} ü.png")
    return tmp_path / "my data"


def test_folder(folder):
    (folder / "café noir" / "notes.txt").write_text("ignored")
    (folder / "café noir" / ".hidden.png").write_text("ignored")
    data = load_data(f"folder:{folder}", image_size=(24, 17), validation=4)
    assert data.class_names == ["café noir", "東京 タワー"]
    for part, count in ((data.train, 12), (data.validation, 4), (data.test, 4)):
        assert np.bincount(part.labels).tolist() == [count // 2, count // 2]
    seen = rows(data.train) | rows(data.validation) | rows(data.test)
    assert seen == {np.asarray(picture(seed=i)).tobytes() for i in range(20)}
    assert load_data(f"folder:{folder}", image_size=(24, 17), seed=9).fingerprint == data.fingerprint


def test_names_of_folders_are_shown_and_not_obeyed(tmp_path):
    for name in ("train/a\nb", "train/c", "val/d"):
        (tmp_path / name).mkdir(parents=True)
        picture().save(tmp_path / name / "0.png")
    with one_line_error(r"received the class folder '.*d'; allowed, as in train: a\\nb, c$"):
        load_data(f"folder:{tmp_path}", image_size=16)


def test_folder_with_its_own_parts(folder, tmp_path):
    root = tmp_path / "parts"
    root.mkdir()
    (folder).rename(root / "train")
    for part, count in (("val", 3), ("test", 2)):
        (root / part / "café noir").mkdir(parents=True)
        for i in range(count):
            picture(seed=100 + i).save(root / part / "café noir" / f"{i}.webp", lossless=True)
    data = load_data(f"folder:{root}", image_size=16)
    assert [len(part) for part in (data.train, data.validation, data.test)] == [20, 3, 2]
    carved = load_data(f"folder:{root}", image_size=16, validation=0.2)
    assert [len(part) for part in (carved.train, carved.validation, carved.test)] == [16, 4, 2]
    (root / "test").rename(tmp_path / "away")
    data = load_data(f"folder:{root}", image_size=16)
    assert [len(part) for part in (data.train, data.validation, data.test)] == [18, 2, 3]
    assert any("validation images are used as test images" in note for note in data.notes)
    (root / "val" / "café noir").rename(root / "val" / "chat")
    with pytest.raises(ValueError, match=r"received the class folder '.*chat'; allowed, as in train: café noir, "):
        load_data(f"folder:{root}", image_size=16)


def test_folders_of_parts_are_told_from_classes(folder, tmp_path):
    (folder / "nothing").mkdir()
    (folder / "Train").mkdir()  # a class of its own: pictures and no folders of pictures
    picture(seed=77).save(folder / "Train" / "0.png")
    picture(seed=78).save(folder / "Train" / "1.png")
    data = load_data(f"folder:{folder}", image_size=16)
    assert data.class_names == ["Train", "café noir", "東京 タワー"]
    assert "ignored folders without images: nothing" in data.notes
    root = tmp_path / "parts"
    root.mkdir()
    folder.rename(root / "Testing")
    with pytest.raises(ValueError, match="with class folders in Testing; allowed: a folder 'train'"):
        load_data(f"folder:{root}", image_size=16)
    (root / "Testing").rename(root / "TRAINING")
    (root / "TRAINING" / "nothing").rename(root / "docs")
    data = load_data(f"folder:{root}", image_size=16)
    assert data.class_names == ["Train", "café noir", "東京 タワー"]
    assert "ignored folders without images: docs" in data.notes
    picture(seed=79).save(root / "TRAINING" / "sheet.png")
    data = load_data(f"folder:{root}", image_size=16)
    assert "images beside the class folders are left out (1): sheet.png" in data.notes


def test_broken_images_are_skipped_counted_and_named(folder):
    whole = (folder / "café noir" / "whole.jpg", folder / "café noir" / "cut.jpg")
    picture(200, 300).save(whole[0], quality=95)
    content = whole[0].read_bytes()
    whole[1].write_bytes(content[: len(content) // 2])
    (folder / "東京 タワー" / "text.jpg").write_text("I am a text file")
    Image.new("1", (20_000, 20_000)).save(folder / "東京 タワー" / "huge.png")
    with pytest.warns(UserWarning, match="skipped 3 of 24 images") as caught:
        data = load_data(f"folder:{folder}", image_size=16, validation=0)
    message = str(caught[0].message)
    assert "cut.jpg: " in message
    assert "text.jpg: cannot identify" in message
    assert "huge.png: Image size (400000000 pixels)" in message
    assert len(data.train) + len(data.test) == 21
    assert any("skipped 3" in note for note in data.notes)
    with pytest.warns(UserWarning, match="skipped"):
        assert load_data(f"folder:{folder}", image_size=16).fingerprint == data.fingerprint


def test_images_between_pillows_limits_are_skipped_too(folder, monkeypatch):
    monkeypatch.setattr(decode, "MAX_PIXELS", 24 * 17)
    picture(25, 17).save(folder / "café noir" / "large.png")
    with pytest.warns(UserWarning, match=r"skipped 1 of 21 images .café noir/large.png: received 17x25 pixels; allowed: 408"):
        load_data(f"folder:{folder}", image_size=16)


def test_folders_that_cannot_be_used(tmp_path, folder):
    for path in (tmp_path / "none", ""):
        with pytest.raises(ValueError, match=r"^data: received 'folder:.*': there is no such folder; allowed: folder:PATH"):
            load_data(f"folder:{path}", image_size=8)
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        ValueError, match=r"^data: received 'folder:.*' with no images; allowed: two or more folders, one a class, of images"
    ):
        load_data(f"folder:{tmp_path / 'empty'}", image_size=8)
    with pytest.raises(ValueError, match=r"with images in 'my data' alone; allowed: two or more folders"):
        load_data(f"folder:{tmp_path}", image_size=8)
    for file in (folder / "café noir").iterdir():
        file.write_text("broken")
    with (
        pytest.warns(UserWarning, match="skipped 10 of 20"),
        pytest.raises(ValueError, match=r"^data: received .* with no readable image of class 'café noir'"),
    ):
        load_data(f"folder:{folder}", image_size=8)


def test_image_modes(tmp_path):
    """What each mode becomes, against values computed by hand."""
    rng = np.random.default_rng(0)
    shape = (10, 7, 3)
    read = lambda name: read_image(tmp_path / name, shape)  # noqa: E731
    deep = rng.integers(0, 2**16, (10, 7), dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert np.abs(read("deep.png").astype(float) - deep[..., None] / 257).max() <= 0.51
    colors, alpha = rng.integers(0, 256, (10, 7, 3), dtype=np.uint8), rng.integers(0, 256, (10, 7, 1), dtype=np.uint8)
    Image.fromarray(np.concatenate([colors, alpha], axis=-1)).save(tmp_path / "alpha.png")
    on_white = colors * (alpha / 255) + 255 * (1 - alpha / 255)
    assert np.abs(read("alpha.png") - on_white).max() <= 1
    Image.fromarray(colors[..., 0]).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(read("grey.png"), np.repeat(colors[..., :1], 3, axis=-1))
    luma = colors @ [0.299, 0.587, 0.114]
    Image.fromarray(colors).save(tmp_path / "rgb.png")
    assert np.abs(read_image(tmp_path / "rgb.png", (10, 7, 1))[..., 0] - luma).max() <= 1
    frames = [Image.new("P", (7, 10), color) for color in (1, 2)]
    for frame in frames:
        frame.putpalette([0, 0, 0, 10, 20, 30, 200, 100, 50])
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    assert (read("moving.gif") == [10, 20, 30]).all()
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 270 degrees to see it upright
    Image.fromarray(colors).save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "turned.png", (7, 10, 3)), np.rot90(colors, -1))
    Image.new("CMYK", (7, 10), (0, 255, 255, 0)).save(tmp_path / "cmyk.jpg")
    red = read("cmyk.jpg").mean(axis=(0, 1))
    assert red[0] > 200
    assert red[1:].max() < 60


def test_other_sizes_are_covered_and_the_middle_is_kept(tmp_path):
    ramp = np.tile(np.linspace(0, 255, 400).astype(np.uint8)[None, :, None], (100, 1, 3))
    for name in ("wide.png", "wide.jpg"):
        Image.fromarray(ramp).save(tmp_path / name)
        image = read_image(tmp_path / name, (20, 20, 3))[..., 0].astype(float)
        expected = ramp[0, 150:250, 0].reshape(20, 5).mean(axis=1)
        assert np.abs(image[5:15, 2:-2] - expected[2:-2]).max() <= 2


def test_crops_of_files(tmp_path):
    """Each part is what the whole picture has there; a JPEG that is decoded smaller gives nearly the same."""
    rng, shape, box = np.random.default_rng(0), (12, 10, 3), (0.25, 0.5, 0.5, 0.4)
    small = Image.fromarray(rng.integers(0, 256, (9, 7, 3), dtype=np.uint8))
    smooth = small.resize((350, 480), Image.Resampling.BICUBIC)
    smooth.save(tmp_path / "a.png")
    smooth.save(tmp_path / "a.jpg", quality=98, subsampling=0)
    expected = np.asarray(smooth.crop((175, 120, 315, 360)).resize((10, 12), Image.Resampling.BICUBIC), float)
    assert np.abs(decode.read_crop(tmp_path / "a.png", shape, box) - expected).max() <= 3  # the box's border has neighbours here
    assert np.abs(decode.read_crop(tmp_path / "a.jpg", shape, box) - expected).max() <= 12
    exif = Image.Exif()
    exif[0x0112] = 6
    smooth.rotate(90, expand=True).save(tmp_path / "turned.jpg", quality=98, subsampling=0, exif=exif)
    turned = decode.read_crop(tmp_path / "turned.jpg", shape, box)
    assert np.abs(turned.astype(float) - expected).max() <= 12
    assert decode.inspect_image(tmp_path / "turned.jpg")[0] == (480, 350)
    whole = decode.read_crop(tmp_path / "a.png", (480, 350, 3), (0, 0, 1, 1))
    np.testing.assert_array_equal(whole, np.asarray(smooth))


def test_random_boxes():
    """Inside the picture, of an allowed area and ratio; very long pictures give their middle."""
    sizes = np.tile([[300, 400], [400, 300], [20, 4000]], (2000, 1))
    boxes = random_boxes(sizes, 0.2, 4 / 3, Draws(np.random.default_rng(0), len(sizes)))
    top, left, rows, columns = boxes.T
    assert min(top.min(), left.min()) >= 0
    assert max((top + rows).max(), (left + columns).max()) <= 1 + 1e-12
    ratio = columns * sizes[:, 1] / (rows * sizes[:, 0])
    assert 3 / 4 - 1e-9 <= ratio.min() < 0.77
    assert 1.3 < ratio.max() <= 4 / 3 + 1e-9
    area, long = rows * columns, sizes[:, 1] == 4000
    assert 0.2 <= area[~long].min() < 0.21
    assert area[~long].max() > 0.97
    np.testing.assert_allclose(boxes[long], np.tile([0, (1 - 80 / 3 / 4000) / 2, 1, 80 / 3 / 4000], (2000, 1)))
    place = top[~long] / (1 - rows[~long]), left[~long] / (1 - columns[~long])
    assert abs(np.corrcoef(*place)[0, 1]) < 0.05
    assert all(abs(each.mean() - 0.5) < 0.02 for each in place)


def test_training_batches_of_files_crop_them(folder):
    """A batch is a function of seed and step; each image is the part of its file that the boxes say, in the wanted size."""
    data, config = load_data(f"folder:{folder}", image_size=(24, 17), validation=0), AugmentConfig(flip=False, resized_crop=0.3)
    settings = {"num_classes": 2, "batch_size": 5, "seed": 3}
    images, targets = training_batch(data.train, config, 2, image_size=(8, 9), **settings)
    again, _ = training_batch(data.train, config, 2, image_size=(8, 9), **settings)
    other, _ = training_batch(data.train, config, 3, image_size=(8, 9), **settings)
    np.testing.assert_array_equal(images, again)
    assert images.shape == (5, 8, 9, 3)
    assert (images != other).any()
    indices = order(len(data.train), 3, 0)[10:15]
    boxes = random_boxes(np.tile([24, 17], (5, 1)), 0.3, 1.33, Draws(generator(BATCH, 3, 2), 5))
    for image, box, whole in zip(images, boxes, data.train.images(indices), strict=True):
        np.testing.assert_array_equal(image, decode.crop(Image.fromarray(whole), (8, 9, 3), box))
    assert targets.argmax(1).tolist() == data.train.labels[indices].tolist()


def test_files_are_checked_once(folder, monkeypatch):
    first = load_data(f"folder:{folder}", image_size=16)
    with monkeypatch.context() as patch:
        patch.setattr(photos, "inspect_image", lambda file: pytest.fail("a file is read again"))
        assert load_data(f"folder:{folder}", image_size=16).fingerprint == first.fingerprint
    file = folder / "café noir" / "Bild 3 ü.png"
    picture(seed=99).save(file)
    assert load_data(f"folder:{folder}", image_size=16).fingerprint != first.fingerprint
    images = np.flatnonzero([str(file) == str(each) for each in first.train._images.source.files])
    file.write_text("broken since")
    with pytest.raises(ValueError, match=r"^data: '.*Bild 3 ü.png' was readable and is no longer: cannot identify image file$"):
        first.train._images[images]


def test_images_are_kept_in_memory_or_decoded_each_time(folder, monkeypatch):
    kept = load_data(f"folder:{folder}", image_size=16).train
    monkeypatch.setattr(photos, "memory_limit", lambda: 100)
    streamed = load_data(f"folder:{folder}", image_size=16)
    assert "train: 20 images, decoded as they are needed (all of them would take 0 MB)" in streamed.notes
    np.testing.assert_array_equal(kept.images(np.array([3, 0])), streamed.train.images(np.array([3, 0])))
    for split, reads in ((kept, 0), (streamed.train, 2)):
        calls = []
        monkeypatch.setattr(photos, "read_image", lambda *given, calls=calls: calls.append(given) or read_image(*given))
        split.images(np.array([3, 0]))
        assert len(calls) == reads
    assert not [
        path for path in folder.rglob("*") if "keras_vit" in str(path.relative_to(folder))
    ]  # nothing beside the user's data


def test_what_looks_like_an_image_and_is_not_read_is_named(folder):
    (folder / "café noir" / "scan.svg").write_text("<svg/>")
    for suffix in ("bmp", "tiff", "jfif"):
        picture(seed=50).save(folder / "café noir" / f"more.{suffix}", format="JPEG" if suffix == "jfif" else None)
    (folder / "café noir" / "gone.png").symlink_to(folder / "nowhere.png")
    (folder / "東京 タワー" / "loop").symlink_to(folder, target_is_directory=True)
    latin = os.fsdecode(os.fsencode(folder / "東京 タワー") + b"/caf\xe9.png")
    pathlib.Path(latin).write_bytes((folder / "café noir" / "Bild 1 ü.png").read_bytes())
    with pytest.warns(UserWarning, match="^1 files|^train: skipped") as caught:
        data = load_data(f"folder:{folder}", image_size=16, validation=0)
    said = sorted(str(warning.message) for warning in caught)
    assert said[0] == "1 files look like images and are not read here: café noir/scan.svg"
    assert said[1].startswith("train: skipped 1 of 25 images (café noir/gone.png: No such file or directory")
    assert len(data.train) + len(data.test) == 24


def test_postscript_is_not_opened(folder):
    (folder / "café noir" / "page.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    with pytest.warns(UserWarning, match=r"skipped 1 of 21 images \(café noir/page.jpg: cannot identify image file"):
        load_data(f"folder:{folder}", image_size=16)


def test_center_crop(tmp_path):
    """A picture whose border is white and whose middle half is black: the middle half is all black, the middle 0.8 is not."""
    for index in range(4):
        image = np.full((80, 120, 3), 255, np.uint8)
        image[20:60, 30:90] = 0
        (tmp_path / "ab"[index % 2]).mkdir(exist_ok=True)
        Image.fromarray(image).save(tmp_path / "ab"[index % 2] / f"{index}.png")
    means = {}
    for share in (1.0, 0.8, 0.45):
        data = load_data(f"folder:{tmp_path}", image_size=(32, 48), validation=0, center_crop=share)
        images = data.train.images(np.arange(len(data.train)))
        means[share] = images.mean() / 255
        expected = read_image(tmp_path / "a" / "0.png", (32, 48, 3), share)
        np.testing.assert_array_equal(images[0], expected)
        middle = image[round(40 - 40 * share) : round(40 + 40 * share), round(60 - 60 * share) : round(60 + 60 * share)]
        np.testing.assert_allclose(means[share], middle.mean() / 255, atol=0.02)
    assert means[1.0] > means[0.8] > 0.4
    assert means[0.45] == 0
    with pytest.raises(ValueError, match=r"^center_crop: received 0.9; allowed: 1, for images that are kept in memory in one size"):
        load_data("digits", image_size=8, channels=1, center_crop=0.9)
    with pytest.raises(ValueError, match=r"^center_crop: received 1.1; allowed"):
        load_data(f"folder:{tmp_path}", image_size=8, center_crop=1.1)
