"""Weights of timm: the same logits, bit for bit there and back, and every architecture of timm known or refused."""

import json

import numpy as np
import pytest
from helpers import ROOT, logits, random
from peers import assert_mistakes_are_one_line, module_output, numpy_state, randomise_module, torch
from reference import weights_of

from keras_vit import ViTConfig, build_vit, load_model, load_weights, open_checkpoint, save_weights
from keras_vit.parity import randomise
from keras_vit.weights import timm_eva, timm_vit
from keras_vit.weights.rows import check_tensors
from keras_vit.weights.tensors import split_rows
from keras_vit.weights.timm_vit import parse_architecture

timm = pytest.importorskip("timm")
LOGITS = 1e-4  # absolute, float32 against float32, logits of a few units
SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 5}
FAMILIES = {
    "vit_base_patch16_224": {},
    "vit_base_patch16_224_miil": {},
    "vit_base_patch16_plus_240": {},
    "vit_base_patch16_gap_224": {},
    "vit_base_patch16_reg4_gap_256": {},
    "vit_so150m2_patch16_reg1_gap_256": {},
    "vit_medium_patch16_gap_256": {},
    "deit_base_patch16_224": {},
    "deit_base_distilled_patch16_224": {},
    "deit3_base_patch16_224": {},
    "vit_base_patch14_dinov2": {},
    "vit_base_patch14_reg4_dinov2": {"num_classes": 0},
    "vit_giant_patch14_dinov2": {},
    "vit_giant_patch14_reg4_dinov2": {"num_classes": 0},
    "vit_base_patch16_clip_224": {},
    "vit_base_patch16_clip_quickgelu_224": {},
    "vit_base_patch16_siglip_224": {"num_classes": 0},
    "vit_base_patch32_siglip_256": {},
    "vit_base_patch16_siglip_gap_224": {},
    "vit_base_patch16_dinov3": {"global_pool": "token"},
    "vit_base_patch16_dinov3_qkvb": {},
    "vit_huge_plus_patch16_dinov3_qkvb": {"num_classes": 0},
    "vit_giant_patch16_lingbot": {},
    "eva_giant_patch14_224": {},
    "eva02_tiny_patch14_224": {},
    "eva02_base_patch14_448": {},
    "eva02_base_patch16_clip_224": {},
    "vit_base_patch16_rope_reg1_gap_256": {},
    "vit_mediumd_patch16_rope_reg1_gap_256": {},
    "vit_base_patch16_rope_224": {},
    "vit_base_patch16_rope_ape_224": {},
    "vit_pe_core_tiny_patch16_384": {"attn_pool_num_heads": 2, "attn_pool_mlp_ratio": 3.0},
    "vit_pe_spatial_tiny_patch16_512": {},
    "vit_pe_lang_gigantic_patch14_448": {"num_classes": 0},
    "eva_large_patch14_196": {},
    "vit_so150m_patch16_reg4_map_256": {},
    "vit_base_patch16_radio_v3": {"num_classes": 0},
    "vit_small_patch16_18x2_224": {},
    "vit_base_patch16_xp_224": {},
    "vit_pwee_patch16_reg1_gap_256": {},
}
EVERYWHERE = "deit_base_distilled_patch16_224"  # one suffices, as the table of names is the same under every backend
every_family = pytest.mark.parametrize(
    "architecture", [pytest.param(name, marks=pytest.mark.backend) if name == EVERYWHERE else name for name in FAMILIES]
)
# One for each way to hold positions; the others are slow.
POSITIONS = (
    "vit_base_patch16_224",
    "vit_base_patch16_reg4_gap_256",
    "deit_base_distilled_patch16_224",
    "vit_base_patch14_reg4_dinov2",
    "vit_base_patch16_siglip_224",
)


def made(architecture, **options):
    """A small model of an architecture with random weights, and the arguments that make it."""
    args = {**SMALL, **FAMILIES[architecture], **options}
    return randomise_module(timm.create_model(architecture, **args)), args


