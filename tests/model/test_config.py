"""`ViTConfig`: every bad value raises by name, every variant has its published number of parameters."""

import dataclasses
import json
import math
import time

import numpy as np
import pytest

from keras_vit import VARIANTS, ViTConfig, build_vit
from keras_vit.model.limits import check_heads, divisors
from keras_vit.recipes.schema import Recipe, TrainConfig

TINY = {"image_size": (16, 24), "patch_size": (4, 4), "width": 16, "depth": 1, "num_heads": 2, "mlp_dim": 24}
MACS_TOLERANCE = 0.002  # published numbers of multiply-adds leave out, or count in, a bias or a norm
MILLION = 1e6

# Exact numbers of parameters. `ViT-*` of 'vision_transformer' (vit_jax/models_test.py) at 224 px with 1000 classes;
# H/14 also torchvision's vit_h_14; So400m is SiglipVisionModel of transformers, siglip-so400m-patch14-384 (378 px are
# used of the 384).
PUBLISHED = (
    ("Ti/16", {}, 5_717_416),
    ("S/16", {}, 22_050_664),
    ("S/16", {"pool": "gap"}, 22_049_896),
    ("S/32", {}, 22_878_952),
    ("B/8", {}, 86_576_872),
    ("B/16", {}, 86_567_656),
    ("B/16", {"pool": "gap"}, 86_566_120),
    ("B/32", {}, 88_224_232),
    ("L/16", {}, 304_326_632),
    ("L/32", {}, 306_535_400),
    ("H/14", {}, 632_045_800),
    ("So400m/14", {"image_size": 378, "pool": "map", "num_classes": 0}, 428_225_600),
    # Dinov2Model of transformers, dinov2-giant: 1,136,480,768 with the mask token, which only its pretraining uses.
    ("g-dinov2/14", {"image_size": 518, "num_classes": 0, "layer_scale": 1.0}, 1_136_480_768 - 1_536),
)
CIFAR = {"image_size": 32, "num_classes": 10}
# Published in millions only: timm's results-imagenet.csv (M: vit_medium_patch16_gap_256, g: vit_giant_patch14_224)
# and arXiv 2104.05704's repository (ViT-Lite, whose queries, keys and values have no bias).
PUBLISHED_MILLIONS = (
    ("M/16", {"image_size": 256, "pool": "gap", "norm_after_pool": True}, 38_867_432, 38.86, 0.01),
    ("g/14", {}, 1_012_611_432, 1012.61, 0.005),
    ("Lite-6/4", {**CIFAR, "qkv_bias": False}, 3_190_538, 3.191, 0.0005),
    ("Lite-7/4", {**CIFAR, "qkv_bias": False}, 3_716_874, 3.717, 0.0005),
)
# CCT-2/3x2 and CCT-4/3x2 (arXiv 2104.05704) have 0.284M and 0.482M: with a class token and 256 other positions instead
# of 64 and no convolutions (3x3x3x64 and 3x3x64x128) and no sequence pooling (129) it is these.
DERIVED = (
    ("Compact-2/4", {**CIFAR, "qkv_bias": False}, 214_666, 0.284),
    ("Compact-4/4", {**CIFAR, "qkv_bias": False}, 413_066, 0.482),
)
# Billions of multiply-adds of torchvision 0.20's vit_*_16/14/32 (`_ops` of its weights).
PUBLISHED_MACS = (("B/16", 17.564), ("B/32", 4.409), ("L/16", 61.555), ("L/32", 15.378), ("H/14", 167.295))


def test_numbers_of_numpy_are_numbers():
    """They become Python's own: JSON and YAML have no others."""
    settings = {"image_size": 8, "patch_size": 4, "width": 16, "depth": 1, "num_heads": 2, "mlp_dim": 24, "num_classes": 3}
    given = {name: np.int64(value) for name, value in settings.items()} | {"dropout": np.float32(0.25)}
    config = ViTConfig(**given)
    assert config == ViTConfig(**settings, dropout=0.25)
    assert json.loads(json.dumps(dataclasses.asdict(config)))["width"] == 16
    recipe = Recipe(train=TrainConfig(epochs=np.int64(3), learning_rate=np.float64(0.5)), seed=np.uint32(7))
    assert "epochs: 3\n" in recipe.to_yaml()
    with pytest.raises(ValueError, match=r"^width: received 16\.0; allowed: an integer"):
        ViTConfig(**{**given, "width": np.float64(16)})


