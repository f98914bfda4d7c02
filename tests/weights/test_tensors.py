"""safetensors files that are damaged or made to harm: one line, and no more memory than the file."""

import json
import struct
import tracemalloc

import numpy as np
import pytest
from helpers import one_line_error

from keras_vit.weights import tensors
from keras_vit.weights.checkpoint import wrong
from keras_vit.weights.load import open_checkpoint
from keras_vit.weights.settings import read_setting
from keras_vit.weights.tensors import open_safetensors


def write(path, header, data=b"", length=None):
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + data)
    return path


def entry(start, end, shape, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def test_what_is_intact_is_read(tmp_path):
    path = write(
        tmp_path / "a.safetensors", {"a": entry(0, 8, [2]), "b": entry(8, 12, [1, 2], "BF16")}, b"\0\0\x80?\0\0\0@\x80?\0@"
    )
    shapes, read = open_safetensors({path: ["a", "b"]})
    assert shapes == {"a": (2,), "b": (1, 2)}
    for name in shapes:
        np.testing.assert_array_equal(np.asarray(read(name)).astype("float32").ravel(), [1, 2])
    with one_line_error("allowed: a file with 'c', as the index says"):
        open_safetensors({path: ["c"]})


def test_names_and_settings_that_a_terminal_would_obey(tmp_path):
    settings = json.dumps({"architecture": "vit_tiny_patch4_8", "model_args": {"img_size": 8}})
    names = ("cls_token", "a\nb", "\x1b[31m")
    path = write(tmp_path / "a.safetensors", {"__metadata__": {"timm": settings}, **{name: entry(0, 0, [0]) for name in names}})
    with one_line_error("^checkpoint: ") as caught:
        open_checkpoint(path)
    assert str(caught.value).isprintable()
    with one_line_error(r"allowed: a\\nb with \(it has c\\x1b\)$"):
        raise wrong(path, "a\nb with", "it has c\x1b")
    with one_line_error(r"^config.json: depth: received 'xxx.*xxx'; allowed: int$") as caught:
        read_setting({"depth": "x" * 10**6}, "depth", int)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("header", "length", "message"),
    [
        ({"a": entry(0, 8, [2]), "b": entry(4, 12, [2])}, None, "invalid offset"),  # overlapping
        ({"a": entry(0, 4, [1]), "b": entry(8, 12, [1])}, None, "invalid offset"),  # with a gap
        ({"a": entry(0, 400, [100])}, None, "invalid|incomplete|not fully|MetadataIncomplete"),
        ({"a": entry(0, 12, [2**40])}, None, "invalid shape"),
        ({"a": entry(0, 12, [2**63, 2**63, 3])}, None, "overflow|invalid shape"),
        ({"a": entry(12, 0, [3])}, None, "invalid offset"),
        ({"a": entry(0, 12, [-3])}, None, "invalid JSON"),
        ({"a": entry(0, 12, [3], "OBJECT")}, None, "unknown variant"),
        (b"[" * 100_000, None, "invalid JSON"),
        (b'{"a":' * 100_000, None, "invalid JSON"),
        (b"\xff\xfe", None, "UTF-8"),
        (b"", None, "invalid JSON"),
        ({}, 2**63, "a header of at most 16,777,216 bytes .it has 9,223,372,036,854,775,808"),
        ({}, 2**24 + 1, "a header of at most 16,777,216 bytes .it has 16,777,217"),
        ({}, 2**20, "invalid header length"),
    ],
)
def test_headers_that_lie(tmp_path, header, length, message):
    path = write(tmp_path / "a.safetensors", header, bytes(12), length)
    tracemalloc.start()
    with one_line_error(rf"^checkpoint: received '.*a.safetensors'; allowed: .*({message})"):
        open_safetensors({path: None})
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5e6


@pytest.mark.parametrize(
    "tensor",
    [
        entry(0, 8, [1], "C64"),
        entry(0, 8, [8], "F8_E4M3"),
        entry(0, 0, [2**62, 0]),
        entry(0, 8, [2] + [1] * 99),
    ],
)
def test_tensors_that_numpy_has_not(tmp_path, tensor):
    path = write(tmp_path / "a.safetensors", {"a": tensor}, bytes(tensor["data_offsets"][1]))
    shapes, read = open_safetensors({path: None})
    assert list(shapes) == ["a"]
    with one_line_error(r"allowed: tensors of real numbers that NumPy knows \('a' is "):
        read("a")


def test_files_that_are_none(tmp_path):
    for content in (b"", b"1234567", b"x" * 100):
        (tmp_path / "a.safetensors").write_bytes(content)
        with one_line_error("^checkpoint: received .*; allowed: (an intact safetensors file|a header)"):
            open_checkpoint(tmp_path / "a.safetensors", architecture="vit_tiny_patch16_224")
    with one_line_error("allowed: an existing file"):
        open_safetensors({tmp_path: None})
    with one_line_error("allowed: an existing file"):
        open_safetensors({tmp_path / "none.safetensors": None})


def test_an_error_while_a_file_is_used_is_not_taken_for_damage(tmp_path):
    path = write(tmp_path / "a.safetensors", {"a": entry(0, 4, [1])}, bytes(4))
    with pytest.raises(KeyError, match="mine"), tensors.opened(path):
        raise KeyError("mine")