def saved(module, args, folder):
    """A folder as timm writes it for the hub."""
    from timm.models import save_for_hf

    args = {name: value for name, value in args.items() if name != "num_classes"}
    save_for_hf(module, folder, model_args=args, safe_serialization="both" if folder.name == "both" else True)
    return folder


def images_of(size):
    return random(3, *size, 3)


@every_family
def test_logits_and_round_trip(architecture, tmp_path):
    module, args = made(architecture)
    folder = saved(module, args, tmp_path / "theirs")
    model = load_model(folder)
    images = images_of((32, 32))
    expected = module_output(module, images)
    assert np.abs(expected).std() > 1000 * LOGITS
    np.testing.assert_allclose(logits(model, images), expected, atol=LOGITS)

    save_weights(model, tmp_path / "back", "timm")
    again = timm.create_model(f"local-dir:{tmp_path / 'back'}", pretrained=True).eval()
    again.load_state_dict(module.state_dict(), strict=True)  # the same names and shapes
    again = timm.create_model(f"local-dir:{tmp_path / 'back'}", pretrained=True).eval()
    for name, value in numpy_state(module).items():
        np.testing.assert_array_equal(numpy_state(again)[name], value, err_msg=name)
    np.testing.assert_array_equal(module_output(again, images), expected)

    twin = load_model(tmp_path / "back")
    assert twin.config == model.config
    for path, value in weights_of(model).items():
        np.testing.assert_array_equal(weights_of(twin)[path], value, err_msg=path)


@pytest.mark.parametrize(
    ("architecture", "size"),
    [
        *((name, (24, 48)) for name in POSITIONS),
        *(pytest.param(name, (64, 40), marks=pytest.mark.slow) for name in FAMILIES if name not in POSITIONS),
    ],
)
def test_another_image_size(architecture, size, tmp_path):
    module, args = made(architecture)
    folder = saved(module, args, tmp_path / "theirs")
    model = load_model(folder, image_size=size)
    module.set_input_size(img_size=size)
    images = images_of(size)
    np.testing.assert_allclose(logits(model, images), module_output(module, images), atol=LOGITS)


def test_another_patch_size(tmp_path, caplog):
    module, args = made("vit_base_patch16_224")
    folder = saved(module, args, tmp_path / "theirs")
    model = load_model(folder, image_size=(24, 40), patch_size=(6, 10))
    args = {**args, "img_size": (24, 40), "patch_size": (6, 10)}
    there = timm.create_model("vit_base_patch16_224", **args).eval()
    from timm.models.vision_transformer import checkpoint_filter_fn

    there.load_state_dict(checkpoint_filter_fn(module.state_dict(), there, interpolation="bicubic", antialias=True), strict=True)
    images = images_of((24, 40))
    np.testing.assert_allclose(logits(model, images), module_output(there, images), atol=LOGITS)
    assert "patches: 8x8 pixels in the checkpoint, 6x10 here" in caplog.text