@pytest.mark.parametrize(("variant", "overrides", "count"), PUBLISHED)
def test_published_parameters(variant, overrides, count):
    assert ViTConfig.from_variant(variant, **overrides).num_params == count


@pytest.mark.parametrize(("variant", "overrides", "count", "millions", "rounding"), PUBLISHED_MILLIONS)
def test_parameters_published_in_millions(variant, overrides, count, millions, rounding):
    config = ViTConfig.from_variant(variant, **overrides)
    assert config.num_params == count
    assert config.num_params / MILLION == pytest.approx(millions, abs=rounding)


@pytest.mark.parametrize(("variant", "overrides", "count", "millions"), DERIVED)
def test_parameters_of_compact_variants(variant, overrides, count, millions):
    config = ViTConfig.from_variant(variant, **overrides)
    assert config.num_params == count
    patches = 4 * 4 * 3 * 128 + 128 + 128 + (1 + 64) * 128  # projection, class token, positions
    convolutions = 27 * 64 + 9 * 64 * 128 + 64 * 128 + (128 + 1)  # and their 8x8 positions, and sequence pooling
    assert (count - patches + convolutions) / MILLION == pytest.approx(millions, abs=0.0005)


@pytest.mark.parametrize("variant", ["Ti/16", "Compact-2/4"])
def test_built_variants_have_the_counted_parameters(variant):
    overrides = CIFAR if "-" in variant else {}
    config = ViTConfig.from_variant(variant, **overrides)
    assert build_vit(config).count_params() == config.num_params


def test_every_variant_has_a_count():
    counted = {row[0].rpartition("/")[0] for row in (*PUBLISHED, *PUBLISHED_MILLIONS, *DERIVED)}
    assert counted == set(VARIANTS)


def test_training_counts_the_patches_that_are_left():
    config = ViTConfig(image_size=(32, 64), patch_size=8, width=48, depth=3, num_heads=4, mlp_dim=96, registers=2)
    kept = dataclasses.replace(config, image_size=32)
    embedding = 2 * 16 * 8 * 8 * 3 * 48  # of the other half, which comes before patches are left out
    assert dataclasses.replace(config, patch_dropout=0.5).training_flops == 3 * (kept.flops + embedding)


@pytest.mark.parametrize(("variant", "giga_macs"), PUBLISHED_MACS)
def test_published_macs(variant, giga_macs):
    assert ViTConfig.from_variant(variant).flops / 2e9 == pytest.approx(giga_macs, rel=MACS_TOLERANCE)


def test_overrides_win():
    config = ViTConfig.from_variant("S/16", width=100, num_heads=10, patch_size=(8, 32))
    assert (config.width, config.num_heads, config.mlp_dim, config.patch_size) == (100, 10, 1536, (8, 32))


@pytest.mark.parametrize("position", ["learned", "sincos1d", "sincos2d", "none"])
@pytest.mark.parametrize(("prefix", "count"), [("none", 0), ("class", 1), ("all", 3)])
def test_prefix_tokens_and_their_positions(position, prefix, count):
    """One number for the configuration and the layer: the rows at the front of the table, which these positions have or not."""
    config = ViTConfig(**TINY, registers=2, position=position, prefix_positions=prefix)
    assert config.num_prefix_tokens == 3
    assert config.num_prefix_positions == (count if position in ("learned", "sincos1d") else 0)
    encoder = build_vit(config).get_layer("encoder")
    assert encoder.num_prefix_positions == config.num_prefix_positions
    if position != "none":
        assert encoder.position_embedding.shape == (1, config.num_prefix_positions + config.num_patches, 16)


def test_derived_values():
    config = ViTConfig(**{**TINY, "patch_size": (8, 4), "registers": 2, "depth": 4, "drop_path": 0.3})
    assert config.grid_size == (2, 6)
    assert config.num_patches == 12
    assert config.num_tokens == 1 + 2 + 12
    assert config.head_dim == 8
    assert config.drop_path_rates == pytest.approx((0, 0.1, 0.2, 0.3))
    assert config.image_shape == (16, 24, 3)
    assert dataclasses.replace(config, data_format="channels_first").image_shape == (3, 16, 24)
    assert ViTConfig(**{**TINY, "stem": "conv", "width": 20}).stem_widths == (10, 20)
    assert ViTConfig(**TINY, pool="gap").num_tokens == 24


