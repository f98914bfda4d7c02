"""Weights of vision_transformer and big_vision, read from files built here name by name, and judged by timm's own reader."""

import io
import tracemalloc
import zipfile

import numpy as np
import pytest
from helpers import logits, one_line_error, random
from reference import Reference, weights_of

from keras_vit import ViTConfig, build_vit, load_model, open_checkpoint, save_weights
from keras_vit.parity import randomise

LOGITS = 1e-4  # absolute, float32 against float64 or float32, logits of a few units
WIDTH, HEADS, HIDDEN, DEPTH, PATCH, CLASSES = 24, 3, 40, 2, 8, 5


def images_of(size=(32, 32)):
    return random(3, *size, 3, seed=1)


def block_names(attention, second_norm, mlp):
    d, h = WIDTH // HEADS, HEADS
    shapes = {"LayerNorm_0/scale": (WIDTH,), "LayerNorm_0/bias": (WIDTH,)}
    shapes |= {f"{second_norm}/scale": (WIDTH,), f"{second_norm}/bias": (WIDTH,)}
    for name in ("query", "key", "value"):
        shapes |= {f"{attention}/{name}/kernel": (WIDTH, h, d), f"{attention}/{name}/bias": (h, d)}
    shapes |= {f"{attention}/out/kernel": (h, d, WIDTH), f"{attention}/out/bias": (WIDTH,)}
    shapes |= {f"{mlp}/Dense_0/kernel": (WIDTH, HIDDEN), f"{mlp}/Dense_0/bias": (HIDDEN,)}
    return shapes | {f"{mlp}/Dense_1/kernel": (HIDDEN, WIDTH), f"{mlp}/Dense_1/bias": (WIDTH,)}


def common(tokens):
    shapes = {"embedding/kernel": (PATCH, PATCH, 3, WIDTH), "embedding/bias": (WIDTH,)}
    shapes |= {"Transformer/encoder_norm/scale": (WIDTH,), "Transformer/encoder_norm/bias": (WIDTH,)}
    return shapes | {"head/kernel": (WIDTH, CLASSES), "head/bias": (CLASSES,)}


def augreg():
    shapes = common(17) | {"cls": (1, 1, WIDTH), "Transformer/posembed_input/pos_embedding": (1, 17, WIDTH)}
    for index in range(DEPTH):
        block = block_names("MultiHeadDotProductAttention_1", "LayerNorm_2", "MlpBlock_3")
        shapes |= {f"Transformer/encoderblock_{index}/{name}": shape for name, shape in block.items()}
    return shapes


def in21k():
    shapes = augreg() | {"pre_logits/kernel": (WIDTH, 12), "pre_logits/bias": (12,), "head/kernel": (12, CLASSES)}
    return {f"opt/target/{name}": shape for name, shape in shapes.items()} | {"opt/state/step": ()}


def sam():
    shapes = {name: shape for name, shape in augreg().items() if name != "cls"}
    return shapes | {"Transformer/posembed_input/pos_embedding": (1, 16, WIDTH)}


def big_vision(pool="gap", prefix="params/", scan=False):
    shapes = common(16) | {"pos_embedding": (1, 16, WIDTH)}
    block = block_names("MultiHeadDotProductAttention_0", "LayerNorm_1", "MlpBlock_0")
    if scan:
        shapes |= {f"Transformer/encoderblock/{name}": (DEPTH, *shape) for name, shape in block.items()}
    else:
        shapes |= {f"Transformer/encoderblock_{i}/{name}": shape for i in range(DEPTH) for name, shape in block.items()}
    if pool == "tok":
        shapes["cls"] = (1, 1, WIDTH)
    if pool == "map":
        head = block_names("MultiHeadDotProductAttention_0", "LayerNorm_0", "MlpBlock_0")
        shapes |= {f"MAPHead_0/{name}": shape for name, shape in head.items()} | {"MAPHead_0/probe": (1, 1, WIDTH)}
    return {prefix + name: shape for name, shape in shapes.items()}


def siglip():
    shapes = {name: shape for name, shape in big_vision("map", "params/img/").items() if "img/head/" not in name}
    return shapes | {"params/t": (1,), "params/b": (1,), "params/txt/Embed_0/embedding": (7, WIDTH)}


FILES = {
    "AugReg": (augreg, {"pool": "cls", "prefix_positions": "class"}),
    "ImageNet-21k": (in21k, {"pool": "cls", "pre_logits_dim": 12}),
    "SAM": (sam, {"pool": "gap"}),
    "big_vision": (big_vision, {"pool": "gap"}),
    "token": (lambda: big_vision("tok", ""), {"pool": "cls", "prefix_positions": "none"}),
    "scanned": (lambda: big_vision("map", scan=True), {"pool": "map"}),
    "SigLIP": (siglip, {"pool": "map", "num_classes": 0}),
}