@pytest.mark.parametrize(
    "options",
    [
        {"pool": "map", "class_token": True, "registers": 2, "prefix_positions": "class", "mlp": "gelu_tanh"},
        {"pool": "map", "norm_after_pool": True},
        {"registers": 2, "prefix_positions": "class", "layer_scale": 0.3},
        {"registers": 2, "prefix_positions": "all"},
        {"registers": 2, "prefix_positions": "none", "mlp": "swiglu", "qk_norm": True},
        {"distillation": True, "registers": 1, "prefix_positions": "all", "num_classes": 0},
        {"distillation": True, "registers": 1, "prefix_positions": "none"},
        {"pool": "gap", "class_token": True, "position": "none"},
        {"position": "sincos2d", "registers": 1},
        {"position": "sincos1d", "pool": "gap"},
        {"position": "sincos1d", "registers": 1, "prefix_positions": "class"},
        {"pre_norm": True, "norm_epsilon": 1e-5, "mlp": "gelu_quick", "qkv_bias": False, "channels": 1},
        {"mlp_dim": 29},
        {"rotary": "index", "rotary_base": 50.0, "rotary_grid": (3, 5), "rotary_offset": 0.5, "registers": 2},
        {"rotary": "centered", "position": "none", "pool": "gap", "mlp": "swiglu", "norm_epsilon": 1e-5, "qk_norm": True},
        {"rotary": "index", "position": "sincos2d", "key_bias": False, "mlp_norm": True, "attention_norm": True},
        {"key_bias": False, "layer_scale": 0.3, "norm_after_pool": True, "pool": "gap"},
        {"pool": "map", "pool_heads": 4, "pool_mlp_dim": 20, "final_norm": False},
        {"pool": "map", "registers": 2, "pool_prefix": False},
        {"block": "twin", "layer_scale": 0.2, "registers": 1, "qkv_bias": False},
        {"block": "parallel", "rms_norm": True, "pool": "map"},
        {"block": "parallel", "layer_scale": 0.2, "qk_norm": True, "final_norm": False},
    ],
    ids=str,
)
def test_our_models_run_there(options, tmp_path):
    """Also non-square images and patches, positions that are fixed, and prefix tokens as timm has them."""
    sizes = {"image_size": (16, 24), "patch_size": (8, 6), "width": 16, "depth": 2, "num_heads": 2, "mlp_dim": 24, "num_classes": 4}
    model = randomise(build_vit(ViTConfig(**{**sizes, **options})))
    images = random(3, *model.config.image_shape)
    save_weights(model, tmp_path / "there", "timm", mean=0.4, std=[0.3] * model.config.channels)
    there = timm.create_model(f"local-dir:{tmp_path / 'there'}", pretrained=True).eval()
    assert list(there.pretrained_cfg["mean"]) == [0.4] * model.config.channels
    np.testing.assert_allclose(module_output(there, images), logits(model, images), atol=LOGITS)
    back = load_model(tmp_path / "there")
    np.testing.assert_allclose(logits(back, images), logits(model, images), atol=LOGITS)


def test_a_file_alone_says_what_it_is(tmp_path):
    module, args = made("vit_base_patch16_siglip_224", num_classes=4)
    model = load_model(saved(module, args, tmp_path / "theirs"))
    save_weights(model, tmp_path / "one.safetensors", "timm", mean=[0.1, 0.2, 0.3], class_names=["a", "b", "c", "d"])
    checkpoint = open_checkpoint(tmp_path / "one.safetensors")
    assert (checkpoint.source, checkpoint.config, checkpoint.mean) == ("timm", model.config, [0.1, 0.2, 0.3])
    assert checkpoint.class_names == ["a", "b", "c", "d"]
    assert open_checkpoint(tmp_path / "one.safetensors").config == model.config
    module.load_state_dict(
        {name: torch.from_numpy(value) for name, value in read(tmp_path / "one.safetensors").items()}, strict=True
    )


def read(path):
    from safetensors.numpy import load_file

    return load_file(path)


def write(path, tensors, **options):
    from safetensors.numpy import save_file

    save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, path, **options)
    return path


def test_a_foreign_file_needs_its_architecture(tmp_path):
    module = randomise_module(timm.create_model("vit_tiny_patch16_224", depth=1, num_classes=3))
    path = write(tmp_path / "tiny.safetensors", numpy_state(module))
    with pytest.raises(ValueError, match=r"^architecture: .*allowed: a name of timm"):
        load_model(path)
    model = load_model(path, architecture="vit_tiny_patch16_224.augreg_in21k")
    images = images_of((224, 224))
    np.testing.assert_allclose(logits(model, images), module_output(module, images), atol=LOGITS)
    assert any("mean and std: not in the file" in note for note in load_weights(model, path, architecture="vit_tiny_patch16_224"))


def test_half_precision_is_read(tmp_path):
    module, args = made("vit_base_patch16_224")
    folder = saved(module.to(torch.bfloat16), args, tmp_path / "theirs")
    module = module.float()
    images = images_of((32, 32))
    np.testing.assert_allclose(logits(load_model(folder), images), module_output(module, images), atol=LOGITS)