def test_round_trip_through_json():
    config = ViTConfig(**TINY, layer_scale=0.1, class_token=True)
    assert ViTConfig(**json.loads(json.dumps(config.to_dict()))) == config
    assert hash(ViTConfig(**config.to_dict())) == hash(config)


NOT_A_SIZE = (0, -1, 1.5, "4", None, True, math.nan)
NOT_A_RATE = (-0.1, 1, 1.5, "0.1", None, True, math.nan, math.inf)
NOT_A_FLAG = (None, 1, 0, "yes", 2.0)
NOT_A_CHOICE = (None, "", "CLS", 0, True, [])
BAD = {
    "image_size": (*NOT_A_SIZE, (16,), (16, 24, 3), (16, 0), "16x24"),
    "patch_size": (*NOT_A_SIZE, (4,), (4, 4, 3), (4, 0), 5, (4, 5), 32),
    "channels": NOT_A_SIZE,
    "width": NOT_A_SIZE,
    "depth": NOT_A_SIZE,
    "num_heads": (*NOT_A_SIZE, 3, 32),
    "mlp_dim": NOT_A_SIZE,
    "num_classes": (-1, 1.5, "4", None, True),
    "registers": (-1, 1.5, "4", None, True),
    "pre_logits_dim": (-1, 1.5, "4", None, True),
    "pool": NOT_A_CHOICE,
    "position": NOT_A_CHOICE,
    "prefix_positions": NOT_A_CHOICE,
    "rotary": NOT_A_CHOICE,
    "rotary_base": (0, -1.0, "100", None, True, math.nan, math.inf),
    "rotary_grid": (*(size for size in NOT_A_SIZE if size is not None), (4,), (4, 0), 4),  # the default has no rotary positions
    "rotary_offset": ("1", None, True, math.nan, math.inf, 1.0),
    "stem_depth": (-1, 1, 1.5, "1"),
    "stem": NOT_A_CHOICE,
    "mlp": NOT_A_CHOICE,
    "data_format": NOT_A_CHOICE,
    "class_token": (False, 1, 0, "yes"),  # False: the default pool is `cls`
    "dropout": NOT_A_RATE,
    "attention_dropout": NOT_A_RATE,
    "drop_path": NOT_A_RATE,
    "patch_dropout": NOT_A_RATE,
    "merge_tokens": (-1, 1.5, "4", None, True),
    "pool_heads": (-1, 1.5, "4", None, True, 2),  # the default is no attention pooling
    "pool_mlp_dim": (-1, 1.5, "4", None, True, 24),
    "pool_prefix": (*NOT_A_FLAG, False),
    "block": NOT_A_CHOICE,
    "rms_norm": NOT_A_FLAG,
    "layer_scale": (-0.1, "0.1", None, True, math.nan, math.inf),
    "norm_epsilon": (0, -1e-6, "1e-6", None, True, math.nan, math.inf),
    "distillation": NOT_A_FLAG,
    "qk_norm": NOT_A_FLAG,
    "pre_norm": NOT_A_FLAG,
    "norm_after_pool": NOT_A_FLAG,
    "final_norm": NOT_A_FLAG,
    "attention_norm": NOT_A_FLAG,
    "mlp_norm": NOT_A_FLAG,
    "key_bias": NOT_A_FLAG,
    "qkv_bias": NOT_A_FLAG,
    "use_bias": NOT_A_FLAG,
}


def test_every_field_has_bad_values():
    assert set(BAD) == {field.name for field in dataclasses.fields(ViTConfig)}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD.items() for value in values])
