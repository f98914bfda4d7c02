"""Fine-tuning: what is trained and what is left alone bit for bit, adapters, rates by depth, and the command."""

import dataclasses
import math
import shutil

import keras
import numpy as np
import pytest
from helpers import SMALL, error_line, kill, logits, numpy, start
from reference import random_images
from reference import weights_of as weights_in_place

import keras_vit
from keras_vit import RunFolder, ViTConfig
from keras_vit.cli import finetune
from keras_vit.data.dataset import DataSet, Split
from keras_vit.model.adapters import merged_weights
from keras_vit.parity import randomise
from keras_vit.processes import run_command
from keras_vit.recipes.parse import load_recipe
from keras_vit.recipes.schema import FinetuneConfig, TrainConfig
from keras_vit.training.finetune import LEARNING_RATES, describe_trained, finetune_recipe, learning_rate_factors, select_weights
from keras_vit.training.loop import train
from keras_vit.training.models import compile_model, compiled_model
from keras_vit.training.optimizer import make_optimizer, own_optimizer

backend = pytest.mark.backend
MERGED = 1e-5  # absolute, logits of a model with adapters against one with merged kernels
EXACT = 1e-6  # the same sums in another order, weights of about 1
MODEL = {**SMALL, "depth": 2}
SETTINGS = {"epochs": 2, "batch_size": 16, "warmup_epochs": 0, "learning_rate": 0.02, "weight_decay": 0.5}
PLAIN = {"flip": False, "crop": 0}
RANK, ALPHA = 2, 6.0
LORA = {"method": "lora", "lora_rank": RANK, "lora_alpha": ALPHA}
BLOCK = 2 * 16 + (8 * 24 + 24) + (8 * 8 + 8) + (8 * 12 + 12) + (12 * 8 + 8)  # norms, qkv, projection, fc1, fc2
ADAPTERS = RANK * ((8 + 24) + (8 + 8) + (8 + 12) + (12 + 8))  # of one block
HEAD = 8 * 3 + 3
EMBEDDING = (12 * 8 + 8) + 8 + 9 * 8  # projection, class token, positions of class token and 2 x 4 patches
ALL = EMBEDDING + 2 * BLOCK + 16 + HEAD


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