def test_heads(tmp_path, caplog):
    module, args = made("deit_base_distilled_patch16_224")
    folder = saved(module, args, tmp_path / "theirs")
    model = load_model(folder, num_classes=7)
    assert "head: 5 classes in the checkpoint, 7 classes here: a new head" in caplog.text
    assert model.config.num_classes == 7
    assert not np.any(weights_of(model)["head_dist/kernel"])
    images = images_of((32, 32))
    bare = load_model(folder, num_classes=0)
    module.reset_classifier(0)
    np.testing.assert_allclose(logits(bare, images), module_output(module, images), atol=LOGITS)
    other = build_vit(model.config)
    with pytest.raises(ValueError, match=r"! head/kernel \(24, 5\), expected \(24, 7\).*new_head=True"):
        load_weights(other, folder)
    assert any("a new head" in note for note in load_weights(other, folder, new_head=True))


def test_free_and_fixed_fields(tmp_path):
    module, args = made("vit_base_patch16_224")
    folder = saved(module, args, tmp_path / "theirs")
    model = load_model(folder, drop_path=0.2, data_format="channels_first", width=24)
    assert (model.config.drop_path, model.config.data_format) == (0.2, "channels_first")
    for name, value in (("width", 48), ("num_heads", 4), ("mlp", "gelu_tanh"), ("pool", "gap")):
        with pytest.raises(ValueError, match=rf"^{name}: received .*as in the checkpoint$"):
            load_model(folder, **{name: value})
    with pytest.raises(ValueError, match=r"received .widht. \(did you mean .width.\?\)"):
        load_model(folder, widht=24)


def known(name):
    """Whether an architecture of timm is one of ours, checked against its module; else what is said of it."""
    with torch.device("meta"):
        try:
            module = timm.create_model(name, depth=1)  # a sixth of the time
        except AssertionError:  # it has settings for each block
            module = timm.create_model(name)
    shapes = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    shapes, _ = split_rows(shapes, None, timm_vit.PACKED, lambda rows: rows - 3 * module.embed_dim)
    try:
        names = timm_eva if timm_eva.is_eva(name) else timm_vit
        config, rows = names.read_config(shapes, name, {})
        check_tensors(name, rows, shapes)
    except ValueError as error:
        return str(error)
    block, rope = module.blocks[0], getattr(module, "rope", None)
    if config.block == "parallel":
        assert type(block).__name__ == "ParallelScalingBlock", name
        block.attn, block.norm1, block.mlp = block, block.in_norm, torch.nn.ModuleDict({"act": block.mlp_act})
    elif config.block == "twin":  # its two attentions, and its two MLPs, are alike
        assert type(block).__name__ == "ParallelThingsBlock", name
        block = torch.nn.ModuleDict({**dict(block.attns[1].named_children()), **dict(block.ffns[1].named_children())})
        block.norm1 = block.norm
    else:
        assert type(block).__name__ in ("Block", "EvaBlock"), name
    activation = {"GELU": "gelu", "GELUTanh": "gelu_tanh", "QuickGELU": "gelu_quick", "SiLU": "swiglu"}
    assert config.num_heads == block.attn.num_heads, name
    assert config.norm_epsilon == block.norm1.eps, name
    assert config.mlp == activation[type(block.mlp.act).__name__], name
    assert config.pool == {"token": "cls", "avg": "gap", "map": "map"}[module.global_pool], name
    assert config.grid_size == module.patch_embed.grid_size, name
    kind = type(rope).__name__.removeprefix("RotaryEmbedding") if rope else ""
    assert config.rotary == {"Cat": "index", "DinoV3": "centered", "": "none"}[kind], name
    if rope:
        assert (config.rotary_base, config.rotary_offset) == (rope.temperature, rope.grid_offset), name
        assert config.rotary_grid == getattr(rope, "ref_feat_shape", None), name
    if config.pool == "map":
        assert (config.pool_heads or config.num_heads) == module.attn_pool.num_heads, name
        assert config.pool_prefix == (not module.num_prefix_tokens or getattr(module, "pool_include_prefix", True)), name
    return True


