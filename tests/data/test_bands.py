"""Images of other channels than 1 and 3: arrays, TIFF files of several bands, transparency; what augments them."""

import dataclasses
import logging

import numpy as np
import pytest
from helpers import SMALL, augmented, random_pixels
from PIL import Image

from keras_vit.data import decode
from keras_vit.data.augment import AugmentConfig
from keras_vit.data.batches import training_batch, training_batches
from keras_vit.data.dataset import Split, load_data
from keras_vit.data.decode import inspect_image, read_crop, read_image
from keras_vit.images import normalize, resize
from keras_vit.model.config import ViTConfig
from keras_vit.recipes.schema import Recipe, TrainConfig
from keras_vit.runs.prediction import classifier, predict_files
from keras_vit.training.loop import train

tifffile = pytest.importorskip("tifffile")
INTERLEAVED = {"photometric": "minisblack", "planarconfig": "contig"}  # the bands of a pixel side by side


def write(path, values, **settings):
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, values, **settings)


def test_bands_in_pixels_planes_and_pages(tmp_path):
    bands = random_pixels(9, 7, 5)
    first = np.moveaxis(bands, -1, 0).copy()
    write(tmp_path / "pixels.tif", bands, **INTERLEAVED)
    write(tmp_path / "planes.tif", first, photometric="minisblack", planarconfig="separate")
    write(tmp_path / "pages.tif", first, photometric="minisblack")
    write(tmp_path / "deflated.tiff", bands, **INTERLEAVED, compression="zlib")
    write(tmp_path / "big.tif", bands, **INTERLEAVED, bigtiff=True, byteorder=">")
    for path in tmp_path.iterdir():
        np.testing.assert_array_equal(read_image(path, (9, 7, 5)), bands, err_msg=path.name)
        assert inspect_image(path, 5)[0] == (9, 7)
        with pytest.raises(ValueError, match=r"^image: received 5 channels; allowed: 4, as model.channels$"):
            read_image(path, (9, 7, 4))


def test_a_broken_file_is_one_error_and_nothing_on_stderr(tmp_path, capsys, monkeypatch):
    """tifffile logs a line for each fault."""
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # pytest's, without which Python writes to stderr
    write(tmp_path / "a.tif", random_pixels(9, 7, 5), **INTERLEAVED)
    content = bytearray((tmp_path / "a.tif").read_bytes())
    for place in range(12, 60, 12):  # the types of the first tags, after a header of 8 bytes and the number of tags
        content[place : place + 2] = b"\xff\xff"
    (tmp_path / "a.tif").write_bytes(content)
    with pytest.raises(Exception, match=r"\S"):
        read_image(tmp_path / "a.tif", (9, 7, 5))
    assert capsys.readouterr().err == ""


OME = """<?xml version="1.0" encoding="UTF-8"?>
<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:a"><Image ID="Image:0"><Pixels ID="Pixels:0"
DimensionOrder="XYCZT" Type="uint8" SizeX="7" SizeY="9" SizeC="2" SizeZ="1" SizeT="1">
<Channel ID="Channel:0:0" SamplesPerPixel="1"/><Channel ID="Channel:0:1" SamplesPerPixel="1"/>
<TiffData FirstC="0" IFD="0" PlaneCount="1"><UUID FileName="a.ome.tif">urn:uuid:a</UUID></TiffData>
<TiffData FirstC="1" IFD="0" PlaneCount="1"><UUID FileName="../secret.ome.tif">urn:uuid:b</UUID></TiffData>
</Pixels></Image></OME>"""


def test_a_file_that_names_others_is_read_alone(tmp_path):
    for name in ("secret.ome.tif", "folder/a.ome.tif"):
        write(tmp_path / name, random_pixels(9, 7, 1)[..., 0], description=OME.replace("urn:uuid:a", f"urn:uuid:{name[0]}"))
    path = tmp_path / "folder" / "a.ome.tif"
    with pytest.raises(ValueError, match=r"^image: received 1 channels; allowed: 2, as model.channels$"):
        read_image(path, (9, 7, 2))
    write(tmp_path / "own.ome.tif", random_pixels(4, 9, 7), photometric="minisblack", metadata={"axes": "CYX"}, ome=True)
    assert read_image(tmp_path / "own.ome.tif", (9, 7, 4)).shape == (9, 7, 4)


def test_bands_that_would_fill_the_memory_are_refused(tmp_path, monkeypatch):
    write(tmp_path / "a.tif", np.zeros((64, 64, 500), "uint8"), **INTERLEAVED, compression="zlib")  # 2 MB in a few kilobytes
    assert (tmp_path / "a.tif").stat().st_size < 20_000
    assert read_image(tmp_path / "a.tif", (4, 4, 500)).shape == (4, 4, 500)
    monkeypatch.setattr(decode, "MAX_PIXELS", 500_000)
    with pytest.raises(ValueError, match=r"^image: received 2,048,000 bytes in 500 bands; allowed: 2,000,000$"):
        read_image(tmp_path / "a.tif", (4, 4, 500))


