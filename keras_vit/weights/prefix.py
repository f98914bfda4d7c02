"""Moves the positions of prefix tokens (class token, registers) to where a format can hold them; no result changes."""

import dataclasses

import numpy as np

from keras_vit.model.config import ViTConfig


def place_prefix(config: ViTConfig, weights: dict, wanted: str) -> tuple[ViTConfig, dict]:
    """The same model with positions for other prefix tokens.

    A token that loses its position absorbs it: the sum stays the same. A token that gains a position gets zeros. Fixed positions
    become a table.

    Args:
        config: The `ViTConfig`.
        weights: Arrays by path.
        wanted: `none`, `class` or `all`, as `ViTConfig.prefix_positions`.
    """
    weights = dict(weights)
    tokens = [name for name in ("encoder/class_token", "encoder/register_tokens") if name in weights]
    before = config.num_prefix_positions
    config = dataclasses.replace(config, position="learned", prefix_positions=wanted)
    table, after = weights["encoder/position"], config.num_prefix_positions
    if before != after:
        rows, patches = np.split(table, [before], axis=1)
        prefix = np.concatenate([weights[name] for name in tokens], axis=1)
        if after < before:
            prefix = prefix + np.pad(rows[:, after:], ((0, 0), (after, prefix.shape[1] - before), (0, 0)))
        for name, value in zip(tokens, np.split(prefix, [1], axis=1) if len(tokens) == 2 else [prefix], strict=True):
            weights[name] = value
        rows = np.pad(rows, ((0, 0), (0, max(after - before, 0)), (0, 0)))[:, :after]
        weights["encoder/position"] = np.concatenate([rows, patches], axis=1)
    return config, weights