def made_data(size=(8, 12), classes=("a", "b", "c"), seed=0):
    rng = np.random.default_rng(seed)
    parts = [Split(rng.integers(256, size=(n, *size, 1)).astype("uint8"), np.arange(n) % len(classes)) for n in (64, 12)]
    return DataSet("made", parts[0], None, parts[1], list(classes), "f", [])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A run folder whose weights are all random."""
    recipe = load_recipe(
        "digits", model=MODEL | {"pool": "cls", "stem": "patch", "stem_depth": 0}, augment=PLAIN, train=SETTINGS, mean=0.4, std=0.3
    )
    run = train(recipe, tmp_path_factory.mktemp("checkpoint") / "run", data=made_data(), verbose=0, pictures=False)
    run.write_model(1, randomise(run.model()))
    return run


class Keep(keras.callbacks.Callback):
    """Keeps the model that was trained, with its weights."""

    def on_train_end(self, logs=None):
        self.kept = self.model


def tune(checkpoint, folder, *, data=None, until=None, resume=False, model=None, settings=None, seed=0, **options):
    recipe = finetune_recipe(
        checkpoint.path,
        data="made",
        augment=PLAIN,
        train=SETTINGS | (settings or {}),
        finetune=options,
        model=model or {},
        seed=seed,
    )
    keep = Keep()
    data = data or made_data(recipe.model.image_size, seed=1)
    run = train(recipe, folder, data=data, until=until, resume=resume, callbacks=[keep], verbose=0, pictures=False)
    return run, keep.kept


@pytest.fixture(scope="module")
def lora(checkpoint, tmp_path_factory):
    """A run with adapters and averaged weights, and the model that was trained."""
    return tune(checkpoint, tmp_path_factory.mktemp("lora") / "run", settings={"ema": 0.7}, **LORA)


def prepare(checkpoint, *, settings=None, data=None, model=None, **options):
    """The model as it is before the first step, and its notes."""
    recipe = finetune_recipe(checkpoint.path, data="made", augment=PLAIN, train=SETTINGS, finetune=options, model=model or {})
    data = data or made_data(recipe.model.image_size)
    return compiled_model(recipe.for_data(data), total_steps=1, class_names=data.class_names)


def weights_of(model):
    return {path: np.array(value) for path, value in weights_in_place(model).items()}  # PyTorch gives views


def changed(before, after):
    return {path for path in before if not np.array_equal(before[path], after[path])}


# What is trained


FREEZE = ({"freeze": 1}, ("block_1", "norm", "head"), ALL - EMBEDDING - BLOCK)
PROBE = ({"method": "probe"}, ("head",), HEAD)
ONE_BLOCK = ({**LORA, "freeze": 1}, ("head",), HEAD + ADAPTERS)
CASES = {
    "full": ({}, ("encoder", "block_0", "block_1", "norm", "head"), ALL),
    "freeze 1": FREEZE,
    "probe": PROBE,
    "lora of one block": ONE_BLOCK,
}


@pytest.mark.parametrize(("options", "layers", "count"), CASES.values(), ids=CASES)
def test_only_what_should_is_trained(checkpoint, tmp_path, options, layers, count):
    trained = tune(checkpoint, tmp_path / "run", settings={"ema": 0.5}, **options)
    check_trained(checkpoint, *trained, options, layers, count)


@backend
@pytest.mark.slow
@pytest.mark.parametrize(("options", "layers", "count"), CASES.values(), ids=CASES)
def test_muon_trains_only_what_it_should(checkpoint, tmp_path, options, layers, count):
    trained = tune(checkpoint, tmp_path / "run", settings={"ema": 0.5, "optimizer": "muon"}, **options)
    check_trained(checkpoint, *trained, options, layers, count)


@backend
def test_only_head_and_adapters_are_trained(checkpoint, lora):
    check_trained(checkpoint, *lora, LORA, ("head",), HEAD + 2 * ADAPTERS)


def check_trained(checkpoint, run, model, options, layers, count):
    assert run.summary["trained_parameters"] == count
    assert run.summary["parameters"] == ALL
    before, after, saved = weights_of(checkpoint.model()), weights_of(model), weights_of(run.model())
    adapted = (
        {f"block_{index}" for index in range(options.get("freeze", 0), MODEL["depth"])}
        if options.get("method") == "lora"
        else set()
    )
    kernels = {path for path in before if path.split("/")[0] in adapted and path.endswith("kernel")}
    assert len(kernels) == 4 * len(adapted)
    trained = {path for path in before if path.split("/")[0] in layers}
    assert changed(before, after) == trained
    assert changed(before, saved) == trained | kernels
    adapters = {path for path in after if path not in before}
    assert adapters == {f"{path.removesuffix('kernel')}lora_kernel_{side}" for path in kernels for side in "ab"}
    assert all(np.abs(after[path]).max() > 0 for path in adapters)
    # The optimizer keeps state of what is trained, and of nothing else.
    variables = [variable for variable in model.optimizer.variables if variable.path.split("/")[-1].endswith("_average")]
    assert sum(math.prod(variable.shape) for variable in variables) == count
    sizes = sum(math.prod(variable.shape) for variable in model.optimizer.variables)
    assert sizes <= 3 * count + 10


@backend
def test_adapters_start_as_nothing_and_are_reported(checkpoint):
    model, images = checkpoint.model(), random_images(checkpoint.model().config)
    before = logits(model, images)
    select_weights(model, FinetuneConfig(checkpoint="x", **LORA))
    np.testing.assert_array_equal(weights_of(model)["block_0/mlp/fc1/lora_kernel_b"], 0)
    np.testing.assert_allclose(logits(model, images), before, atol=EXACT)
    assert describe_trained(model) == (
        f"trained: block_0 to block_1, head: {HEAD + 2 * ADAPTERS} of {ALL + 2 * ADAPTERS:,} parameters in 18 variables "
        "(of the blocks, the adapters alone)"
    )


def check_reloaded(run, model):
    """The saved model has the adapters merged and float32 weights, and gives the same logits."""
    images = random_images(model.config, batch=5)
    assert model.get_layer("block_0").attention.qkv.lora_enabled
    np.testing.assert_allclose(logits(run.model(), images), logits(model, images), atol=MERGED)
    assert not any("lora" in path for path in weights_of(run.model()))
    assert {weight.dtype for weight in run.model().weights} == {"float32"}


@backend
def test_reloaded_lora_run_gives_the_same_logits(lora):
    check_reloaded(*lora)


@backend
@pytest.mark.slow
def test_reloaded_lora_run_in_bfloat16_gives_the_same_logits(checkpoint, tmp_path):
    run, mixed = tune(checkpoint, tmp_path / "run", settings={"precision": "bfloat16"}, **LORA)
    model = keras_vit.build_vit(run.recipe.model, dtype="float32")  # the same weights without the rounding of mixed precision
    select_weights(model, run.recipe.finetune)
    values = weights_of(mixed)
    for weight in model.weights:
        weight.assign(values[weight.path])
    check_reloaded(run, model)


TRAINED = [f"{name}/lora_kernel_{side}" for name in ("block_0/attention/qkv", "block_1/mlp/fc2") for side in "ab"] + ["head/kernel"]


def arrays_of_the_model(arrays, model):
    """The weights in a training state by path: the state names them by their place among the model's variables."""
    values = [value for name, value in sorted(arrays.items()) if name.startswith("model/")]
    return dict(zip((variable.path for variable in model.variables), values, strict=True))