def test_sixteen_bits_and_floats(tmp_path):
    deep = np.random.default_rng(0).integers(2**16, size=(6, 8, 4), dtype=np.uint16)
    write(tmp_path / "deep.tif", deep, **INTERLEAVED)
    assert np.abs(read_image(tmp_path / "deep.tif", (6, 8, 4)) - deep / 257).max() <= 0.51
    shares = np.random.default_rng(0).random((6, 8, 4)).astype("float32")
    write(tmp_path / "shares.tif", shares, **INTERLEAVED)
    assert np.abs(read_image(tmp_path / "shares.tif", (6, 8, 4)) - 255 * shares).max() <= 0.51
    write(tmp_path / "large.tif", 9 * shares, **INTERLEAVED)
    with pytest.raises(ValueError, match=r"^image: received floats from .* to 8.*; allowed: from 0 to 1$"):
        read_image(tmp_path / "large.tif", (6, 8, 4))
    write(tmp_path / "signed.tif", deep.astype("int32"), **INTERLEAVED)
    with pytest.raises(ValueError, match=r"^image: received int32; allowed: uint8, uint16, or floats from 0 to 1$"):
        read_image(tmp_path / "signed.tif", (6, 8, 4))
    write(tmp_path / "film.tif", random_pixels(3, 2, 6, 8), photometric="minisblack")
    with pytest.raises(ValueError, match=r"^image: received a TIFF file with axes .*; allowed: rows, columns and bands$"):
        read_image(tmp_path / "film.tif", (6, 8, 6))


def test_resizing_and_crops_treat_every_band_as_pillow_does(tmp_path):
    bands = random_pixels(24, 36, 5)
    write(tmp_path / "a.tif", bands, **INTERLEAVED)
    Image.fromarray(bands[..., :3]).save(tmp_path / "rgb.png")
    Image.fromarray(bands[..., 3]).save(tmp_path / "grey.png")
    for reader, more in ((read_image, ()), (read_crop, ((0.1, 0.2, 0.5, 0.7),))):
        found = reader(tmp_path / "a.tif", (10, 12, 5), *more)
        np.testing.assert_array_equal(found[..., :3], reader(tmp_path / "rgb.png", (10, 12, 3), *more))
        np.testing.assert_array_equal(found[..., 3:4], reader(tmp_path / "grey.png", (10, 12, 1), *more))
        assert np.ptp(found[..., 4]) > 20


def test_transparency_is_kept_with_four_channels(tmp_path):
    colors = random_pixels(8, 8, 4)
    Image.fromarray(colors).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", (8, 8, 4)), colors)
    Image.fromarray(colors[..., :3]).save(tmp_path / "opaque.png")
    opaque = np.concatenate([colors[..., :3], np.full((8, 8, 1), 255, np.uint8)], axis=-1)
    np.testing.assert_array_equal(read_image(tmp_path / "opaque.png", (8, 8, 4)), opaque)
    Image.fromarray(colors).convert("CMYK").save(tmp_path / "print.jpg")
    with pytest.raises(ValueError, match=r"^image: received CMYK; allowed for 4 channels: RGBA, RGB, "):
        read_image(tmp_path / "print.jpg", (8, 8, 4))
    with pytest.raises(ValueError, match=r"^image: received RGBA; allowed for 2 channels: LA, L, 1$"):
        read_image(tmp_path / "a.png", (8, 8, 2))
    with pytest.raises(ValueError, match=r"^image: received a PNG file; allowed: TIFF, for 5 channels$"):
        read_image(tmp_path / "a.png", (8, 8, 5))


def test_a_folder_of_bands_counts_what_has_others(tmp_path):
    for number in range(20):
        write(tmp_path / "ab"[number % 2] / f"{number}.tif", random_pixels(9, 7, 5, seed=number), **INTERLEAVED)
    write(tmp_path / "a" / "four.tif", random_pixels(9, 7, 4), **INTERLEAVED)
    (tmp_path / "b" / "broken.tif").write_bytes((tmp_path / "b" / "1.tif").read_bytes()[:90])
    with pytest.warns(UserWarning, match="skipped 2 of 22 images") as caught:
        data = load_data(f"folder:{tmp_path}", image_size=(9, 7), channels=5)
    assert "a/four.tif: received 4 channels; allowed: 5, as model.channels" in str(caught[0].message)
    assert data.train.shape == (9, 7, 5)
    settings = {"num_classes": 2, "batch_size": 4, "seed": 0}
    images, _ = training_batch(data.train, AugmentConfig(resized_crop=0.5), 0, **settings)
    assert images.shape == (4, 9, 7, 5)