def test_bad_values_name_the_field(name, value):
    with pytest.raises(ValueError, match=rf"^{name}: received .*; allowed: ") as error:
        ViTConfig(**{**TINY, name: value})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("field", "settings"),
    [
        ("patch_size", {"image_size": 48, "patch_size": 12, "stem": "conv"}),
        ("patch_size", {"image_size": 16, "patch_size": 1, "stem": "conv"}),
        ("patch_size", {"image_size": 16, "patch_size": (2, 4), "stem": "conv"}),
        ("stem_depth", {"stem_depth": 1}),
        ("stem_depth", {"stem": "conv", "stem_depth": -1}),
        ("class_token", {"pool": "cls_gap", "class_token": False}),
        ("registers", {"distillation": True}),
        ("pool", {"distillation": True, "registers": 1, "pool": "gap"}),
        ("norm_after_pool", {"distillation": True, "registers": 1, "norm_after_pool": True}),
        ("pre_logits_dim", {"distillation": True, "registers": 1, "pre_logits_dim": 4}),
        ("width", {"width": 18, "num_heads": 2, "position": "sincos2d"}),
        ("width", {"width": 15, "num_heads": 3, "position": "sincos1d"}),
        ("num_heads", {"width": 12, "num_heads": 2, "rotary": "centered"}),
        ("rotary_grid", {"rotary": "centered", "rotary_grid": 4}),
        ("rotary_offset", {"rotary": "centered", "rotary_offset": 1.0}),
        ("merge_tokens", {"rotary": "index", "merge_tokens": 1}),
        ("merge_tokens", {"block": "twin", "merge_tokens": 1}),
        ("norm_after_pool", {"norm_after_pool": True, "final_norm": False}),
        ("pool_heads", {"pool": "map", "pool_heads": 3}),
    ],
)
def test_bad_combinations_name_the_field(field, settings):
    with pytest.raises(ValueError, match=f"^{field}: received .*; allowed: "):
        ViTConfig(**{**TINY, **settings})


@pytest.mark.parametrize("variant", ["", "B", "B16", "b/16", "X/16", "B/", "B/x", "B/0", "B/-4", "B/²", "/16", 16, None])
def test_unknown_variants_are_listed(variant):
    with pytest.raises(ValueError, match=r"^variant: received .*So400m"):
        ViTConfig.from_variant(variant)


def test_unknown_fields_get_a_hint():
    with pytest.raises(ValueError, match=r"^ViTConfig: received 'num_head' \(did you mean 'num_heads'\?\); allowed: image_size, "):
        ViTConfig.from_variant("B/16", num_head=4)
    with pytest.raises(ValueError, match=r"^ViTConfig: received 'zzz'; allowed: image_size, "):
        ViTConfig.from_variant("B/16", zzz=4)


def test_configs_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ViTConfig().width = 8


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_size": 1_000_000_007}, "image_size: received 1000000007; allowed: an integer from 1 to 65536"),
        ({"width": 1_000_000_007, "num_heads": 2}, "width: received 1000000007; allowed: an integer from 1 to 65536"),
        ({"depth": 10**6}, "depth: received 1000000; allowed: an integer from 1 to 1024"),
        ({"mlp_dim": 10**5000}, "mlp_dim: received an integer of 16,610 bits; allowed: an integer from 1 to 1048576"),
        (
            {"image_size": 4096, "patch_size": 2},
            r"image_size: received \(4096, 4096\), 4,194,304 patches; allowed: at most 1,048,576",
        ),
        ({"image_size": 65_521}, "patch_size: received 16; allowed: the divisors of the image's height: 1, 65521$"),
        ({"layer_scale": 10**400}, "layer_scale: received an integer of 1,329 bits; allowed: a number"),
        ({"pool": "x" * 10**6}, "pool: received 'xxx"),
    ],
)
def test_sizes_of_no_model_are_refused_at_once(settings, message):
    began = time.monotonic()
    with pytest.raises(ValueError, match=f"^{message}") as caught:
        ViTConfig(**settings)
    assert time.monotonic() - began < 1
    assert len(str(caught.value)) < 600


def test_divisors_are_complete_and_quick():
    for number in (1, 2, 12, 49, 97, 360):
        assert divisors(number) == ", ".join(str(d) for d in range(1, number + 1) if number % d == 0)
    began = time.monotonic()
    with pytest.raises(ValueError, match=r"num_heads: received 2; allowed: the divisors of width 1000000007: 1, 1000000007$"):
        check_heads(1_000_000_007, 2)
    assert time.monotonic() - began < 1