def test_every_architecture_is_known_or_refused():
    answers = [known(name) for name in timm.list_models() if name.startswith(("vit_", "deit", "eva"))]
    if timm.__version__ == "1.0.31":  # what README counts
        readme = (ROOT / "README.md").read_text(encoding="utf-8")
        assert f"{answers.count(True)} of timm's {len(answers)} ViTs" in readme
    assert answers.count(True) >= 205
    for answer in set(answers) - {True}:
        assert answer.startswith("architecture: received ")
        assert "\n" not in answer


def test_what_timm_has_not_is_named(tmp_path):
    small = {"image_size": 16, "patch_size": 8, "width": 16, "depth": 1, "num_heads": 2, "mlp_dim": 24}
    for name, options in (
        ("stem", {"stem": "conv"}),
        ("pool", {"pool": "cls_gap"}),
        ("pre_logits_dim", {"pre_logits_dim": 4}),
        ("use_bias", {"use_bias": False}),
        ("norm_epsilon", {"norm_epsilon": 1e-12}),
        ("mlp", {"mlp": "swiglu", "pool": "map"}),
        ("distillation", {"distillation": True, "registers": 2}),
        ("qk_norm", {"qk_norm": True, "pool": "map"}),
        ("rms_norm", {"rms_norm": True}),
        ("qkv_bias", {"qkv_bias": False, "pool": "map"}),
        ("qkv_bias", {"qkv_bias": False, "pool": "map", "rotary": "index"}),
        ("block", {"block": "twin", "mlp": "swiglu"}),
        ("block", {"block": "twin", "rotary": "centered"}),
        ("mlp", {"rotary": "centered", "mlp": "gelu_tanh"}),
        ("pool_prefix", {"pool": "map", "registers": 1, "pool_prefix": False, "rotary": "centered"}),
    ):
        with pytest.raises(ValueError, match=rf"^{name}: received .*timm"):
            save_weights(build_vit(ViTConfig(**small, **options)), tmp_path / "none", "timm")
        assert not list(tmp_path.iterdir())


# Bad input


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    module, args = made("vit_base_patch16_224")
    return saved(module, args, tmp_path_factory.mktemp("timm") / "theirs")


def changed(folder, to, **settings):
    """A copy of a folder with other values in its config.json; dotted names with two underscores."""
    to.mkdir()
    (to / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    config = json.loads((folder / "config.json").read_text())
    for name, value in settings.items():
        place, _, leaf = name.rpartition("__")
        (config[place] if place else config)[leaf] = value
    (to / "config.json").write_text(json.dumps(config))
    return to


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"architecture": "resnet50"}, "architecture: received 'resnet50'"),
        ({"architecture": "vit_base_patch16_rope_mixed_224"}, "rope_mixed is another architecture"),
        ({"architecture": 3}, "architecture: "),
        (
            {"architecture": "vit_giant_patch14_dinov2", "model_args__num_heads": 5},
            "num_heads: received 5; allowed: the divisors of width 24",
        ),
        ({"model_args__embed_dim": 48}, "model_args.embed_dim: received 48; allowed: 24, as the tensors have"),
        ({"model_args__depth": 3}, "model_args.depth: received 3; allowed: 2, as the tensors have"),
        ({"model_args__patch_size": 16}, "model_args.patch_size: received"),
        ({"model_args__img_size": 64}, "model_args.img_size: received 64; allowed: a size with 17 positions"),
        ({"model_args__global_pool": "map"}, "model_args.global_pool: received 'map'"),
        ({"model_args__act_layer": "relu"}, "model_args.act_layer: received 'relu'"),
        ({"model_args__scale_attn_norm": True}, "model_args.scale_attn_norm: received True"),
        ({"num_classes": 1000}, "num_classes: received 1000; allowed: 5, as the tensors have"),
    ],
)
def test_a_config_that_contradicts_the_tensors(folder, settings, message, tmp_path):
    with pytest.raises(ValueError, match=r"^[^\n]+$") as error:
        load_model(changed(folder, tmp_path / "changed", **settings))
    assert message in str(error.value)


