"""`.keras` files that are damaged or made to harm: one line, before Keras sees them, in little time and memory."""

import io
import json
import time
import tracemalloc
import zipfile
from concurrent.futures import ThreadPoolExecutor

import h5py
import keras
import numpy as np
import pytest
from helpers import make_model, numpy, one_line_error

from keras_vit.model import saved
from keras_vit.model.saved import CONFIG, METADATA, WEIGHTS, load_any_keras, load_keras

LAMBDA = {
    "module": "keras.layers",
    "class_name": "Lambda",
    "config": {"name": "l", "function": {"class_name": "__lambda__", "config": {"code": "4wEAAAA="}}},
    "registered_name": None,
}


@pytest.fixture(scope="module")
def members(tmp_path_factory):
    """The three files of a saved model."""
    path = tmp_path_factory.mktemp("saved") / "model.keras"
    make_model("gap").save(path)
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture
def write(members, tmp_path):
    """Writes a .keras file of these members; arguments replace them, by name or as pairs."""

    def write(changes=(), further=(), method=zipfile.ZIP_STORED):
        path = tmp_path / "model.keras"
        with zipfile.ZipFile(path, "w", method) as archive:
            for name, content in [*{**members, **dict(changes)}.items(), *further]:
                archive.writestr(name, content)
        return path

    return write


def config_with(members, **changes):
    """The configuration of the model with other values at its top, or in `model` those of the ViTConfig."""
    tree = json.loads(members[CONFIG])
    tree["config"]["config"] |= changes.pop("model", {})
    tree["config"] |= changes.pop("config", {})
    return {CONFIG: json.dumps(tree | changes)}


def weights_with(members, change):
    """The weights after `change(file)`."""
    content = io.BytesIO(members[WEIGHTS])
    with h5py.File(content, "a") as file:
        change(file)
    return {WEIGHTS: content.getvalue()}


