"""Atomic files and folders, and the readers of YAML and JSON."""

import os

import pytest
from helpers import dead_process, one_line_error

from keras_vit.files import (
    atomic_folder,
    atomic_path,
    partial_prefix,
    plain_json,
    read_json,
    read_json_or_none,
    read_yaml,
    remove_abandoned,
)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def break_off(path):
    path.write_text("broken")
    raise KeyError


def fill(folder, text):
    (folder / "a.txt").write_text(text)


def test_a_file_is_replaced_at_the_end_only(tmp_path):
    path = tmp_path / "deep" / "file.txt"
    for text in ("old", "new"):
        with atomic_path(path) as temporary:
            temporary.write_text(text)
            assert temporary.suffix == ".txt"
            assert not path.exists() if text == "old" else path.read_text() == "old"
    with pytest.raises(KeyError), atomic_path(path) as temporary:
        break_off(temporary)
    assert path.read_text() == "new"
    assert names(path.parent) == ["file.txt"]


def test_a_folder_is_there_at_the_end_only(tmp_path):
    path = tmp_path / "deep" / "out"
    with pytest.raises(KeyError), atomic_folder(path) as folder:
        break_off(folder / "a.txt")
    assert names(tmp_path) == []  # nor the parent that was made for it
    with atomic_folder(path) as folder:
        fill(folder, "old")
        (folder.parent / "scratch").write_text("")
        assert not path.exists()
    assert names(path) == ["a.txt"]
    assert path.stat().st_mode == path.parent.stat().st_mode
    with pytest.raises(OSError, match="deep/out") as caught, atomic_folder(path) as folder:
        fill(folder, "another")
    assert caught.value.filename == str(path)
    assert (path / "a.txt").read_text() == "old"
    with atomic_folder(path, overwrite=True) as folder:
        (folder / "b.txt").write_text("new")
    assert names(path) == ["b.txt"]
    assert names(path.parent) == ["out"]


def test_a_folder_that_cannot_be_replaced_stays(tmp_path, monkeypatch):
    path, replace = tmp_path / "out", os.replace
    with atomic_folder(path) as folder:
        fill(folder, "old")

    def full(source, target):
        if source.name == "new":
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"), atomic_folder(path, overwrite=True) as folder:
        fill(folder, "new")
    assert (path / "a.txt").read_text() == "old"
    assert names(tmp_path) == ["out"]


def test_leftovers_of_killed_processes_go_and_those_of_living_ones_stay(tmp_path):
    dead = dead_process()
    kept = [f"{partial_prefix(os.getppid())}x", ".partial-elsewhere-1-x", ".partial-x.csv"]
    for name in (f"{partial_prefix(dead)}x", f"{partial_prefix(dead)}y.npy", *kept):
        (tmp_path / name).write_text("")
    (tmp_path / f"{partial_prefix(dead)}z" / "new").mkdir(parents=True)
    remove_abandoned(tmp_path)
    assert names(tmp_path) == sorted(kept)


def test_json(tmp_path):
    path = tmp_path / "a.json"
    assert read_json_or_none(path) is None
    with pytest.raises(ValueError, match=r"^checkpoint: '.*a.json' cannot be read as JSON \(.*No such file"):
        read_json(path, "checkpoint")
    path.write_text('{"a": [1, 2]}')
    assert read_json(path, "checkpoint") == read_json_or_none(path) == {"a": [1, 2]}
    for text, message in (('{"a": ', "cannot be read as JSON"), ("[1]", "holds a list; allowed: a JSON object"), ("\xff", "JSON")):
        path.write_text(text, encoding="latin-1")
        with pytest.raises(ValueError, match=rf"^checkpoint: '.*a.json' {message}|{message}") as caught:
            read_json(path, "checkpoint")
        assert "\n" not in str(caught.value)
    assert read_json_or_none(path) is None


def test_yaml(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("a: [1, 2]")
    assert read_yaml(path) == {"a": [1, 2]}
    path.write_text("a: [1,\nb: 2")
    with pytest.raises(ValueError, match=r"a.yaml: not valid YAML .* line 2") as caught:
        read_yaml(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &x [1]\nb: *x", r"received an alias; allowed: the values themselves .*line 2, column 4"),
        ("&a [*a]", "received an alias"),
        ("a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]", "received an alias"),
        ("[" * 900 + "]" * 900, "received values in values; allowed: a depth of 32"),
        ("- " * 5000, "received values in values; allowed: a depth of 32"),
        ("[" * 100_000, "received values in values; allowed: a depth of 32"),
        ("[" + "1," * 60_000 + "]", "received more values; allowed: 50,000"),
        ("x" * 2**20 + "x", "received more than 1,048,576 bytes; allowed: 1,048,576"),
        ("{a: 1, b: 2, a: 3}", "received a key twice; allowed: names .*line 1, column 14"),
        ("? [1]\n: 2", "received a list or mapping as a key"),
        ("!!python/object/apply:os.system [ls]", "received the tag .*os.system; allowed: none"),
        ("%TAG ! tag:yaml.org,2002:python/\n---\n!none x", "received the tag tag:yaml.org,2002:python/none"),
        ("!!binary aGk=", "received the tag tag:yaml.org,2002:binary"),
        ("a: " + "1" * 101, "received a number of 101 characters; allowed: 100"),
        ("a: " + ":".join(["1"] * 1000), "received a number of 1,999 characters"),
        ("a: 0x_", "invalid literal for int"),
    ],
    ids=lambda value: value[:20],
)
def test_yaml_that_is_made_to_harm(tmp_path, text, message):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with one_line_error(rf"a.yaml: not valid YAML or JSON in UTF-8: .*{message}"):
        read_yaml(path)


def test_yaml_is_what_json_can_hold(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("[1e-3, 1.5E+2, 2001-01-01, <<, =, null, true, '3', 1_000]")
    assert read_yaml(path) == [0.001, 150.0, "2001-01-01", "<<", "=", None, True, "3", 1000]


def test_json_is_bounded(tmp_path):
    path = tmp_path / "a.json"
    for text in ("[" * 100_000, "[" * 33 + "]" * 33, '{"a":' * 40 + "1" + "}" * 40):
        path.write_text(text)
        with one_line_error("^checkpoint: '.*a.json' cannot be read as JSON .*received values in values; allowed: a depth of 32"):
            read_json(path, "checkpoint")
        assert read_json_or_none(path) is None
    assert plain_json("[" * 32 + "]" * 32)
    assert plain_json("[" * 33 + "]" * 33, depth=33)
    path.write_text('{"a": "' + "x" * 2**24 + '"}')
    with one_line_error("received more than 16,777,216 bytes"):
        read_json(path, "checkpoint")