def test_whatever_a_config_holds_a_mistake_is_one_line(folder, tmp_path):
    assert_mistakes_are_one_line(changed(folder, tmp_path / "changed"), "config.json", {"label_names": list("abcde")})


def test_angles_in_a_file_are_left_alone(dinov3, tmp_path):
    """They are computed; older files hold them, and the token of pretraining."""
    copy = changed(dinov3, tmp_path / "copy")
    tensors = read(dinov3 / "model.safetensors")
    write(copy / "model.safetensors", {**tensors, "rope.periods": np.ones(2, "float32"), "mask_token": np.ones((1, 24), "float32")})
    images = images_of((32, 32))
    np.testing.assert_array_equal(logits(load_model(copy), images), logits(load_model(dinov3), images))
    write(copy / "model.safetensors", {**tensors, "rope.freqs": np.ones((2, 2, 3, 4), "float32")})
    with pytest.raises(ValueError, match=r"\+ rope.freqs$"):
        load_model(copy)


@pytest.mark.parametrize("architecture", ["eva02_base_patch16_clip_224", "vit_pe_core_tiny_patch16_384"])
def test_whatever_a_config_of_rotary_positions_holds_a_mistake_is_one_line(architecture, tmp_path):
    """Whole configurations, as this library writes them."""
    module, args = made(architecture)
    save_weights(load_model(saved(module, args, tmp_path / "theirs")), tmp_path / "ours", "timm")
    assert_mistakes_are_one_line(tmp_path / "ours", "config.json")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rope_type": "mixed"}, "model_args.rope_type: received 'mixed'; allowed: cat, dinov3"),
        ({"rope_grid_indexing": "xy"}, "model_args.rope_grid_indexing: received 'xy'; allowed: ij, xy with rope_type cat"),
        ({"rope_grid_offset": 0.5}, "model_args.rope_grid_offset: received 0.5; allowed: 0 with rope_type dinov3"),
        ({"rope_temperature": 0}, "rotary_base: received 0.0; allowed: a number above 0"),
        ({"use_abs_pos_emb": True}, "model_args.use_abs_pos_emb: received True; allowed: False, as the tensors have"),
        ({"global_pool": "map"}, "model_args.global_pool: received 'map'; allowed: token, avg"),
        ({"use_post_norm": True}, "model_args.use_post_norm: received True; allowed: none, as it is unknown here"),
        ({"num_reg_tokens": 2}, "model_args.num_reg_tokens: received 2; allowed: 4, as the tensors have"),
        ({"num_heads": 8}, "num_heads: received heads of 3 channels; allowed: multiples of 4 with rotary positions"),
    ],
    ids=str,
)
def test_arguments_of_rotary_positions(dinov3, settings, message, tmp_path):
    arguments = {f"model_args__{name}": value for name, value in settings.items()}
    with pytest.raises(ValueError, match=r"^[^\n]+$") as error:
        load_model(changed(dinov3, tmp_path / "changed", **arguments))
    assert message in str(error.value)


@pytest.fixture(scope="module")
def dinov3(tmp_path_factory):
    module, args = made("vit_base_patch16_dinov3_qkvb", num_reg_tokens=4)
    return saved(module, args, tmp_path_factory.mktemp("timm") / "dinov3")


def test_what_a_file_says_of_itself_may_be_anything(folder, tmp_path):
    for text in ("{", "[]", "3", '{"architecture": 3}', '{"architecture": "vit_base_patch16_224", "pretrained_cfg": 3}'):
        path = write(tmp_path / "file.safetensors", read(folder / "model.safetensors"), metadata={"timm": text})
        with pytest.raises(ValueError, match=r"^(checkpoint|architecture|config.json): [^\n]+$"):
            open_checkpoint(path)