@backend
def test_averaged_adapters_are_merged(checkpoint, lora):
    check_averaged(checkpoint, *lora)


@backend
@pytest.mark.slow
def test_averaged_adapters_are_merged_in_float16(checkpoint, tmp_path):
    check_averaged(checkpoint, *tune(checkpoint, tmp_path / "run", settings={"ema": 0.7, "precision": "float16"}, **LORA))


def check_averaged(checkpoint, run, model):
    arrays, _ = run.read_state()  # the model itself has the averages by now: Keras puts them there when `fit` ends
    variables = {path: next(v for n, v in arrays.items() if n.endswith(f"/{path.replace('/', '_')}_average")) for path in TRAINED}
    before, saved = weights_of(checkpoint.model()), weights_of(run.model())
    current = arrays_of_the_model(arrays, model)
    for name in ("block_0/attention/qkv", "block_1/mlp/fc2"):
        a, b = variables[f"{name}/lora_kernel_a"], variables[f"{name}/lora_kernel_b"]
        assert np.abs(b - current[f"{name}/lora_kernel_b"]).max() > 1e-4
        np.testing.assert_allclose(saved[f"{name}/kernel"], before[f"{name}/kernel"] + ALPHA / RANK * a @ b, atol=EXACT)
    np.testing.assert_array_equal(saved["head/kernel"], variables["head/kernel"])


@backend
def test_weights_without_adapters_are_their_own(checkpoint):
    model = checkpoint.model()
    before = weights_of(model)
    assert changed(before, merged_weights(model)) == set()
    select_weights(model, FinetuneConfig(checkpoint="x", **LORA))
    model.get_layer("block_1").feed_forward.fc1.lora_kernel_b.assign(np.ones((RANK, 12)))
    assert changed(before, merged_weights(model)) == {"block_1/mlp/fc1/kernel"}
    assert changed(before, weights_of(model)) == set()  # nor has merging touched the model


# Rates by depth


