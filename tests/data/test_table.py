"""CSV files as a data set: columns, paths, splits, several labels, and every mistake that is named."""

import os
import re

import numpy as np
import pytest
from helpers import one_line_error
from PIL import Image

from keras_vit.data.dataset import load_data, short_name


def write(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)


@pytest.fixture
def folder(tmp_path):
    """Twenty pictures in images/, and a function that writes a CSV file beside it."""
    for number in range(20):
        write(tmp_path / "images" / f"{number}.png", number)
    return tmp_path


def table(folder, header, rows, name="photos.csv", encoding="utf-8", delimiter=","):
    text = "\n".join([header, *(delimiter.join(map(str, row)) for row in rows)]) + "\n"
    (folder / name).write_bytes(text.encode(encoding))
    return f"csv:{folder / name}"


def rows_of(count=20, names=("cat", "dog")):
    return [(f"images/{number}.png", names[number % len(names)]) for number in range(count)]


def load(name, **settings):
    return load_data(name, **{"image_size": 8, "validation": 0, **settings})


def refused(name, message, **settings):
    with one_line_error(f"^data: received '{re.escape(name)}'{message}"):
        load(name, **settings)


def image(number):
    return np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("header", "delimiter", "encoding"),
    [
        ("path,label", ",", "utf-8"),
        ("File;Class", ";", "utf-8-sig"),  # as Excel writes it in many countries
        (" image \tlabels", "\t", "utf-8"),
        ("FILENAME,category", ",", "utf-8-sig"),
    ],
)
def test_columns_and_delimiters(folder, header, delimiter, encoding):
    data = load(table(folder, header, rows_of(names=("café", "東京")), delimiter=delimiter, encoding=encoding))
    assert data.class_names == ["café", "東京"]
    assert (len(data.train), len(data.test), data.multi_label) == (16, 4, False)
    seen = {picture.tobytes() for part in (data.train, data.test) for picture in part.images(np.arange(len(part)))}
    assert seen == {image(number).tobytes() for number in range(20)}