def test_tensors_that_are_not_those(folder, tmp_path):
    bad = changed(folder, tmp_path / "bad")
    tensors = read(folder / "model.safetensors")
    tensors["blocks.0.attn.rel_pos"] = tensors.pop("norm.bias")
    tensors["head.bias"] = tensors["head.bias"][:3]
    write(bad / "model.safetensors", tensors)
    with pytest.raises(ValueError, match=r"- norm.bias; \+ blocks.0.attn.rel_pos; ! head.bias \(3,\), expected \(5,\)"):
        load_model(bad)
    write(bad / "model.safetensors", numpy_state(timm.create_model("resnet18")))
    with pytest.raises(
        ValueError, match=r"^checkpoint: patch_embed.proj.weight: received no tensor; allowed: 4 axes, as in vit_base"
    ):
        load_model(bad)


def test_damaged_files(folder, tmp_path):
    bad = changed(folder, tmp_path / "bad")
    whole = (bad / "model.safetensors").read_bytes()
    for text in (whole[:1000], whole[:-7], b"", b"\xff" * 64, b"PK\x03\x04"):
        (bad / "model.safetensors").write_bytes(text)
        allowed = "(a header of at most 16,777,216 bytes|an intact safetensors file)"
        with pytest.raises(ValueError, match=rf"^checkpoint: received '.*model.safetensors'; allowed: {allowed}"):
            load_model(bad)
    for text in ("{", "[1]", "", "\x00", "[" * 100_000):
        (bad / "config.json").write_text(text)
        with pytest.raises(ValueError, match=r"^checkpoint: '.*config.json' (cannot be read as JSON|holds a list)"):
            load_model(bad)


def test_pickles_are_never_read(folder, tmp_path):
    torch.save({"a": torch.zeros(2)}, tmp_path / "model.bin")
    for name in ("model.bin", "model.pth", "absent.pt"):
        with pytest.raises(ValueError, match=r"^checkpoint: received .*, a pickle, .*; convert it: python -c "):
            load_model(tmp_path / name)
    only = changed(folder, tmp_path / "only")
    (only / "model.safetensors").rename(only / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model.bin', a pickle"):
        load_model(only)


def test_the_conversion_that_is_named_works(tmp_path):
    import re
    import subprocess
    import sys

    torch.save({"a": torch.ones(2, 3).T}, tmp_path / "model.bin")
    with pytest.raises(ValueError, match="pickle") as error:
        load_model(tmp_path / "model.bin")
    code = re.search(r'python -c "(.*)"$', str(error.value))[1]
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    np.testing.assert_array_equal(read(tmp_path / "model.safetensors")["a"], np.ones((3, 2)))


def test_targets(folder, tmp_path):
    model = load_model(folder)
    (tmp_path / "there").mkdir()
    save_weights(model, tmp_path / "there", "timm")  # an empty folder
    (tmp_path / "file").write_text("x")
    for path in ("there", "file"):
        with pytest.raises(ValueError, match=r"^path: received .*, which exists; allowed"):
            save_weights(model, tmp_path / path, "timm")
        with pytest.raises(ValueError, match=r"^path: .*cannot be written"):
            save_weights(model, tmp_path / "file" / "below", "timm")
    assert (tmp_path / "file").read_text() == "x"
    with pytest.raises(ValueError, match=r"^target: received 'torch'; allowed: timm, huggingface, jax"):
        save_weights(model, tmp_path / "x", "torch")
    with pytest.raises(ValueError, match=r"^class_names: received 2; allowed: 5"):
        save_weights(model, tmp_path / "x", "timm", class_names=["a", "b"])
    with pytest.raises(ValueError, match=r"^mean: received \[0.1, 0.2\]; allowed: a number, or one for each of 3 channels"):
        save_weights(model, tmp_path / "x", "timm", mean=[0.1, 0.2])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "there"]