def random_model():
    return randomise(keras_vit.build_vit(ViTConfig(**MODEL, num_classes=3, registers=1, layer_scale=0.1, pre_logits_dim=5)))


def step(model, optimizer, steps=3):
    rng = np.random.default_rng(1)
    optimizer.build(model.trainable_variables)
    for _ in range(steps):
        gradients = [keras.ops.convert_to_tensor(rng.normal(size=w.shape), "float32") for w in model.trainable_variables]
        optimizer.apply(gradients, model.trainable_variables)
    return weights_of(model)


def test_factors_fall_from_the_head_to_the_embedding():
    factors = learning_rate_factors(random_model(), 0.5)
    assert factors == {"encoder": 0.5**3, "block_0": 0.5**2, "block_1": 0.5, "norm": 1, "pre_logits": 1, "head": 1}
    conv = keras_vit.build_vit(ViTConfig(**{**MODEL, "image_size": 16, "patch_size": 4}, stem="conv", pool="map"))
    factors = learning_rate_factors(conv, 0.5)
    assert (factors["stem"], factors["pool"]) == (0.5**3, 1)


@pytest.mark.parametrize(
    ("kind", "accumulate"),
    [
        ("adamw", 2),
        ("muon", 1),
        slow("adamw", 1),
        slow("muon", 2),
        *(slow(k, n) for k in ("adam", "sgd", "lion") for n in (1, 2)),
    ],
)
def test_layer_decay_is_a_plain_optimizer_with_a_smaller_rate(kind, accumulate):
    config = TrainConfig(epochs=1, optimizer=kind, learning_rate=0.1, weight_decay=0.2, warmup_epochs=0, accumulate=accumulate)
    model = random_model()
    before, factors = weights_of(model), learning_rate_factors(model, 0.5)
    after = step(model, make_optimizer(config, 40, factors), 4)
    assert changed(before, after) == set(before)
    for factor in set(factors.values()):
        plain = step(random_model(), make_optimizer(dataclasses.replace(config, learning_rate=0.1 * factor), 40), 4)
        for path in before:
            if factors[path.split("/")[0]] == factor:
                np.testing.assert_allclose(after[path], plain[path], atol=EXACT, rtol=EXACT, err_msg=path)


@pytest.mark.parametrize("precision", ["float32", slow("float16")])
def test_factors_of_one_change_nothing(precision):
    """With clipping, accumulation, averaging and loss scaling around them."""
    rng = np.random.default_rng(0)
    images, targets = rng.normal(size=(32, 8, 12, 1)).astype("float32"), np.eye(3)[rng.integers(3, size=32)].astype("float32")
    config = TrainConfig(epochs=1, batch_size=8, learning_rate=0.01, clip_norm=0.1, accumulate=2, ema=0.8, warmup_epochs=0)
    ends = []
    for factors in (None, dict.fromkeys((layer.name for layer in random_model().layers), 1.0)):
        policy = {"float32": "float32", "float16": "mixed_float16"}[precision]
        model = keras_vit.build_vit(random_model().config, dtype=policy)
        randomise(model)
        compile_model(model, make_optimizer(config, 16, factors), "auto")
        model.fit(images, targets, batch_size=8, epochs=2, shuffle=False, verbose=0)
        rate = float(numpy(own_optimizer(model.optimizer).learning_rate))
        assert rate == pytest.approx(0.005)  # in the middle of the cosine, whatever the share of each variable
        ends.append(weights_of(model))  # of the averages, which Keras puts in their place at the end
    assert changed(weights_of(random_model()), ends[0])
    for path, value in ends[0].items():
        np.testing.assert_allclose(ends[1][path], value, atol=EXACT, err_msg=path)


