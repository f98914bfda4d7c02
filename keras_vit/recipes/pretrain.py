"""Pre-training on images without labels: the section of a recipe."""

import dataclasses
import typing

from keras_vit.checks import check_choice, check_int, check_number, make_plain, refuse
from keras_vit.model.counts import kept_patches

PRETRAINING = ("none", "mae")


@dataclasses.dataclass(frozen=True)
class PretrainConfig:
    """Pre-training on images without labels, of which the encoder then serves as a checkpoint for fine-tuning.

    Attributes:
        method: `none` (the training is of a classifier) or `mae` (masked autoencoding, arXiv 2111.06377: most patches of an image
            are hidden, the model sees the rest, and a small decoder paints the hidden ones).
        mask_ratio: Share of the patches that is hidden, above 0 and below 1. The blocks see the rest alone: a step costs less in
            proportion.
        normalize: Whether each hidden patch has mean 0 and variance 1 as the decoder's target, which the paper found better;
            false = its pixels, normalised by the recipe's mean and std.
        decoder_width: Size of a token in the decoder, a multiple of 4 and of `decoder_heads`.
        decoder_depth: Blocks of the decoder.
        decoder_heads: Its attention heads.
    """

    method: typing.Literal[PRETRAINING] = "none"
    mask_ratio: float = 0.75
    normalize: bool = True
    decoder_width: int = 64
    decoder_depth: int = 1
    decoder_heads: int = 4

    def __post_init__(self):
        make_plain(self)
        check_choice("method", self.method, PRETRAINING)
        check_number("mask_ratio", self.mask_ratio, above=0, below=1)
        check_choice("normalize", self.normalize, (True, False))
        for name in ("decoder_width", "decoder_depth", "decoder_heads"):
            check_int(name, getattr(self, name), at_least=1)
        if self.decoder_width % 4 or self.decoder_width % self.decoder_heads:
            allowed = f"multiples of 4 and of decoder_heads, {self.decoder_heads}"
            raise ValueError(f"decoder_width: received {self.decoder_width}; allowed: {allowed}")
        if not self:
            refuse(self, [field.name for field in dataclasses.fields(self)], "with pretrain.method=none")

    def __bool__(self):
        """Whether the training is a pre-training."""
        return self.method != "none"

    def check_recipe(self, recipe) -> None:
        """Raises a ValueError for settings of a recipe that have no meaning without labels, or do not fit."""
        where = f"with pretrain.method={self.method}"
        model, train, augment = recipe.model, recipe.train, recipe.augment
        patches = model.num_patches
        if not 0 < kept_patches(patches, self.mask_ratio) < patches:
            raise ValueError(f"mask_ratio: received {self.mask_ratio}; allowed: one that hides some of {patches} patches, not all")
        for section, names in ((model, ("patch_dropout", "merge_tokens")), (augment, ("mixup", "cutmix", "label_smoothing"))):
            refuse(section, names, where)
        refuse(recipe.finetune, ("checkpoint",), where)
        refuse(recipe.distill, ("teacher",), where)
        refuse(train, ("loss", "focal_gamma", "class_weights", "sampling"), where)
        if recipe.labels != "auto":
            raise ValueError(f"labels: received {recipe.labels!r}; allowed: 'auto' {where}, which reads none")
        if train.distribute == "model":
            raise ValueError(f"distribute: received model; allowed: none, data {where}")
        if train.stages:
            raise ValueError(f"stages: received {len(train.stages)}; allowed: none {where}")
        if train.monitor not in ("auto", "loss"):
            raise ValueError(f"monitor: received {train.monitor!r}; allowed: auto, loss {where}")