def test_a_failed_load_leaves_the_model(folder, tmp_path):
    model = randomise(build_vit(open_checkpoint(folder).config))
    before = {path: value.copy() for path, value in weights_of(model).items()}
    bad = changed(folder, tmp_path / "bad")
    tensors = read(folder / "model.safetensors")
    del tensors["head.bias"]
    write(bad / "model.safetensors", tensors)
    with pytest.raises(ValueError, match=r"- head.bias"):
        load_weights(model, bad)
    for path, value in weights_of(model).items():
        np.testing.assert_array_equal(value, before[path])
    other = build_vit(ViTConfig(**{**model.config.to_dict(), "norm_epsilon": 1e-5, "num_heads": 2}))
    with pytest.raises(ValueError, match=r"with num_heads 3; allowed: 2, as in the model"):
        load_weights(other, folder)


def test_nothing_there(tmp_path, monkeypatch):
    import sys

    with pytest.raises(ValueError, match=r"^checkpoint: received .*absent'; allowed: an existing file or folder, or a name on"):
        load_model(tmp_path / "absent")
    with pytest.raises(ValueError, match=r"^checkpoint: received .*; allowed: a folder with recipe.yaml"):
        load_model(tmp_path)
    with pytest.raises(ValueError, match=r"^source: received 'pytorch'"):
        load_model(tmp_path, "pytorch")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match=r"needs: pip install huggingface_hub$"):
        load_model("google/vit-base-patch16-224")


def test_the_hub_is_asked_for_no_pickle(monkeypatch, folder):
    hub = pytest.importorskip("huggingface_hub")
    asked = {}

    def download(name, **options):
        asked.update(options, name=name)
        return str(folder)

    monkeypatch.setattr(hub, "snapshot_download", download)
    assert open_checkpoint("hf-hub:timm/vit_base_patch16_224.augreg_in21k").source == "timm"
    assert asked["name"] == "timm/vit_base_patch16_224.augreg_in21k"
    assert not any(pattern.endswith(("bin", "*", "pth")) for pattern in asked["allow_patterns"])

    def offline(name, **options):
        raise ConnectionError("no\nnetwork")

    monkeypatch.setattr(hub, "snapshot_download", offline)
    with pytest.raises(ValueError, match=r"cannot be downloaded from the Hugging Face hub \(ConnectionError: no network\)$"):
        open_checkpoint("timm/vit_base_patch16_224.augreg_in21k")


def test_adapters_are_merged_and_quantised_models_refused(tmp_path):
    small = {"image_size": 16, "patch_size": 8, "width": 16, "depth": 1, "num_heads": 2, "mlp_dim": 24, "num_classes": 3}
    model = randomise(build_vit(ViTConfig(**small)))
    model.get_layer("block_0").attention.qkv.enable_lora(2)
    model.get_layer("block_0").attention.qkv.lora_kernel_b.assign(np.ones((2, 48)))
    images = images_of((16, 16))
    save_weights(model, tmp_path / "merged", "timm")
    np.testing.assert_allclose(logits(load_model(tmp_path / "merged"), images), logits(model, images), atol=LOGITS)
    load_weights(model, tmp_path / "merged")  # the kernels; adapters stay as they are
    model = build_vit(ViTConfig(**small))
    model.get_layer("block_0").attention.qkv.quantize("int8")
    model.save(tmp_path / "int8.keras")
    with pytest.raises(ValueError, match=r"^checkpoint: .*int8.keras': received a quantised model"):
        load_model(tmp_path / "int8.keras")
    with pytest.raises(ValueError, match=r"^model: received a quantised model"):
        save_weights(model, tmp_path / "int8", "timm")


def test_parsing_names():
    assert parse_architecture("vit_huge_patch14_clip_quickgelu_378.dfn5b") == (
        "huge_patch14_clip_quickgelu_378",
        {"patch14", "clip", "quickgelu", "378"},
        16,
    )