def test_arrays_of_bands(tmp_path):
    x, y = random_pixels(40, 6, 5, 4), np.arange(40) % 2
    np.savez(tmp_path / "a.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    name = f"arrays:{tmp_path / 'a.npz'}"
    np.testing.assert_array_equal(load_data(name, image_size=(6, 5), channels=4).test.images(np.arange(40)), x)
    larger = load_data(name, image_size=(12, 10), channels=4).test.images(np.array([3]))[0]
    for band in range(4):
        grey = Image.fromarray(x[3, ..., band]).resize((10, 12), Image.Resampling.BICUBIC)
        np.testing.assert_array_equal(larger[..., band], np.asarray(grey))
    for channels in (3, 5):
        with pytest.raises(ValueError, match=r"^x_train: received shape \(40, 6, 5, 4\); .* or with --model.channels 4 these$"):
            load_data(name, image_size=6, channels=channels)
    with pytest.raises(ValueError, match=r"^channels: received 4; allowed: 1 or 3, for images of 1$"):
        load_data("digits", image_size=8, channels=4)


def test_augmentation_of_bands_is_that_of_each():
    """Mirroring, crops and mixing do to every band what they do to the first three of the same images."""
    images, labels = random_pixels(8, 12, 10, 5), np.arange(8) % 3
    for config in (AugmentConfig(), AugmentConfig(mixup=1.0, cutmix=1.0), AugmentConfig(crop=0)):
        pair = [augmented(given, labels, config, 1, 3) for given in (images, images[..., :3])]
        np.testing.assert_array_equal(pair[0][0][..., :3], pair[1][0])
        np.testing.assert_array_equal(pair[0][1], pair[1][1])
        assert (pair[0][0][..., 3:] != images[..., 3:]).any()
    erased, _ = augmented(images, labels, AugmentConfig(flip=False, crop=0, erasing=1), 1, 3)
    assert ((erased != images).any(axis=(1, 2)).all(axis=1)).all()


@pytest.mark.parametrize("name", ["randaugment_layers", "three_augment", "color_jitter"])
def test_colours_are_refused_by_name(name):
    value = {"randaugment_layers": 2, "three_augment": True, "color_jitter": 0.3}[name]
    config, images = AugmentConfig(**{name: value}), random_pixels(2, 8, 8, 4)
    with pytest.raises(ValueError, match=f"^{name}: received {value}; allowed: .* with 4 channels, as it changes colours"):
        augmented(images, np.array([0, 1]), config, 0, 2)
    model = ViTConfig(image_size=8, patch_size=4, channels=4, width=8, depth=1, num_heads=2, mlp_dim=8)
    with pytest.raises(ValueError, match=f"^{name}: received {value}; allowed: "):
        Recipe(model=model, augment=config)
    assert Recipe(model=dataclasses.replace(model, channels=1), augment=config).augment == config


def test_mean_and_std_of_bands():
    split = Split(random_pixels(8, 6, 4, 5), np.arange(8) % 2)
    mean, std = [0.1, 0.2, 0.3, 0.4, 0.5], [0.5, 0.4, 0.3, 0.2, 0.1]
    settings = {"num_classes": 2, "batch_size": 8, "seed": 0, "pipeline": "PyDataset"}
    batches = training_batches(split, AugmentConfig(flip=False, crop=0), mean=mean, std=std, image_size=(3, 8), **settings)
    images, _ = training_batch(split, AugmentConfig(flip=False, crop=0), 0, num_classes=2, batch_size=8, seed=0)
    expected = resize(((images / 255 - mean) / std).astype("float32"), (3, 8))
    np.testing.assert_allclose(np.asarray(batches[0][0]), expected, atol=1e-4)
    np.testing.assert_allclose(normalize(images, mean, std), (images / 255 - mean) / std, atol=1e-5)


def test_a_model_of_bands_is_trained_and_predicts_files(tmp_path):
    """The class is in the fifth band alone: a model that reads three learns nothing."""
    x, y = random_pixels(120, 8, 12, 5), np.arange(120) % 2
    x[..., 4] = 40 + 160 * y[:, None, None]
    np.savez(tmp_path / "a.npz", x_train=x, y_train=y)
    model = ViTConfig(**{**SMALL, "channels": 5})
    train_settings = TrainConfig(epochs=6, batch_size=16, learning_rate=0.02, warmup_epochs=0)
    recipe = Recipe(model=model, data=f"arrays:{tmp_path / 'a.npz'}", train=train_settings, mean=[0.5] * 4 + [0.47])
    run = train(recipe, tmp_path / "run", verbose=0)
    assert run.summary["test_accuracy"] == 1
    for number in range(4):
        write(tmp_path / f"{number}.tif", x[number], **INTERLEAVED)
    assert [each.classes for each in run.predict(tmp_path / "*.tif")] == [["0"], ["1"], ["0"], ["1"]]
    page = [*predict_files(classifier(run.model()), [tmp_path / "0.tif"], thumbnails=True, notes=[])]
    assert page[0].thumbnail.startswith(b"\xff\xd8")
