"""Images without labels: from folders, CSV files and arrays, with the parts of the same data with labels; and subsets."""

import shutil

import numpy as np
import pytest
from helpers import one_line_error, random_pixels
from PIL import Image

from keras_vit.data.dataset import load_data


def write(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(random_pixels(12, 16, 3, seed=seed)).save(path)


def rows(split):
    return sorted(image.tobytes() for image in split.images(np.arange(len(split))))


def check_unlabelled(data):
    assert data.class_names == []
    assert not data.multi_label
    assert not any(part.labels.any() for part in data.parts.values())
    assert "no labels" in data.notes[0]


def check_same_parts(name, **settings):
    """Labelled data without its labels has the same images in each part."""
    settings = {"image_size": (12, 16), "seed": 3, **settings}
    ours, theirs = load_data(name, labels="none", **settings), load_data(name, **settings)
    check_unlabelled(ours)
    assert list(ours.parts) == list(theirs.parts) == ["train", "validation", "test"]
    for part in theirs.parts:
        assert rows(ours.parts[part]) == rows(theirs.parts[part])
    return ours


@pytest.fixture
def photos(tmp_path):
    """Twenty pictures in two class folders."""
    for index in range(20):
        write(tmp_path / "photos" / "ab"[index % 2] / f"{index}.png", index)
    return tmp_path / "photos"


def test_class_folders_and_files_of_rows_keep_their_parts(photos, tmp_path):
    check_same_parts(f"folder:{photos}", validation=4)
    lines = [f"photos/{'ab'[index % 2]}/{index}.png,{'cd'[index % 2]}" for index in range(20)]
    (tmp_path / "photos.csv").write_text("\n".join(["path,label", *lines]))
    check_same_parts(f"csv:{tmp_path / 'photos.csv'}", validation=4)
    (tmp_path / "photos.csv").write_text("\n".join(["path,label", f"{lines[0]}|c", *lines[1:]]))
    check_same_parts(f"csv:{tmp_path / 'photos.csv'}", validation=4)
    np.savez(tmp_path / "a.npz", x_train=random_pixels(40, 12, 16, 3), y_train=np.arange(40) % 3)
    check_same_parts(f"arrays:{tmp_path / 'a.npz'}", validation=0.2)
    check_same_parts("digits", channels=1)


def test_a_folder_without_class_folders(photos, tmp_path):
    """Also pictures beside class folders, in a single one, and below folders of folders: all but the validation images train."""
    every = sorted(Image.open(file).tobytes() for file in photos.rglob("*.png"))
    loose, single, mixed, deep = (tmp_path / name for name in ("loose", "single", "mixed", "deep"))
    for index, file in enumerate(sorted(photos.rglob("*.png"))):
        for target in (loose, single / "one", mixed / "a" if index else mixed, deep / "x" / str(index % 3)):
            target.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target)
    (loose / "notes.txt").write_text("ignored")
    for folder in (loose, single, mixed, deep):
        data = load_data(f"folder:{folder}", labels="none", image_size=(12, 16), validation=4, seed=1)
        check_unlabelled(data)
        assert (len(data.train), len(data.validation), data.test) == (16, 4, None)
        assert sorted(rows(data.train) + rows(data.validation)) == every
    other = load_data(f"folder:{loose}", labels="none", image_size=(12, 16), validation=4, seed=2)
    assert rows(other.validation) != rows(data.validation)
    write(photos / "sheet.png", 99)
    data = load_data(f"folder:{photos}", labels="none", image_size=(12, 16), validation=4)
    assert (len(data.train), data.test) == (17, None)
    assert any(note.startswith("images beside the class folders are taken too, and no labels are read") for note in data.notes)