@backend
def test_layer_decay_through_training(checkpoint, tmp_path):
    """One step of sgd without momentum moves a weight in proportion to its factor, whatever the precision does around it."""
    sgd = {
        "optimizer": "sgd",
        "beta_1": 0.0,
        "weight_decay": 0.0,
        "clip_norm": 0.0,
        "epochs": 1,
        "batch_size": 64,
        "schedule": "constant",
    }
    before, moved = weights_of(checkpoint.model()), []
    for decay in (1.0, 0.5):
        _, model = tune(checkpoint, tmp_path / f"{decay}", settings=sgd, layer_decay=decay, keep_head=True)
        moved.append({path: value - before[path] for path, value in weights_of(model).items()})
    factors = learning_rate_factors(checkpoint.model(), 0.5)
    for path in before:
        np.testing.assert_allclose(moved[1][path], factors[path.split("/")[0]] * moved[0][path], atol=EXACT, err_msg=path)
    assert np.abs(moved[0]["encoder/position"]).max() > 1e-4


# Recipe and checkpoint


def test_who_states_epochs_gets_no_time(checkpoint, tmp_path):
    (tmp_path / "timed.yaml").write_text("train: {time: 5m, steps_per_epoch: [3, 4], epochs: 2}\n")
    train = finetune_recipe(checkpoint.path, tmp_path / "timed.yaml", data="digits", train={"epochs": 3}).train
    assert (train.epochs, train.time, train.steps_per_epoch) == (3, None, None)


def test_recipe_takes_what_the_checkpoint_decides(checkpoint):
    recipe = finetune_recipe(checkpoint.path, data="digits")
    assert dataclasses.replace(recipe.model, num_classes=3) == checkpoint.model().config
    assert (recipe.mean, recipe.std) == ([0.4], [0.3])
    assert recipe.train.learning_rate == LEARNING_RATES["full"]
    assert finetune_recipe(checkpoint.path, finetune={"method": "probe"}).train.learning_rate == LEARNING_RATES["probe"]
    settings = {"train": {"learning_rate": 0.5}, "mean": 0.1, "model": {"image_size": (16, 24), "drop_path": 0.2}}
    recipe = finetune_recipe(checkpoint.path, **settings)
    assert (recipe.train.learning_rate, recipe.mean, recipe.std) == (0.5, [0.1], [0.3])
    assert (recipe.model.image_size, recipe.model.drop_path, recipe.model.patch_size) == ((16, 24), 0.2, (4, 3))


def test_recipe_in_the_run_folder_is_complete(checkpoint, lora, tmp_path):
    run, _ = lora
    recipe = load_recipe(run.path / "recipe.yaml")
    assert recipe == run.recipe
    assert recipe.model == run.model().config
    assert recipe.finetune == FinetuneConfig(checkpoint=str(checkpoint.path), **LORA)
    assert run.summary["checkpoint"] == str(checkpoint.path)
    assert "head: starts at zero, for the 3 classes" in run.summary["checkpoint_notes"][-1]
    again = train(recipe, tmp_path / "again", data=made_data(seed=1), verbose=0, pictures=False)  # repeats it as it is
    assert [row["loss"] for row in again.metrics] == [row["loss"] for row in run.metrics]


def test_head_starts_at_zero_or_is_kept(checkpoint):
    before = weights_of(checkpoint.model())
    for keep_head in (False, True):
        model, notes = prepare(checkpoint, keep_head=keep_head)
        after = weights_of(model)
        np.testing.assert_array_equal(after["head/kernel"], before["head/kernel"] * keep_head)
        np.testing.assert_array_equal(after["block_1/mlp/fc1/kernel"], before["block_1/mlp/fc1/kernel"])
        assert any("--finetune.keep_head true" in note for note in notes) == (not keep_head)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (("a", "c", "b"), "keep_head: received true; allowed: false, as class 1 is 'b' in the checkpoint and 'c' here"),
        (("a", "b"), "keep_head: received true; allowed: false, for 2 classes and a checkpoint of 3"),
    ],
)
def test_a_head_of_other_classes_cannot_be_kept(checkpoint, tmp_path, classes, message):
    with pytest.raises(ValueError, match=message):
        tune(checkpoint, tmp_path / "run", data=made_data(classes=classes), keep_head=True)
    assert not (tmp_path / "run").exists()