def test_split_column_more_columns_and_paths_elsewhere(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "far.png"
    write(elsewhere, 99)
    rows = [(number, path, label, "Train") for number, (path, label) in enumerate(rows_of())]
    rows[3] = (3, *rows[3][1:3], "val")
    rows[4] = (4, *rows[4][1:3], "TEST")
    rows.append((20, elsewhere, "dog", "test"))
    rows.append((21, "images/../images/quoted.png", '"dog"', "test"))
    write(folder / "images" / "quoted.png", 98)
    data = load(table(folder, "id,path,label,split", rows), validation=None)
    assert [len(part) for part in (data.train, data.validation, data.test)] == [18, 1, 3]
    np.testing.assert_array_equal(data.test.images(np.arange(3)), [image(4), image(99), image(98)])
    assert data.test.labels.tolist() == [0, 1, 1]
    np.testing.assert_array_equal(data.validation.images(np.array([0])), [image(3)])


def test_the_fingerprint_is_that_of_the_content(folder):
    name = table(folder, "path,label", rows_of())
    first = load(name)
    assert load(table(folder, "file,class", rows_of(), "other.csv")).fingerprint == first.fingerprint
    assert load(table(folder, "path,label", [*rows_of(19), ("images/19.png", "cat")])).fingerprint != first.fingerprint
    assert short_name(name) == "photos"


def test_several_labels_an_image(folder):
    rows = [(f"images/{number}.png", label) for number, label in enumerate(["cat", "dog|cat", " dog | bird", "", "bird"] * 4)]
    data = load(table(folder, "path,labels", rows))
    assert data.multi_label
    assert data.class_names == ["bird", "cat", "dog"]
    assert "any number an image" in data.notes[0]
    assert any(note.startswith("labels: blanks around 4 are left out, first ' dog | bird' in line 4") for note in data.notes)
    expected = dict(
        zip([image(n).tobytes() for n in range(20)], [[0, 1, 0], [0, 1, 1], [1, 0, 1], [0, 0, 0], [1, 0, 0]] * 4, strict=True)
    )
    for part in (data.train, data.test):
        for picture, labels in zip(part.images(np.arange(len(part))), part.labels, strict=True):
            assert labels.tolist() == expected[picture.tobytes()]
    assert len(data.test) == 4
    plain = load(table(folder, "path,labels", rows_of()), labels="multi")
    assert plain.train.labels.sum(axis=1).tolist() == [1] * 16
    names = load(table(folder, "path,labels", [(path, label.replace("cat", "a|b")) for path, label in rows_of()]), labels="single")
    assert (names.class_names, names.multi_label) == (["a|b", "dog"], False)


def test_missing_and_broken_files_are_counted_named_and_skipped(folder):
    (folder / "images" / "2.png").write_bytes(b"no picture")
    (folder / "images" / "3.png").unlink()
    os.mkfifo(folder / "images" / "pipe.png")
    rows = [*rows_of(), ("images/none.png", "cat"), ("images/pipe.png", "dog")]
    with pytest.warns(UserWarning, match="skipped 4 of 22 images") as caught:
        data = load(table(folder, "path,label", rows))
    assert "images/2.png: cannot identify image file" in str(caught[0].message)
    assert "images/3.png: No such file or directory" in str(caught[0].message)
    assert len(data.train) + len(data.test) == 18
    several = table(folder, "path,label", [(path, f"{label}|all") for path, label in rows])
    with pytest.warns(UserWarning, match="skipped 4 of 22 images"):
        data = load(several)
    assert len(data.train) + len(data.test) == 18
    with (
        pytest.warns(UserWarning, match="skipped 1 of 17"),
        one_line_error("with no readable image of class 'owl'; allowed: one or more$"),
    ):
        load(table(folder, "path,label", [*rows_of()[4:], ("images/none.png", "owl")]))


def test_what_is_no_table(folder):
    refused(f"csv:{folder / 'none.csv'}", r": there is no such file; allowed: csv:FILE$")
    refused("csv:", r": there is no such file; allowed: csv:FILE$")
    refused(f"csv:{folder / 'images'}", r": there is no such file; allowed: csv:FILE$")
    (folder / "empty.csv").write_bytes(b"")
    refused(f"csv:{folder / 'empty.csv'}", " without a column for the path; its columns: none; allowed: path, file, ")
    refused(table(folder, "path,label", []), " without rows; allowed: a row an image$")
    refused(
        table(folder, "path,label", rows_of(names=("café", "x")), encoding="latin-1"),
        r", which is not in UTF-8 \(byte 0xe9\); allowed",
    )
    refused(
        table(folder, "path,label", [*rows_of(), ('"images/0.png', "cat")]), r", which cannot be read \(unexpected end of data\)"
    )
    refused(table(folder, "path,label", [*rows_of(2), ("images/2.png",)]), " with 1 cells in line 4; allowed: 2, as the header$")


def test_columns_that_are_missing_or_ambiguous(folder):
    refused(
        table(folder, "photo,label,when", []),
        " without a column for the path; its columns: photo, label, when; allowed: path, file, ",
    )
    refused(table(folder, "path,kind", []), " without a column for the label; its columns: path, kind; allowed: label, labels, ")
    refused(table(folder, "path,ki\x0cnd", []), r" without a column for the label; its columns: path, ki\\x0cnd; allowed: label, ")
    refused(table(folder, "path,label,Class", []), " with 2 columns for the label: label, Class; allowed: one of label, ")
    refused(table(folder, "path,path,label", []), " with 2 columns for the path: path, path; allowed: one of ")


def test_rows_that_cannot_be_used(folder):
    rows = rows_of()
    refused(table(folder, "path,label", [*rows, ("images/0.png", "dog")]), " with 'images/0.png' in lines 2 and 22; allowed: once")
    refused(table(folder, "path,label", [*rows, ("", "dog")]), " with path '' in line 22; allowed: a file, relative to ")
    refused(table(folder, "path,label", [*rows, ("images/x.png", "")]), " with label '' in line 22; allowed: a class ")
    refused(
        table(folder, "path,label", [*rows, ("images/x.png", "a||b")]), r" with label 'a\|\|b' in line 22; allowed: an empty cell "
    )
    refused(
        table(folder, "path,label", [*rows, ("images/x.png", "Cat"), ("images/y.png", "CAT ")]),
        r" with labels 'cat' \(line 2\) and 'Cat' \(line 22\) and 'CAT' \(line 23\), which differ in case or blanks only",
    )
    refused(table(folder, "path,label", rows_of(names=("cat",))), " with class 'cat' alone; allowed: two classes or more$")
    splits = [(path, label, "train") for path, label in rows]
    refused(
        table(folder, "path,label,split", [*splits, ("images/x.png", "cat", "dev")]),
        " with split 'dev' in line 22; allowed: train, ",
    )
    refused(
        table(folder, "path,label,split", [*splits, ("images/x.png", "owl", "test")]),
        " with label 'owl' in line 22; allowed, as in train: cat, dog$",
    )
    broken = [(path, label.replace("dog", '"do\ng"'), "train") for path, label in rows]
    refused(
        table(folder, "path,label,split", [*broken, ("images/x.png", "owl", "test")]),
        r" with label 'owl' in line 32; allowed, as in train: cat, do\\ng$",
    )
    tests = [(path, label, "test") for path, label in rows]
    refused(table(folder, "path,label,split", tests), " with rows of test alone; allowed: rows of train beside them$")


def test_blanks_around_a_label_do_not_make_a_class(folder):
    data = load(table(folder, "path,label", [*rows_of(19), ("images/19.png", " dog ")]))
    assert data.class_names == ["cat", "dog"]
    assert any(note == "labels: blanks around 1 are left out, first ' dog ' in line 21" for note in data.notes)


def test_a_class_with_one_image_stays_in_train(folder):
    for several in (False, True):
        rows = [*rows_of(19), ("images/19.png", "owl")]
        rows = [(path, f"{label}|{'all' if label != 'owl' else 'owl'}") for path, label in rows] if several else rows
        data = load(table(folder, "path,label", rows), validation=4)
        owl = data.class_names.index("owl")
        labels = data.train.labels
        assert (labels[:, owl].sum() if several else (labels == owl).sum()) == 1