def arrays_of(shapes, seed=0):
    rng = np.random.default_rng(seed)
    return {
        name: (rng.normal(size=shape) * 0.3 + (1 if name.endswith("scale") else 0)).astype("float32")
        for name, shape in shapes.items()
    }


def timm_model(config):
    timm = pytest.importorskip("timm")
    return timm.create_model(
        "vit_base_patch16_224",
        img_size=config.image_size,
        patch_size=config.patch_size,
        embed_dim=config.width,
        depth=config.depth,
        num_heads=config.num_heads,
        mlp_ratio=config.mlp_dim / config.width,
        num_classes=config.num_classes,
        act_layer="gelu_tanh",
        class_token=config.has_class_token,
        no_embed_class=not config.num_prefix_positions,
        global_pool={"cls": "token", "gap": "avg", "map": "map"}[config.pool],
        fc_norm=False,
    ).eval()


EVERYWHERE = "scanned"  # one suffices, as the table of names is the same under every backend


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.backend) if name == EVERYWHERE else name for name in FILES])
def test_released_names(name, tmp_path):
    make, expected = FILES[name]
    arrays = arrays_of(make())
    np.savez(tmp_path / "file.npz", **arrays)
    checkpoint = open_checkpoint(tmp_path / "file.npz")
    size = {"image_size": 32, "patch_size": PATCH, "width": WIDTH, "depth": DEPTH, "num_heads": HEADS, "mlp_dim": HIDDEN}
    assert checkpoint.config == ViTConfig(**{**size, "num_classes": CLASSES, "mlp": "gelu_tanh", **expected})
    assert (checkpoint.mean, checkpoint.std) == ([0.5] * 3, [0.5] * 3)
    model = load_model(tmp_path / "file.npz")
    images = images_of()
    ours = logits(model, images)
    assert np.abs(ours).std() > 1000 * LOGITS
    np.testing.assert_allclose(ours, Reference(model.config, weights_of(model))(images)["output"], atol=LOGITS)

    # What we write loads to the same bits, and holds the same arrays under the names that it has.
    save_weights(model, tmp_path / "back.npz", "jax")
    twin = load_model(tmp_path / "back.npz")
    for path, value in weights_of(model).items():
        np.testing.assert_array_equal(weights_of(twin)[path], value, err_msg=path)
    with np.load(tmp_path / "back.npz") as back:
        for key in back.files:
            full = next((other for other in arrays if other.endswith(key)), None)  # not all: scanned, or of the other flavour
            if full:
                np.testing.assert_array_equal(back[key], arrays[full], err_msg=key)

    if name != "ImageNet-21k":  # timm has no such layer any more
        from peers import module_output, torch

        there = timm_model(model.config)
        there.load_pretrained(str(tmp_path / "file.npz"))
        if model.config.num_classes:  # which it loads only where the first class is ImageNet's
            there.head.weight.data.copy_(torch.from_numpy(weights_of(model)["head/kernel"].T.copy()))
            there.head.bias.data.copy_(torch.from_numpy(weights_of(model)["head/bias"].copy()))
        np.testing.assert_allclose(ours, module_output(there, images), atol=LOGITS)


@pytest.mark.parametrize("name", ["AugReg", "SAM", "scanned"])
def test_another_image_size(name, tmp_path):
    np.savez(tmp_path / "file.npz", **arrays_of(FILES[name][0]()))
    model = load_model(tmp_path / "file.npz", image_size=(24, 48))
    images = images_of((24, 48))
    assert model.config.image_size == (24, 48)
    np.testing.assert_allclose(logits(model, images), Reference(model.config, weights_of(model))(images)["output"], atol=LOGITS)


def test_bfloat16_is_read(tmp_path):
    """As NumPy stores what it does not know: two bytes of no type."""
    arrays = arrays_of(big_vision())
    halves = {name: (value.view("uint32") >> 16).astype("uint16") for name, value in arrays.items()}
    np.savez(tmp_path / "half.npz", **{name: value.view("V2") for name, value in halves.items()})
    np.savez(tmp_path / "whole.npz", **{name: (value.astype("uint32") << 16).view("float32") for name, value in halves.items()})
    half, whole = load_model(tmp_path / "half.npz"), load_model(tmp_path / "whole.npz")
    for path, value in weights_of(whole).items():
        np.testing.assert_array_equal(weights_of(half)[path], value, err_msg=path)


OURS = (
    {"pool": "cls"},
    {"pool": "cls", "prefix_positions": "none"},
    {"pool": "cls", "pre_logits_dim": 6, "num_classes": 0},
    {"pool": "gap", "position": "sincos2d"},
    {"pool": "map", "position": "sincos1d"},
)


