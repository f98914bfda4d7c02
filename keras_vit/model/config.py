"""A Vision Transformer's architecture in one frozen dataclass; its variants are rows of one table."""

import dataclasses
import math
import re
import typing

from keras_vit.checks import as_pair, check_choice, check_fields, check_int, check_number, make_plain, shown
from keras_vit.model import counts
from keras_vit.model.limits import (
    POSITIONS,
    ROTARY,
    check_heads,
    check_patches,
    check_position,
    check_rotary,
    check_sizes,
    count_prefix_positions,
)

POOLS = ("cls", "gap", "cls_gap", "map")
PREFIX_POSITIONS = ("none", "class", "all")
STEMS = ("patch", "conv")
BLOCKS = ("serial", "parallel", "twin")
MLPS = ("gelu", "gelu_tanh", "gelu_quick", "swiglu")
DATA_FORMATS = ("channels_last", "channels_first")

# A variant is a row of this table plus a patch size: "S/16".
VARIANTS = {
    # 'An image is worth 16x16 words' (arXiv 2010.11929), 'How to train your ViT?' (2106.10270),
    # 'Scaling Vision Transformers' (2106.04560; g as in table 2 there).
    "Ti": {"width": 192, "depth": 12, "num_heads": 3, "mlp_dim": 768},
    "S": {"width": 384, "depth": 12, "num_heads": 6, "mlp_dim": 1536},
    "M": {"width": 512, "depth": 12, "num_heads": 8, "mlp_dim": 2048},
    "B": {"width": 768, "depth": 12, "num_heads": 12, "mlp_dim": 3072},
    "L": {"width": 1024, "depth": 24, "num_heads": 16, "mlp_dim": 4096},
    "H": {"width": 1280, "depth": 32, "num_heads": 16, "mlp_dim": 5120},
    "g": {"width": 1408, "depth": 40, "num_heads": 16, "mlp_dim": 6144},
    # 'Getting ViT in Shape' (2305.13035): the shape-optimised one of SigLIP.
    "So400m": {"width": 1152, "depth": 27, "num_heads": 16, "mlp_dim": 4304},
    # DINOv2 (2304.07193): a wider g with more heads and a gated MLP.
    "g-dinov2": {"width": 1536, "depth": 40, "num_heads": 24, "mlp_dim": 4096, "mlp": "swiglu"},
    # 'Escaping the Big Data Paradigm with Compact Transformers' (2104.05704), table 8: for 32x32 images.
    "Lite-6": {"width": 256, "depth": 6, "num_heads": 4, "mlp_dim": 512},
    "Lite-7": {"width": 256, "depth": 7, "num_heads": 4, "mlp_dim": 512},
    "Compact-2": {"width": 128, "depth": 2, "num_heads": 2, "mlp_dim": 128},
    "Compact-4": {"width": 128, "depth": 4, "num_heads": 2, "mlp_dim": 128},
}


