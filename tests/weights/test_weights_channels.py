"""Checkpoints for images with other channels: the first layer against timm's, in every format."""

import numpy as np
import pytest
from helpers import logits, make_model, random
from peers import module_output, randomise_module, torch

import keras_vit
from keras_vit.model.resample import adapt_channels
from keras_vit.training.finetune import finetune_recipe
from keras_vit.weights.load import load_model
from keras_vit.weights.save import save_weights

timm = pytest.importorskip("timm")
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.mark.parametrize("channels", [1, 2, 4, 5, 7])
def test_the_adaptation_is_timms(channels):
    kernel = random(4, 6, 3, 8)  # rows, columns, channels, outputs
    theirs = timm.models.adapt_input_conv(channels, torch.tensor(kernel).permute(3, 2, 0, 1)).permute(2, 3, 1, 0).numpy()
    np.testing.assert_allclose(adapt_channels(kernel, 3, channels), theirs, rtol=1e-6)


@pytest.mark.parametrize("channels", [1, 5])
def test_a_checkpoint_of_timm_gives_timms_numbers(tmp_path, channels):
    """timm adapts a pretrained checkpoint to `in_chans`; the file is its own, as `create_model(pretrained=True)` reads it."""
    from safetensors.torch import save_file

    architecture = {"embed_dim": 48, "depth": 2, "num_heads": 3, "img_size": 32, "num_classes": 5}
    source = randomise_module(timm.create_model("vit_tiny_patch16_224", **architecture))
    save_file(source.state_dict(), tmp_path / "model.safetensors")
    overlay = {"file": str(tmp_path / "model.safetensors"), "num_classes": 5}
    settings = {**architecture, "in_chans": channels, "pretrained": True, "pretrained_cfg_overlay": overlay}
    theirs = timm.create_model("vit_tiny_patch16_224", **settings).eval()
    images = random(3, 32, 32, channels, seed=9)
    expected = module_output(theirs, images)
    ours = load_model(tmp_path / "model.safetensors", architecture="vit_tiny_patch16_224", channels=channels, image_size=32)
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(logits(ours, images), expected, **TOLERANCE)


@pytest.mark.parametrize("target", ["timm", "huggingface", "jax", "keras", "conv"])
def test_every_format(tmp_path, target, caplog):
    """Grey images give what they gave as RGB, and images that repeat the channels give what the first three gave."""
    settings = {"jax": {"layer_scale": 0.0, "mlp": "gelu_tanh"}, "huggingface": {"layer_scale": 0.0, "pool": "cls"}}.get(target, {})
    name = {"keras": "map", "conv": "conv"}.get(target, "gap")
    model = make_model(name, **settings, data_format="channels_last")
    path = tmp_path / {"jax": "model.npz", "keras": "model.keras", "conv": "model.keras"}.get(target, "model")
    model.save(path) if path.suffix == ".keras" else save_weights(model, path, target)
    height, width = model.config.image_size
    grey = random(2, height, width, 1, seed=1)
    with caplog.at_level("WARNING", "keras_vit"):
        ours = load_model(path, channels=1)
    assert "channels: 3 in the checkpoint, 1 here: the first layer takes the sum of its kernels" in caplog.text
    np.testing.assert_allclose(logits(ours, grey), logits(model, np.repeat(grey, 3, axis=-1)), **TOLERANCE)
    six = load_model(path, channels=6, image_size=(height, width))
    rgb = random(2, height, width, 3, seed=2)
    np.testing.assert_allclose(logits(six, np.concatenate([rgb, rgb], axis=-1)), logits(model, rgb), **TOLERANCE)


def test_channels_and_patch_size_together(tmp_path):
    model = make_model("gap")
    save_weights(model, tmp_path / "model", "timm")
    both = load_model(tmp_path / "model", channels=1, patch_size=(6, 9))
    patches = load_model(tmp_path / "model", patch_size=(6, 9))
    grey = random(2, 12, 18, 1)
    np.testing.assert_allclose(logits(both, grey), logits(patches, np.repeat(grey, 3, axis=-1)), **TOLERANCE)
    other = keras_vit.build_vit(both.config)
    with pytest.raises(ValueError, match=r"resize=True allows another image or patch size, or channels$"):
        keras_vit.load_weights(other, tmp_path / "model")


def test_fine_tuning_on_other_channels(tmp_path):
    model = make_model("gap")
    save_weights(model, tmp_path / "model", "timm", mean=[0.1, 0.2, 0.6], std=[0.2, 0.3, 0.4])
    recipe = finetune_recipe(tmp_path / "model", model={"channels": 5})
    assert (recipe.model.channels, recipe.mean, recipe.std) == (5, [0.1, 0.2, 0.6, 0.1, 0.2], [0.2, 0.3, 0.4, 0.2, 0.3])
    grey = finetune_recipe(tmp_path / "model", model={"channels": 1})
    assert (grey.mean, grey.std) == ([pytest.approx(0.3)], [pytest.approx(0.3)])
    stated = finetune_recipe(tmp_path / "model", model={"channels": 2}, mean=[0.5, 0.25], std=1.0)
    assert (stated.mean, stated.std) == ([0.5, 0.25], [1.0])
    assert finetune_recipe(tmp_path / "model").mean == [0.1, 0.2, 0.6]
