"""`.npz` archives that are damaged or made to harm: one line, and no array is made of what a header claims."""

import io
import tracemalloc
import zipfile

import numpy as np
import pytest
from helpers import one_line_error

from keras_vit import archives
from keras_vit.archives import open_arrays


def header(shape, kind="<f4"):
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, {"descr": kind, "fortran_order": False, "shape": shape})
    return out.getvalue()


def npy(array):
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def archive(path, members, method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", method) as file:
        for name, content in members:
            file.writestr(name, content)
    return path


def test_what_numpy_writes_is_read(tmp_path):
    arrays = {"a": np.arange(6.0).reshape(2, 3), "b/c": np.array([True, False]), "d": np.uint8(3), "e": np.zeros((0, 4), ">i2")}
    arrays |= {"f": np.asfortranarray(np.arange(12).reshape(3, 4)), "g": np.zeros(2, "V2")}
    for save in (np.savez, np.savez_compressed):
        save(tmp_path / "a.npz", **arrays)
        found = open_arrays(tmp_path / "a.npz")
        assert found.shapes == {name: array.shape for name, array in arrays.items()}
        assert sum(array.nbytes for array in arrays.values()) < found.bytes < 2000
        for name, array in arrays.items():
            np.testing.assert_array_equal(found.read(name), array)
            assert found.read(name).dtype == array.dtype


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a.npy", npy(np.array([{}], dtype=object)))], "'a.npy' holds Python objects, which are never read"),
        ([("a.npy", npy(np.zeros(2, [("x", "f4")])))], r"'a.npy': received dtype\(\[\('x', '<f4'\)\]\); allowed: numbers"),
        ([("a.npy", npy(np.array(["x"])))], r"'a.npy': received dtype\('<U1'\); allowed: numbers"),
        ([("a.npy", npy(np.zeros(2, complex)))], "received dtype.*complex128.*; allowed: numbers"),
        ([("a.npy", npy(np.zeros(2, "M8[s]")))], "received dtype.*M8.*; allowed: numbers"),
        ([("a.npy", header((1 << 40,)) + bytes(99))], r"received shape \(1099511627776,\) of float32; allowed: its 99 bytes"),
        ([("a.npy", header((4,)) + bytes(15))], r"received shape \(4,\) of float32; allowed: its 15 bytes"),
        ([("a.npy", header((4,)) + bytes(17))], r"received shape \(4,\) of float32; allowed: its 17 bytes"),
        ([("a.npy", header((-4, -1)) + bytes(16))], r"received shape \(-4, -1\) of float32; allowed: its 16 bytes"),
        ([("a.npy", header((1 << 62, 1 << 62)))], r"received shape .* of float32; allowed: its 0 bytes"),
        ([("a.npy", b"\x93NUMPY\x03\x00" + bytes(99))], r"received version \(3, 0\); allowed"),
        ([("a.npy", b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65535)], "allowed|large|header"),
        ([("a.npy", b"\x93NUMPY\x01\x00\x10\x00" + b"__import__('os')")], "malformed node"),
        ([("a.npy", b"no array")], "magic string"),
        ([("a.npy", b"")], "EOF"),
        ([("a.npy", npy(np.zeros(2))), ("a.npy", npy(np.ones(2)))], r"received 'a.npy'; allowed: arrays \(.npy\), each once"),
        ([("a.txt", b"hello")], r"received 'a.txt'; allowed: arrays"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_headers_that_lie(tmp_path, members, message):
    path = archive(tmp_path / "a.npz", members)
    tracemalloc.start()
    with one_line_error(message):
        open_arrays(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10e6


def test_more_arrays_than_any_model_has(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_MEMBERS", 3)
    with one_line_error("received 4 arrays; allowed: 3"):
        open_arrays(archive(tmp_path / "a.npz", [(f"{n}.npy", b"") for n in range(4)]))


def test_compression_and_encryption(tmp_path):
    for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        with one_line_error("'a.npy': received another compression, or encryption; allowed: deflate"):
            open_arrays(archive(tmp_path / "a.npz", [("a.npy", npy(np.zeros(2)))], method))
    content = archive(tmp_path / "a.npz", [("a.npy", npy(np.zeros(2)))]).read_bytes()
    for place, value in ((8, 1), (10, 99)):  # of the central directory: the flags, the method
        changed = bytearray(content)
        changed[content.index(b"PK\x01\x02") + place] |= value
        (tmp_path / "a.npz").write_bytes(changed)
        with one_line_error("received another compression, or encryption"):
            open_arrays(tmp_path / "a.npz")
    for changed in (b"", b"PK\x03\x04", content[:-20], b"x" * 100):
        (tmp_path / "a.npz").write_bytes(changed)
        with one_line_error("not a zip file"):
            open_arrays(tmp_path / "a.npz")
    with one_line_error("No such file"):
        open_arrays(tmp_path / "none.npz")


def test_damage_that_a_checksum_finds(tmp_path):
    for save, message in ((np.savez, "'a': Bad CRC-32"), (np.savez_compressed, "'a': .*(CRC|decompress)")):
        save(tmp_path / "a.npz", a=np.random.default_rng(0).normal(size=1000))
        content = bytearray((tmp_path / "a.npz").read_bytes())
        content[1000] ^= 1
        (tmp_path / "a.npz").write_bytes(content)
        with one_line_error(message):
            open_arrays(tmp_path / "a.npz").read("a")
