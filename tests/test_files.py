"""Atomic files and folders, and the readers of YAML and JSON."""

import os

import pytest
from helpers import dead_process

from keras_vit.files import atomic_folder, atomic_path, partial_prefix, read_json, read_json_or_none, read_yaml, remove_abandoned


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