def test_a_folder_that_is_split_trains_on_its_training_images(tmp_path):
    for index in range(12):
        write(tmp_path / ("train", "train", "val", "test")[index % 4] / f"{index}.png", index)
    data = load_data(f"folder:{tmp_path}", labels="none", image_size=(12, 16))
    check_unlabelled(data)
    assert {part: len(split) for part, split in data.parts.items()} == {"train": 6, "validation": 3, "test": 3}
    write(tmp_path / "boats" / "0.png", 99)  # there are pictures of trains: these are four classes, as with labels
    data = load_data(f"folder:{tmp_path}", labels="none", image_size=(12, 16), validation=0)
    assert {part: len(split) for part, split in data.parts.items()} == {"train": 10, "test": 3}


def test_rows_and_arrays_without_labels(photos, tmp_path):
    lines = [f"photos/{'ab'[index % 2]}/{index}.png" for index in range(20)]
    (tmp_path / "some.csv").write_text(
        "\n".join(["path,label", *(f"{line},{'x' * (index == 3)}" for index, line in enumerate(lines))])
    )
    (tmp_path / "none.csv").write_text("\n".join(["path", *lines]))
    for name in ("some.csv", "none.csv"):
        data = load_data(f"csv:{tmp_path / name}", labels="none", image_size=(12, 16))
        check_unlabelled(data)
        assert {part: len(split) for part, split in data.parts.items()} == {"train": 18, "validation": 2}
    np.savez(tmp_path / "a.npz", x_train=random_pixels(30, 12, 16, 3), x_test=random_pixels(5, 12, 16, 3, seed=1))
    data = load_data(f"arrays:{tmp_path / 'a.npz'}", labels="none", image_size=(12, 16))
    check_unlabelled(data)
    assert {part: len(split) for part, split in data.parts.items()} == {"train": 27, "validation": 3, "test": 5}


def test_nothing_to_train_on(tmp_path):
    (tmp_path / "empty" / "a").mkdir(parents=True)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "0.png").write_text("no picture")
    np.savez(tmp_path / "a.npz", images=random_pixels(3, 12, 16, 3))
    settings = {"labels": "none", "image_size": 8}
    with one_line_error(r"^data: received 'folder:.*empty' with no images; allowed: a folder of images \(\.jpg"):
        load_data(f"folder:{tmp_path / 'empty'}", **settings)
    with one_line_error(r"^data: received 'folder:.*nowhere': there is no such folder; allowed: folder:PATH$"):
        load_data(f"folder:{tmp_path / 'nowhere'}", **settings)
    with (
        one_line_error(r"^data: received 'folder:.*broken' without readable training images; allowed: a data set with some$"),
        pytest.warns(UserWarning, match=r"skipped 1 of 1 images"),
    ):
        load_data(f"folder:{tmp_path / 'broken'}", **settings)
    with one_line_error("^x_train: received none in .*, which has images; allowed: an array$"):
        load_data(f"arrays:{tmp_path / 'a.npz'}", **settings)


def test_subset():
    """Each class in proportion, never without an image; validation and test images stay."""
    settings = {"image_size": 8, "channels": 1, "seed": 2}
    whole, part = load_data("digits", **settings), load_data("digits", subset=100, **settings)
    assert len(part.train) == 100
    counts, full = np.bincount(part.train.labels), np.bincount(whole.train.labels)
    assert abs(counts - 100 * full / len(whole.train)).max() < 1
    assert set(rows(part.train)) <= set(rows(whole.train))
    for name in ("validation", "test"):
        assert rows(part.parts[name]) == rows(whole.parts[name])
    assert part.fingerprint == whole.fingerprint
    assert len(load_data("digits", subset=0.5, **settings).train) == round(0.5 * len(whole.train))
    assert len(load_data("digits", subset=10, **settings).train) == 10
    assert rows(load_data("digits", subset=100, **settings | {"seed": 3}).train) != rows(part.train)
    for received, message in ((10_000, "a number below 1,294"), (1.5, "a share from 0"), (True, "a share")):
        with one_line_error(f"^subset: received {received}; allowed: .*{message}"):
            load_data("digits", subset=received, **settings)
    with one_line_error("^subset: received 1,287 of 1,294 images; allowed: at most 1,284"):
        load_data("digits", subset=7, **settings)