def test_larger_images_resample_the_positions(checkpoint, tmp_path):
    source = RunFolder(shutil.copytree(checkpoint.path, tmp_path / "source"))
    model = source.model()
    position = np.array(weights_of(model)["encoder/position"])  # class token, then patches
    position[:, 1:] = np.random.default_rng(0).normal(size=8)  # the same everywhere: so it is on any grid
    model.get_layer("encoder").position_embedding.assign(position)
    source.write_model(1, model)
    larger, notes = prepare(source, model={"image_size": (16, 18)}, method="probe")
    assert larger.config.grid_size == (4, 6)
    tuned = weights_of(larger)["encoder/position"]
    np.testing.assert_array_equal(tuned[:, 0], position[:, 0])
    np.testing.assert_allclose(tuned[:, 1:], np.broadcast_to(position[:, 1:2], (1, 24, 8)), atol=EXACT)
    assert any("position" in note for note in notes[:-1]), notes


def test_a_checkpoint_with_rotary_positions(tmp_path):
    """Read from timm's format and tuned on larger images: nothing but the adapters and the head changes."""
    rotary = {"rotary": "centered", "position": "none", "registers": 2, "key_bias": False, "norm_epsilon": 1e-5}
    model = randomise(keras_vit.build_vit(ViTConfig(**MODEL, **rotary, num_classes=3)))
    path, data = tmp_path / "checkpoint", made_data((16, 18))
    keras_vit.save_weights(model, path, "timm")
    settings = {"augment": PLAIN, "train": SETTINGS, "finetune": LORA, "model": {"image_size": (16, 18)}}
    recipe, keep = finetune_recipe(path, data="made", **settings), Keep()
    run = train(recipe, tmp_path / "run", data=data, callbacks=[keep], verbose=0, pictures=False)
    assert run.model().config.grid_size == (4, 6)
    after, images = weights_of(keep.kept), random_images(run.model().config)
    for name, value in weights_of(model).items():
        if not name.startswith("head"):
            np.testing.assert_array_equal(after[name], value, err_msg=name)
    before = keras_vit.load_model(path, image_size=(16, 18))
    assert np.abs(logits(run.model(), images) - logits(before, images)).max() > EXACT


def test_a_stopped_lora_run_goes_on_without_its_checkpoint(checkpoint, tmp_path):
    source = RunFolder(shutil.copytree(checkpoint.path, tmp_path / "source"))
    settings = {"epochs": 3, "ema": 0.9, "optimizer": "muon"}
    whole, _ = tune(source, tmp_path / "whole", settings=settings, model={"drop_path": 0.2}, layer_decay=0.8, **LORA)
    part, _ = tune(source, tmp_path / "part", settings=settings, model={"drop_path": 0.2}, layer_decay=0.8, until=1, **LORA)
    shutil.rmtree(source.path)
    again = train(part.recipe, part.path, data=made_data(seed=1), resume=True, verbose=0, pictures=False)
    assert [row["loss"] for row in again.metrics] == [row["loss"] for row in whole.metrics]
    assert again.summary["test_loss"] == whole.summary["test_loss"]
    assert again.summary["checkpoint_notes"] == whole.summary["checkpoint_notes"]
    assert changed(weights_of(again.model()), weights_of(whole.model())) == set()