@pytest.mark.parametrize("options", OURS, ids=str)
def test_our_models_there_and_back(options, tmp_path):
    """A non-square image too, whose size stands in the archive's comment."""
    sizes = {"image_size": (16, 24), "patch_size": (8, 6), "width": 16, "depth": 2, "num_heads": 2, "mlp_dim": 24, "num_classes": 4}
    model = randomise(build_vit(ViTConfig(**{**sizes, "mlp": "gelu_tanh", **options})))
    names = {"class_names": ["a", "b", "c", "d"]} if model.config.num_classes else {}
    save_weights(model, tmp_path / "ours.npz", "jax", mean=0.4, **names)
    images = images_of((16, 24))
    np.testing.assert_allclose(logits(load_model(tmp_path / "ours.npz"), images), logits(model, images), atol=LOGITS)
    checkpoint = open_checkpoint(tmp_path / "ours.npz")
    assert (checkpoint.mean, checkpoint.class_names) == ([0.4] * 3, names.get("class_names"))
    assert checkpoint.config.image_size == model.config.image_size


def test_what_jax_has_not_is_named(tmp_path):
    small = {"image_size": 16, "patch_size": 8, "width": 16, "depth": 1, "num_heads": 2, "mlp_dim": 24, "mlp": "gelu_tanh"}
    for name, options in (
        ("mlp", {"mlp": "gelu"}),
        ("registers", {"registers": 1}),
        ("layer_scale", {"layer_scale": 0.1}),
        ("norm_epsilon", {"norm_epsilon": 1e-5}),
        ("position", {"position": "none"}),
        ("class_token", {"pool": "gap", "class_token": True}),
        ("pool", {"pool": "cls_gap"}),
    ):
        with pytest.raises(ValueError, match=rf"^{name}: received .*; allowed in .*big_vision: "):
            save_weights(build_vit(ViTConfig(**{**small, **options})), tmp_path / "none.npz", "jax")
    with pytest.raises(ValueError, match=r"^path: received .*ends in .npz"):
        save_weights(build_vit(ViTConfig(**small)), tmp_path / "none", "jax")
    assert not list(tmp_path.iterdir())


def test_wrong_files(tmp_path):
    path = tmp_path / "file.npz"
    arrays = arrays_of(augreg())
    np.savez(path, **arrays)
    whole = path.read_bytes()
    for text in (whole[: len(whole) // 2], b"", b"\xff" * 99, b"PK\x03\x04"):
        path.write_bytes(text)
        with pytest.raises(ValueError, match=r"^checkpoint: received .*file.npz'; allowed: an intact .npz file"):
            load_model(path)
    np.savez(path, **{**arrays, "objects": np.array([{}], dtype=object)})
    with pytest.raises(ValueError, match=r"holds Python objects, which are never read"):
        load_model(path)
    np.savez(path, **{name: value for name, value in arrays.items() if "encoderblock_1/LayerNorm_2" not in name}, extra=np.zeros(3))
    with pytest.raises(ValueError, match=r"- Transformer/encoderblock_1/LayerNorm_2/scale; .*; \+ extra"):
        load_model(path)
    np.savez(path, **{"conv_root/kernel": np.zeros((7, 7, 3, 64))})
    with pytest.raises(ValueError, match=r"embedding/kernel: received no tensor; allowed: 4 axes, as in a ViT"):
        load_model(path)
    np.savez(path, **{**arrays, "Transformer/posembed_input/pos_embedding": np.zeros((1, 12, WIDTH), "float32")})
    with pytest.raises(ValueError, match=r"received 12 positions, no square grid"):
        load_model(path)


def test_what_the_comment_says_may_be_anything(tmp_path):
    np.savez(tmp_path / "file.npz", **arrays_of(augreg()))
    whole = (tmp_path / "file.npz").read_bytes()
    said = [f'{{"{key}": {value}}}' for key in ("image_size", "mean") for value in (3, "[1]", '"x"')]
    for text in ("{", "3", *(f'{{"keras_vit": {value}}}' for value in (3, *said))):
        (tmp_path / "file.npz").write_bytes(whole)
        with zipfile.ZipFile(tmp_path / "file.npz", "a") as archive:
            archive.comment = text.encode()
        try:
            assert open_checkpoint(tmp_path / "file.npz").config.image_size == (32, 32)
        except ValueError as error:
            assert str(error).startswith(("patch_size: ", "image_size: ", "config.json: mean: ", "checkpoint: "))  # noqa: PT017


def test_bombs_are_not_unpacked(tmp_path):
    zeros = io.BytesIO()
    np.lib.format.write_array(zeros, np.zeros((4, 4, 3, 2_000_000), "float32"))  # 384 MB of zeros in 0.4 MB
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("embedding/kernel.npy", zeros.getvalue())
    tracemalloc.start()
    with one_line_error(r"its arrays have 384,000,128 bytes; allowed: 16 times those of the file"):
        load_model(tmp_path / "bomb.npz")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 50e6
    arrays = arrays_of(augreg())
    for shape in ((10**12, 0), ()):
        np.savez(tmp_path / "bomb.npz", **arrays, **{"Transformer/encoderblock/x": np.zeros(shape)})
        with one_line_error(r"allowed: Transformer/encoderblock/x with a row for each of 1 to 1024 blocks \(it has shape"):
            load_model(tmp_path / "bomb.npz")
