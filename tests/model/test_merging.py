"""Token merging against a plain NumPy one, in the model, and what it leaves of its outputs."""

import keras
import numpy as np
import pytest
from helpers import COMMON, numpy, predict, random
from keras import ops

from keras_vit import ViTConfig, build_vit, features, load_model, save_weights
from keras_vit.model.block import TransformerBlock
from keras_vit.model.merging import MergingBlock, merge_tokens
from keras_vit.training.models import compile_model

backend = pytest.mark.backend
TINY = {**COMMON, "image_size": 16, "patch_size": 4, "width": 24, "depth": 3, "num_heads": 3, "num_classes": 5}


def reference(x, sizes, keys, count, start):
    """One image after the other, one token after the other."""
    results = []
    for tokens, size, key in zip(x, sizes[:, :, 0], keys, strict=True):
        key = key / np.linalg.norm(key, axis=-1, keepdims=True)
        first, second = range(start, len(tokens), 2), range(start + 1, len(tokens), 2)
        best = sorted(((max((key[i] @ key[j], j) for j in second), i) for i in first), reverse=True)
        groups = {i: [i] for i in range(len(tokens))}
        for (_, j), i in best[:count]:
            groups[j].append(groups.pop(i)[0])
        kept = [*range(start), *(i for _, i in best[count:]), *second]
        groups = [groups[i] for i in kept]
        results.append(([np.average(tokens[g], axis=0, weights=size[g]) for g in groups], [[size[g].sum()] for g in groups]))
    return [np.array(values, "float32") for values in zip(*results, strict=True)]


SIZES = [(*size, count) for size in ((16, 0), (17, 1), (18, 1), (19, 4)) for count in (1, 5)]
EVERYWHERE = ((17, 1, 1), (19, 4, 5))


@pytest.mark.parametrize(
    ("tokens", "start", "count"), [pytest.param(*size, marks=backend if size in EVERYWHERE else ()) for size in SIZES]
)
def test_merging_is_the_plain_one(tokens, start, count):
    x, keys = random(3, tokens, 6), random(3, tokens, 4, seed=1)
    sizes = np.random.default_rng(2).integers(1, 4, (3, tokens, 1)).astype("float32")
    got = merge_tokens(*map(ops.convert_to_tensor, (x, sizes, keys)), count, start)
    for ours, theirs in zip(got, reference(x, sizes, keys, count, start), strict=True):
        np.testing.assert_allclose(numpy(ours), theirs, atol=1e-6)


def test_config_of_a_merging_block():
    """The constructor's arguments, those of `TransformerBlock` among them."""
    arguments = {"width": 24, "num_heads": 3, "mlp_dim": 32, "mlp": "swiglu", "dropout": 0.1, "attention_dropout": 0.2}
    arguments |= {"drop_path": 0.3, "layer_scale": 0.4, "qk_norm": True, "norm_epsilon": 1e-5, "qkv_bias": False}
    arguments |= {"use_bias": False, "key_bias": False, "attention_norm": True, "mlp_norm": True, "rms_norm": True}
    arguments |= {"merge_tokens": 3, "num_prefix_tokens": 1}
    block = MergingBlock(**arguments)
    config = block.get_config()
    assert {name: config[name] for name in arguments} == arguments
    assert set(config) == {*arguments, "name", "trainable", "dtype"}
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(block))
    x = ops.convert_to_tensor(random(2, 9, 24))
    expected, _ = block(x)
    again.build(x.shape)
    again.set_weights(block.get_weights())
    np.testing.assert_array_equal(numpy(again(x)[0]), numpy(expected))


@backend
@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_a_block_states_the_shapes_that_it_gives(dtype):
    block = MergingBlock(24, 3, 32, merge_tokens=3, num_prefix_tokens=1, dtype=dtype)
    stated, given = block(keras.Input((9, 24), 2)), block(random(2, 9, 24))
    for ours, theirs in zip(stated, given, strict=True):
        assert ours.shape == tuple(theirs.shape)
        assert ours.dtype == keras.backend.standardize_dtype(theirs.dtype)