@backend
def test_a_run_killed_in_its_first_epoch_needs_no_checkpoint_either(checkpoint, lora, tmp_path):
    source = RunFolder(shutil.copytree(checkpoint.path, tmp_path / "source"))

    class Killed(BaseException):
        pass

    class Kill(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            raise Killed

    recipe = finetune_recipe(source.path, data="made", augment=PLAIN, train={**SETTINGS, "ema": 0.7}, finetune=LORA)
    with pytest.raises(Killed):
        train(recipe, tmp_path / "run", data=made_data(seed=1), callbacks=[Kill()], verbose=0, pictures=False)
    shutil.rmtree(source.path)
    run = train(
        RunFolder(tmp_path / "run").recipe, tmp_path / "run", data=made_data(seed=1), resume=True, verbose=0, pictures=False
    )
    assert [row["loss"] for row in run.metrics] == [row["loss"] for row in lora[0].metrics]


# Bad settings


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "adapter"}, "method: received 'adapter'; allowed: full, probe, lora"),
        ({"source": "keras2"}, "source: received 'keras2'"),
        ({"freeze": -1}, "freeze: received -1"),
        ({"layer_decay": 0.0}, "layer_decay: received 0.0"),
        ({"layer_decay": 1.5}, "layer_decay: received 1.5"),
        ({"method": "lora", "lora_rank": 0}, "lora_rank: received 0"),
        ({"method": "lora", "lora_alpha": 0.0}, "lora_alpha: received 0.0"),
        ({"keep_head": "yes"}, "keep_head: received 'yes'"),
        ({"lora_rank": 4}, "lora_rank: received 4; allowed: 8 with method=full"),
        ({"method": "probe", "layer_decay": 0.9}, "layer_decay: received 0.9; allowed: 1.0 with method=probe"),
        ({"method": "probe", "freeze": 1}, "freeze: received 1; allowed: 0 with method=probe"),
        ({"checkpoint": "", "method": "probe"}, "method: received 'probe'; allowed: 'full' without a checkpoint"),
        ({"checkpoint": "", "freeze": 2}, "freeze: received 2; allowed: 0 without a checkpoint"),
        ({"checkpoint": 3}, "checkpoint: received 3"),
    ],
)
def test_bad_settings_are_named(options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        FinetuneConfig(**{"checkpoint": "run", **options})


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"model": {"width": 16}}, "model.width: received 16; allowed: 8, as the checkpoint has it"),
        ({"model": {"depth": 3}}, "model.depth: received 3; allowed: 2"),
        ({"model": {"mlp": "gelu_tanh"}}, "model.mlp: received gelu_tanh; allowed: gelu"),
        ({"finetune": {"freeze": 4}}, "freeze: received 4; allowed: 0 to 2, the blocks of the model, or 3 for all but"),
        ({"finetune": {"method": "lora", "lora_rank": 9}}, "lora_rank: received 9; allowed: 1 to 8"),
        ({"finetune": {"method": "probe"}, "model": {"dropout": 0.1}}, "dropout: received 0.1; allowed: 0 with method=probe"),
    ],
)
def test_what_contradicts_the_checkpoint_is_named(checkpoint, overrides, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        finetune_recipe(checkpoint.path, **overrides)


def test_patch_size_of_a_conv_stem_is_fixed(tmp_path):
    recipe = load_recipe("digits", model={"width": 8, "depth": 1, "num_heads": 2, "mlp_dim": 8}, augment=PLAIN)
    run = RunFolder.create(tmp_path / "run", recipe)
    run.write_model(1, keras_vit.build_vit(dataclasses.replace(recipe.model, num_classes=10)))
    with pytest.raises(ValueError, match=r"model.patch_size: received \(4, 4\); allowed: \(2, 2\)"):
        finetune_recipe(run.path, model={"patch_size": 4})
    assert finetune_recipe(run.path, model={"image_size": 12}).model.grid_size == (6, 6)


def test_a_run_is_not_written_over_its_checkpoint(checkpoint, tmp_path):
    source = RunFolder(shutil.copytree(checkpoint.path, tmp_path / "source"))
    before = source.model_path.read_bytes()
    for path in (source.path, source.model_path):
        recipe = dataclasses.replace(finetune_recipe(source.path), data="made", finetune=FinetuneConfig(checkpoint=str(path)))
        with pytest.raises(ValueError, match="holds the checkpoint"):
            train(recipe, source.path, data=made_data(), overwrite=True, verbose=0)
    assert source.model_path.read_bytes() == before


# The command


FAST = ["--augment.flip", "false", "--augment.crop", "1", "--train.warmup_epochs", "0"]


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    recipe = load_recipe(
        "digits", model={"width": 16, "depth": 2, "num_heads": 2, "mlp_dim": 24}, train={"epochs": 1, "warmup_epochs": 0}
    )
    return train(recipe, tmp_path_factory.mktemp("digits") / "run", verbose=0, pictures=False)


def command(*options):
    run_command(lambda: finetune.main([str(option) for option in options]))


@backend
@pytest.mark.slow
def test_killed_run_of_the_command_ends_like_one_that_never_was(capsys, tmp_path, digits):
    """From 8 x 8 to 16 x 16 pixels with LoRA, killed with SIGKILL after its second epoch."""
    options = [digits.path, "--data", "digits", "--method", "lora", "--model.image_size", "16", "--model.drop_path", "0.1"]
    options += ["--train.epochs", "4", *FAST]
    command(*options, "--out", tmp_path / "whole")
    said = capsys.readouterr().out
    adapters = 8 * ((16 + 48) + (16 + 16) + (16 + 24) + (24 + 16)) * 2
    assert f"trained: block_0 to block_1, head: {adapters + 170:,} of " in said
    assert f"{adapters + 170:,} trained, 4 epochs" in said.splitlines()[-1]
    assert "lora fine-tuning of" in said

    folder = tmp_path / "killed"
    metrics = folder / "metrics.csv"
    process = start("experiments/finetune.py", *options, "--out", folder, log=tmp_path / "log.txt")
    kill(process, lambda: metrics.is_file() and metrics.read_text().count("\n") > 2)
    assert not RunFolder(folder).is_finished
    command("--resume", folder)
    whole, killed = RunFolder(tmp_path / "whole"), RunFolder(folder)
    assert [row["loss"] for row in killed.metrics] == [row["loss"] for row in whole.metrics]
    assert killed.summary["test_loss"] == whole.summary["test_loss"]
    assert changed(weights_of(killed.model()), weights_of(whole.model())) == set()
    assert killed.model().config.image_size == (16, 16)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "CHECKPOINT: received none"),
        (["--data", "digits"], "checkpoint: received none"),
        (["/no/such/run", "--data", "digits"], "/no/such/run"),
        (
            ["RUN", "--method", "probe", "--finetune.layer_decay", "0.75"],
            "layer_decay: received 0.75; allowed: 1.0 with method=probe",
        ),
        (["RUN", "--method=probe", "--finetune.freeze", "1"], "freeze: received 1; allowed: 0 with method=probe"),
        (["RUN", "--finetune.freeze", "4"], "freeze: received 4; allowed: 0 to 2, the blocks of the model"),
        (["RUN", "--method", "lora", "--finetune.lora_rank", "0"], "lora_rank: received 0"),
        (["RUN", "--method", "some"], "some"),
        (["RUN", "--model.patch_size", "4"], "model.patch_size: received (4, 4); allowed: (2, 2), as the checkpoint has it"),
        (["RUN", "--model.image_size", "9"], "patch_size: received 2; allowed: the divisors"),
        (["RUN", "--model.depth", "3"], "model.depth: received 3; allowed: 2"),
        (["--resume", "RUN", "--out", "x"], "--out: received x; allowed with --resume: none"),
        (["RUN", "--data", "digits", "--out", "RUN", "--overwrite"], "holds the checkpoint"),
        (["RUN", "--recipe", "quik"], "did you mean 'quick'"),
    ],
)
def test_mistakes_are_one_line(capsys, digits, options, message):
    options = [str(digits.path) if option == "RUN" else option for option in options]
    assert message in error_line(capsys, finetune.main, options)