@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize` method")
@pytest.mark.usefixtures("little_garbage")
def test_an_intact_file_is_the_model_that_was_saved(tmp_path):
    for name, dtype in (("gap", None), ("rotary", "mixed_bfloat16"), ("gap", "int8")):
        model = make_model(name)
        if dtype == "int8":
            model.quantize("int8")
        elif dtype:
            model = type(model).from_config(model.get_config() | {"dtype": dtype})
        model.save(tmp_path / "a.keras")
        loaded = load_keras(tmp_path / "a.keras")
        assert loaded.config == model.config
        assert [weight.path for weight in loaded.weights] == [weight.path for weight in model.weights]
        for ours, theirs in zip(loaded.weights, model.weights, strict=True):
            np.testing.assert_array_equal(numpy(ours), numpy(theirs))


def test_archives_that_keras_does_not_write(write, members, tmp_path):
    for name in ("../../evil.txt", "/tmp/evil.txt", "assets/a.txt"):
        message = rf"received the members \[.*'{name}'\]; allowed: metadata.json, config.json, model.weights.h5"
        with one_line_error(rf"^model: received '.*model.keras'; allowed: an intact .keras file of a ViT .*\({message}\)$"):
            load_keras(write(further=[(name, "x")]))
    with pytest.warns(UserWarning, match="Duplicate name"):
        path = write(further=[(CONFIG, "{}")])
    with one_line_error("received the members .*'config.json'.*'config.json'"):
        load_keras(path, "checkpoint")
    with one_line_error(r"received metadata.json, compressed or encrypted; allowed: members that are neither"):
        load_keras(write({CONFIG: b" " * 10_000_000}, method=zipfile.ZIP_DEFLATED))
    with one_line_error(r"config.json: received 5,000,000 bytes; allowed: 4,194,304"):
        load_keras(write({CONFIG: b" " * 5_000_000}))
    content = bytearray(write().read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1  # the flag of encryption
    (tmp_path / "model.keras").write_bytes(content)
    with one_line_error("received metadata.json, compressed or encrypted"):
        load_keras(tmp_path / "model.keras")
    for content in (b"", b"PK", b"x" * 1000, write().read_bytes()[:-30]):
        (tmp_path / "model.keras").write_bytes(content)
        with one_line_error("File is not a zip file"):
            load_keras(tmp_path / "model.keras")


def test_a_flipped_bit_is_found_wherever_it_is(write, tmp_path):
    content = write().read_bytes()
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        start = archive.getinfo(WEIGHTS).header_offset + 64
    for place in rng.integers(start, archive.start_dir, 20):
        changed = bytearray(content)
        changed[place] ^= 1 << rng.integers(8)
        (tmp_path / "model.keras").write_bytes(changed)
        with one_line_error("Bad CRC-32 for file 'model.weights.h5'"):
            load_keras(tmp_path / "model.keras")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (b"[" * 100_000, "received values in values; allowed: a depth of 100"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "received values in values; allowed: a depth of 100"),
        (b'{"a":' * 150 + b"1" + b"}" * 150, "received values in values; allowed: a depth of 100"),
        (b"{", "Expecting property name"),
        (b"\xff", "codec can't decode"),
        (b"[]", r"config.json: received \[\]; allowed: a mapping"),
        (b'{"registered_name": 3}', "config.json: received"),
        (json.dumps(LAMBDA).encode(), "it holds 'Lambda'"),
    ],
)
def test_configurations_that_are_none(write, config, message):
    began = time.monotonic()
    with one_line_error(message):
        load_keras(write({CONFIG: config}))
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"depth": 1_000_000}}, "config.depth: received 1000000; allowed: an integer from 1 to 1024"),
        ({"model": {"depth": 1000}}, r"received [\d,]+ bytes in 35 weights; allowed: 14,007, of its configuration"),
        ({"model": {"width": 2**16, "num_heads": 1}}, r"received [\d,]+ bytes in 35 weights; allowed"),
        ({"model": {"image_size": [60000, 60000], "position": "sincos2d"}}, "config.image_size: received"),
        ({"model": {"image_size": [3072, 6144], "position": "sincos2d", "width": 256}}, "image_size: .*positions of at most"),
        ({"model": {"num_classes": [7]}}, r"config.num_classes: received \[7\]; allowed: an integer"),
        ({"model": {"speed": 1}}, "config: received 'speed'"),
        ({"config": {"frozen": "x"}}, "frozen: received 'x'; allowed: a list"),
        ({"config": {"further": LAMBDA}}, "config: received 'further'; allowed: config, name, dtype, frozen"),
        ({"config": {"dtype": LAMBDA}}, "dtype: received .*; allowed: a dtype policy of Keras"),
        (
            {"config": {"dtype": {"module": "keras", "class_name": "DTypePolicyMap", "config": {"policy_map": {"a": LAMBDA}}}}},
            "dtype: received .*'Lambda'.*; allowed: a dtype policy",
        ),
        (
            {
                "config": {
                    "dtype": {
                        "module": "keras.dtype_policies",
                        "class_name": "QuantizedFloat8DTypePolicy",
                        "config": {"mode": "float8", "source_name": "float32", "amax_history_length": 10**12},
                    }
                }
            },
            "amax_history_length: received 1000000000000; allowed",
        ),
        ({"registered_name": "keras_vit>Dense"}, "it holds 'ViT'"),
    ],
)
def test_configurations_that_no_vit_has(write, members, changes, message):
    began = time.monotonic()
    with one_line_error(message):
        load_keras(write(config_with(members, **changes)))
    assert time.monotonic() - began < 5


def huge(file):
    file["layers"].create_dataset("bomb", shape=(10**12,), dtype="float32")  # chunked by nothing: not stored


def virtual(file):
    layout = h5py.VirtualLayout(shape=(4,), dtype="float32")
    layout[:] = h5py.VirtualSource("/etc/passwd", "x", shape=(4,))
    file.create_virtual_dataset("virtual", layout)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (huge, r"/layers/bomb: received shape \(1000000000000,\); allowed: as many numbers as are stored"),
        (
            lambda file: file.create_dataset("bomb", shape=(10**12,), dtype="float32", chunks=(2**20,), compression="gzip"),
            "/bomb: received other than plain numbers in one piece",
        ),
        (
            lambda file: file.create_dataset("far", shape=(4,), dtype="float32", external=[("/etc/passwd", 0, 16)]),
            "/far: received other than plain numbers in one piece",
        ),
        (virtual, "/virtual: received other than plain numbers in one piece"),
        (lambda file: file.__setitem__("far", h5py.ExternalLink("/etc/passwd", "/x")), "far: received a ExternalLink; allowed"),
        (lambda file: file.__setitem__("near", h5py.SoftLink("/layers")), "near: received a SoftLink; allowed"),
        (
            lambda file: file.create_dataset("text", data=np.array(["a"], dtype=h5py.string_dtype())),
            "/text: received other than plain numbers in one piece",
        ),
        (
            lambda file: file.create_dataset("pairs", data=np.zeros(3, [("a", "f4")])),
            "/pairs: received other than plain numbers in one piece",
        ),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)[:20]),
)
def test_weights_that_are_elsewhere_or_not_what_they_say(write, members, change, message):
    path = write(weights_with(members, change))
    tracemalloc.start()
    with one_line_error(message):
        load_keras(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 50e6


def test_names_of_weights_that_are_no_text(write, members):
    """h5py has a SystemError for them; its lock is free afterwards, for other threads too."""
    path = write(weights_with(members, lambda file: h5py.h5g.create(file.id, b"\x80abc")))
    with one_line_error(r"allowed: an intact .keras file .* \('utf-8' codec can't decode byte 0x80 in position 0: .*\)$"):
        load_keras(path)
    intact = write()
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(load_keras, intact).result(timeout=60).config == make_model("gap").config


def test_missing_weights_are_named(write, members):
    def remove(file):
        del file["layers/dense/vars/0"]
        file.create_dataset("layers/other", data=np.zeros(1000, "float32"))

    with one_line_error("could not be loaded"):
        load_keras(write(weights_with(members, remove)))


def test_another_model_of_keras(tmp_path):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
    model.save(tmp_path / "a.keras")
    with one_line_error("it holds 'Sequential'"):
        load_keras(tmp_path / "a.keras")
    kernel = load_any_keras(tmp_path / "a.keras").weights[0]
    np.testing.assert_array_equal(numpy(kernel), numpy(model.weights[0]))
    model = keras.Sequential([keras.Input((2,)), keras.layers.Lambda(lambda x: x + 1)])
    model.save(tmp_path / "b.keras")
    with one_line_error("^model: received '.*b.keras'; allowed: an intact .keras file .*[Ll]ambda"):
        load_any_keras(tmp_path / "b.keras")


def test_keras_sees_no_file_that_was_refused(write, monkeypatch):
    monkeypatch.setattr(saved.keras.saving, "load_model", lambda *a, **k: pytest.fail("Keras was asked"))
    for changes in ({CONFIG: json.dumps(LAMBDA)}, {METADATA: b"{"}, {WEIGHTS: b"x" * 100}):
        with one_line_error("^model: "):
            load_keras(write(changes))