@backend
def test_tokens_that_are_alike_merge_without_loss():
    """Pairs of equal patches: half of the tokens stand for all of them, and attention counts each twice."""
    layers = [TransformerBlock(24, 3, 32), *(MergingBlock(24, 3, 32, merge_tokens=count) for count in (4, 0))]
    x = np.repeat(random(2, 4, 24), 2, axis=1)
    for layer in layers:
        layer.build(x.shape)
        layer.set_weights([random(*weight.shape, seed=index) / 4 for index, weight in enumerate(layer.weights)])
    whole = layers[0](x)
    merged, sizes = layers[1](x)
    np.testing.assert_array_equal(numpy(sizes), 2 * np.ones((2, 4, 1)))
    np.testing.assert_allclose(numpy(merged), numpy(whole)[:, ::2], atol=1e-5)
    again, same = layers[2](merged, sizes)
    np.testing.assert_array_equal(numpy(same), numpy(sizes))
    np.testing.assert_allclose(numpy(again), numpy(layers[0](whole))[:, ::2], atol=1e-5)


@pytest.mark.parametrize("pool", [pytest.param("cls_gap", marks=backend), "map"])
def test_model_with_merging(tmp_path, pool):
    plain = build_vit(ViTConfig(**TINY, pool=pool, registers=2))
    for index, weight in enumerate(plain.weights):
        weight.assign(random(*weight.shape, seed=index) / 4)
    plain.save(tmp_path / "model.keras")
    model = load_model(tmp_path / "model.keras", merge_tokens=5)
    assert model.config.merged_tokens == (5, 5, 3)
    assert model.config.flops < plain.config.flops
    assert model.config.num_params == plain.config.num_params
    images = random(4, 16, 16, 3)
    seen = predict(features(model, ["block_0", "block_1/attention", "block_2", "pool"]), images)
    prefix = plain.config.num_tokens - 16
    assert tuple(seen["block_0"].shape) == (4, prefix + 11, 24)
    assert tuple(seen["block_1/attention"].shape) == (4, 3, prefix + 11, prefix + 11)
    assert tuple(seen["block_2"].shape) == (4, prefix + 3, 24)
    exact, near = predict(features(plain, "pool"), images)["pool"], seen["pool"]
    assert 0 < np.abs(near - exact).mean() < 0.5 * np.abs(exact).mean()
    model.save(tmp_path / "merging.keras")
    again = keras.models.load_model(tmp_path / "merging.keras")
    np.testing.assert_allclose(predict(again, images), predict(model, images), atol=1e-6)


@backend
def test_a_merging_model_learns_and_remat_trains_to_the_same_weights():
    images, targets, trained = random(10, 16, 16, 3), np.eye(5)[np.arange(10) % 5], []
    for remat in (False, True):
        keras.utils.set_random_seed(1)
        model = build_vit(ViTConfig(**TINY, merge_tokens=2), remat=remat)
        model.set_weights([random(*weight.shape, seed=index) / 4 for index, weight in enumerate(model.weights)])
        compile_model(model, keras.optimizers.SGD(0.1), "auto")
        before = model.get_weights()
        losses = []
        for _ in range(4):
            model.reset_metrics()
            losses.append(model.train_on_batch(images, targets)[0])
        trained.append(model.get_weights())
        assert losses == sorted(losses, reverse=True)
    assert all(np.abs(after - start).max() > 1e-6 for after, start in zip(trained[0], before, strict=True) if start.ndim > 1)
    for a, b in zip(*trained, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_no_more_is_merged_than_patch_dropout_leaves():
    """4 of 16 patches, of which the blocks merge 2, then 1, then none."""
    model = build_vit(ViTConfig(**TINY, merge_tokens=2, patch_dropout=0.75))
    compile_model(model, "sgd", "auto")
    before = numpy(model.get_layer("block_2").attention.qkv.kernel)
    model.get_layer("head").kernel.assign(random(24, 5))
    history = model.fit(random(4, 16, 16, 3), np.eye(5)[:4], verbose=0).history
    assert np.isfinite(history["loss"]).all()
    assert not np.array_equal(numpy(model.get_layer("block_2").attention.qkv.kernel), before)


def test_what_cannot_be_merged_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"^merge_tokens: received 4; allowed: half of the 6 patch tokens"):
        MergingBlock(8, 2, 12, merge_tokens=4, num_prefix_tokens=1).build((None, 7, 8))
    block = MergingBlock(8, 2, 12, merge_tokens=2)
    with pytest.raises(ValueError, match="mask: received one"):
        block(random(2, 6, 8), mask=np.ones((2, 6), bool))
    with pytest.raises(ValueError, match="merge_tokens: received 2; allowed: 0"):
        save_weights(build_vit(ViTConfig(**TINY, merge_tokens=2)), tmp_path / "timm", "timm")