@dataclasses.dataclass(frozen=True)
class ViTConfig:
    """The architecture of a Vision Transformer. Defaults are ViT-B/16 at 224 px (arXiv 2010.11929).

    Attributes:
        image_size: Height and width in pixels; one number for a square.
        channels: Channels of the image, 1 (grey) or 3 (RGB) for the data sets here; any positive number.
        patch_size: Height and width of a patch in pixels; one number for a square. Divides `image_size`.
        width: Size D of a token.
        depth: Number of transformer blocks.
        num_heads: Attention heads. Divides `width`.
        mlp_dim: Size of the MLP's hidden layer.
        num_classes: Size of the output; 0 omits the head: the model returns the pooled features.
        pool: What the head sees: `cls` (the class token), `gap` (mean of the patch tokens), `cls_gap` (both side by side, 2D
            features, as the classifiers of DINOv2, arXiv 2304.07193) or `map` (attention pooling with one learned query,
            arXiv 2106.04560).
        class_token: Whether a class token is prepended; None means only where `pool` is `cls` or `cls_gap`.
        registers: Number of register tokens (arXiv 2309.16588), after the class token.
        distillation: Whether the first register is DeiT's distillation token (arXiv 2012.12877): it has a head of its own, and
            the output is the mean of both. Needs `pool` `cls`.
        position: `learned`, `sincos2d` (fixed, arXiv 2104.02057), `sincos1d` (fixed, 'Attention is all you need',
            arXiv 1706.03762, over the tokens in row-major order) or `none`.
        prefix_positions: Which prefix tokens have a position of their own: `none`, `class` (the class token) or
            `all` (registers too). Fixed 2-D positions give prefix tokens none.
        rotary: Rotary positions (arXiv 2104.09864), with or without those of `position`: every block turns queries and keys of
            patches by angles that depend on row and column. `none`, `centered` (the image spans the same angles whatever its
            size; DINOv3, arXiv 2508.10104) or `index` (rows and columns are counted; RoPE-ViT, arXiv 2403.13298).
        rotary_base: Base of the frequencies; angles shrink from the coordinate to nearly 1/base of it over a head's channels.
        rotary_grid: Rows and columns that the count of `index` is stretched to, as EVA-02 (arXiv 2303.11331) does with those of its
            pretraining; None = not stretched.
        rotary_offset: Added to the count of `index`.
        stem: `patch` (one linear projection of the flattened patch) or `conv` (3x3 convolutions of stride 2 with GELU, one for
            each halving from the image to the patch grid; arXiv 2106.14881). `conv` needs a patch size of 2^n.
        stem_depth: Residual blocks of two 3x3 convolutions after each convolution of the stem `conv`.
        mlp: `gelu` (exact, erf), `gelu_tanh` (the approximation that Flax takes), `gelu_quick` (x sigmoid(1.702 x), CLIP's) or
            `swiglu` (gated, arXiv 2002.05202).
        dropout: Dropout of the embedded tokens, the attention output and the MLP, 0 to below 1.
        attention_dropout: Dropout of the attention weights, 0 to below 1.
        drop_path: Stochastic depth rate (arXiv 1603.09382) of the last block, 0 to below 1. Rates rise linearly from 0 at the
            first block; a single block has 0.
        patch_dropout: Fraction of patches dropped after the embedding, redrawn per image and step (arXiv 2208.07220), 0 to below
            1. Training then costs less in proportion.
        merge_tokens: Number of patch tokens that each block merges into their most similar tokens after its attention (ToMe,
            arXiv 2210.09461), at most half of the patch tokens present. Saves operations and changes the output slightly. Needs
            no weights: any trained model can be loaded with it.
        block: `serial` (attention, then MLP), `parallel` (both side by side, after one norm; arXiv 2302.05442) or `twin` (two
            attentions side by side, then two MLPs; arXiv 2203.09795).
        layer_scale: Initial value of the per-channel scale of each residual branch (arXiv 2103.17239); 0 = none.
        qk_norm: Whether queries and keys are layer-normalised per head (arXiv 2302.05442).
        attention_norm: Whether the attention's output is layer-normalised before its projection ('sub-LN', arXiv 2210.06423).
        mlp_norm: Whether the MLP's hidden layer is layer-normalised before its projection, likewise.
        rms_norm: Whether every norm is a root-mean-square norm (arXiv 1910.07467) instead of a layer normalisation.
        norm_epsilon: Epsilon of every layer normalisation.
        pre_norm: Whether a norm precedes the first block, as in CLIP (arXiv 2103.00020); the patch projection then has no bias.
        norm_after_pool: Whether the last norm follows the pooling (`fc_norm` of timm) instead of preceding it.
        final_norm: Whether there is a last norm at all.
        pool_heads: Heads of the attention pooling; 0 = `num_heads`. Divides `width`.
        pool_mlp_dim: Size of the hidden layer of the attention pooling's MLP; 0 = `mlp_dim`.
        pool_prefix: Whether the attention pooling sees class token and registers too.
        pre_logits_dim: Size of a tanh layer between pooling and head, as in checkpoints of ImageNet-21k; 0 = none.
        qkv_bias: Whether the query, key and value projections have a bias.
        key_bias: Whether the blocks' keys have a bias too, where `qkv_bias` is True.
        use_bias: Whether the other projections of patches, attention and MLP have a bias.
        data_format: `channels_last` (B, H, W, C) or `channels_first` (B, C, H, W) images; the weights are the same.

    Raises:
        ValueError: Naming the field, what was received and what is allowed.
    """

    image_size: int | tuple[int, int] = 224
    channels: int = 3
    patch_size: int | tuple[int, int] = 16
    width: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_dim: int = 3072
    num_classes: int = 1000
    pool: typing.Literal[POOLS] = "cls"
    class_token: bool | None = None
    registers: int = 0
    distillation: bool = False
    position: typing.Literal[POSITIONS] = "learned"
    prefix_positions: typing.Literal[PREFIX_POSITIONS] = "class"
    rotary: typing.Literal[ROTARY] = "none"
    rotary_base: float = 100.0
    rotary_grid: int | tuple[int, int] | None = None
    rotary_offset: float = 0.0
    stem: typing.Literal[STEMS] = "patch"
    stem_depth: int = 0
    mlp: typing.Literal[MLPS] = "gelu"
    dropout: float = 0.0
    attention_dropout: float = 0.0
    drop_path: float = 0.0
    patch_dropout: float = 0.0
    merge_tokens: int = 0
    block: typing.Literal[BLOCKS] = "serial"
    layer_scale: float = 0.0
    qk_norm: bool = False
    attention_norm: bool = False
    mlp_norm: bool = False
    rms_norm: bool = False
    norm_epsilon: float = 1e-6
    pre_norm: bool = False
    norm_after_pool: bool = False
    final_norm: bool = True
    pool_heads: int = 0
    pool_mlp_dim: int = 0
    pool_prefix: bool = True
    pre_logits_dim: int = 0
    qkv_bias: bool = True
    key_bias: bool = True
    use_bias: bool = True
    data_format: typing.Literal[DATA_FORMATS] = "channels_last"

    def __post_init__(self):
        make_plain(self)
        for name in ("image_size", "patch_size"):
            object.__setattr__(self, name, as_pair(name, getattr(self, name)))
        check_sizes(self)
        for name in ("dropout", "attention_dropout", "drop_path", "patch_dropout"):
            check_number(name, getattr(self, name), at_least=0, below=1)
        flags = ("distillation", "qk_norm", "rms_norm", "attention_norm", "mlp_norm", "pre_norm", "norm_after_pool")
        for name in (*flags, "final_norm", "pool_prefix", "qkv_bias", "key_bias", "use_bias"):
            check_choice(name, getattr(self, name), (True, False))
        for name, allowed in (
            ("pool", POOLS),
            ("prefix_positions", PREFIX_POSITIONS),
            ("stem", STEMS),
            ("block", BLOCKS),
            ("mlp", MLPS),
            ("data_format", DATA_FORMATS),
            ("class_token", (True, False, None)),
        ):
            check_choice(name, getattr(self, name), allowed)
        check_number("layer_scale", self.layer_scale, at_least=0)
        check_number("norm_epsilon", self.norm_epsilon, above=0)
        check_patches(self.image_size, self.patch_size)
        for patch in self.patch_size if self.stem == "conv" else ():
            if patch < 2 or patch & (patch - 1):
                raise ValueError(f"patch_size: received {patch}; allowed: powers of 2 from 2 on, with stem conv")
        check_int("stem_depth", self.stem_depth, at_least=0)
        if self.stem != "conv" and self.stem_depth:
            raise ValueError(f"stem_depth: received {self.stem_depth}; allowed: 0 with stem {self.stem}")
        if self.stem == "conv" and self.patch_size[0] != self.patch_size[1]:
            raise ValueError(f"patch_size: received {self.patch_size}; allowed: a square, with stem conv")
        check_heads(self.width, self.num_heads)
        check_position(self.position, self.width)
        check_rotary(self.rotary, self.rotary_base, self.rotary_grid, self.rotary_offset, self.head_dim)
        if self.rotary_grid is not None:
            object.__setattr__(self, "rotary_grid", as_pair("rotary_grid", self.rotary_grid))
        if self.pool == "map" and self.pool_heads:
            check_heads(self.width, self.pool_heads, "pool_heads")
        for name, default in (("pool_heads", 0), ("pool_mlp_dim", 0), ("pool_prefix", True)):
            if self.pool != "map" and getattr(self, name) != default:
                raise ValueError(f"{name}: received {getattr(self, name)}; allowed: {default} with pool {self.pool}")
        if self.norm_after_pool and not self.final_norm:
            raise ValueError("norm_after_pool: received True; allowed: False without final_norm")
        if self.block != "serial" and self.merge_tokens:
            raise ValueError(f"merge_tokens: received {self.merge_tokens}; allowed: 0 with block {self.block}")
        if self.rotary != "none" and self.merge_tokens:
            raise ValueError(f"merge_tokens: received {self.merge_tokens}; allowed: 0 with rotary positions")
        if self.pool in ("cls", "cls_gap") and self.class_token is False:
            raise ValueError(f"class_token: received False; allowed: True, None with pool {self.pool}")
        if self.distillation:
            for name, allowed in (("pool", "cls"), ("norm_after_pool", False), ("pre_logits_dim", 0)):
                if getattr(self, name) != allowed:
                    raise ValueError(f"{name}: received {getattr(self, name)!r}; allowed: {allowed!r} with distillation")
            if not self.registers:
                raise ValueError("registers: received 0; allowed: an integer of at least 1 with distillation")

    @classmethod
    def from_variant(cls, variant: str, **overrides) -> typing.Self:
        """The configuration of a variant such as "S/16"; overrides win, unknown names raise.

        Args:
            variant: A name of `VARIANTS`, a slash and the patch size in pixels: "Ti/4", "B/16", "g-dinov2/14".
            **overrides: Any field of `ViTConfig`.

        Raises:
            ValueError: For an unknown variant or field.
        """
        settings = {**decode_variant(variant), **overrides}
        check_fields(cls, settings)
        return cls(**settings)

    def to_dict(self) -> dict:
        """The fields as plain Python values (pairs become lists); `ViTConfig(**d)` gives an equal configuration."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}

    @property
    def grid_size(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return tuple(image // patch for image, patch in zip(self.image_size, self.patch_size, strict=True))

    @property
    def num_patches(self) -> int:
        return math.prod(self.grid_size)

    @property
    def has_class_token(self) -> bool:
        return self.pool in ("cls", "cls_gap") if self.class_token is None else self.class_token

    @property
    def num_tokens(self) -> int:
        """Length N of the sequence: class token, registers and patches."""
        return self.num_prefix_tokens + self.num_patches

    @property
    def num_prefix_tokens(self) -> int:
        """How many tokens stand before the patches: class token and registers."""
        return self.has_class_token + self.registers

    @property
    def num_prefix_positions(self) -> int:
        """How many prefix tokens have a position of their own; see `count_prefix_positions`."""
        return count_prefix_positions(self.position, self.prefix_positions, self.has_class_token, self.registers)

    @property
    def merged_tokens(self) -> tuple[int, ...]:
        """How many tokens each block merges."""
        patches, merged = self.num_patches, []
        for _ in range(self.depth):
            merged.append(min(self.merge_tokens, patches // 2))
            patches -= merged[-1]
        return tuple(merged)

    @property
    def head_dim(self) -> int:
        return self.width // self.num_heads

    @property
    def stem_widths(self) -> tuple[int, ...]:
        """Channels after each convolution of the conv stem: doubling, up to `width`."""
        steps = int(math.log2(self.patch_size[0]))
        return tuple(max(self.width >> (steps - 1 - step), 1) for step in range(steps))

    @property
    def drop_path_rates(self) -> tuple[float, ...]:
        """The stochastic depth rate of each block, linear from 0 to `drop_path`."""
        return tuple(self.drop_path * block / max(self.depth - 1, 1) for block in range(self.depth))

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape of one input image without the batch axis."""
        if self.data_format == "channels_last":
            return (*self.image_size, self.channels)
        return (self.channels, *self.image_size)

    @property
    def pooled_dim(self) -> int:
        """Size of the pooled features."""
        return self.width * (2 if self.pool == "cls_gap" else 1)

    @property
    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Path and shape of each weight of the model that `build_vit` makes."""
        return counts.weight_shapes(self)

    @property
    def num_params(self) -> int:
        """Number of trainable parameters of the model that `build_vit` makes."""
        return counts.num_params(self)

    @property
    def flops(self) -> int:
        """Floating-point operations of one image's forward pass; see `counts.flops`."""
        return counts.flops(self, self.num_patches)

    @property
    def training_flops(self) -> int:
        """FLOPs of one image's training step, on the patches that `patch_dropout` keeps: three times a forward pass."""
        return counts.training_flops(self)


def decode_variant(variant: str) -> dict:
    """The fields that a variant such as "S/16" stands for, as a dictionary."""
    name, slash, patch = variant.rpartition("/") if isinstance(variant, str) else ("", "", "")
    if not slash or name not in VARIANTS or not re.fullmatch("0*[1-9][0-9]{0,4}", patch):
        raise ValueError(
            f"variant: received {shown(variant)}; allowed: NAME/PATCH with NAME one of {', '.join(VARIANTS)}, as in 'S/16'"
        )
    return {**VARIANTS[name], "patch_size": int(patch)}
