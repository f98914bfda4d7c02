"""Gradual unfreezing: in each epoch only what its stage trains changes, bit for bit; rates, adapters and averages go on."""

import keras
import numpy as np
import pytest
from helpers import numpy
from reference import weights_of
from small import PLAIN, column, small_recipe, trained

from keras_vit.training.finetune import finetune_recipe

backend = pytest.mark.backend
RATE = 0.01
GRADUAL = [{"until": 0.25, "freeze": 3}, {"until": 0.75, "freeze": 1}]
LAST = {"head", "norm", "block_1"}
TRAINED = [{"head"}, LAST, LAST, {*LAST, "block_0", "encoder"}]


class Weights(keras.callbacks.Callback):
    """The weights at the beginning of each epoch and at its end."""

    def __init__(self):
        super().__init__()
        self.begin, self.end = [], []

    def now(self):
        return {path: np.array(value) for path, value in weights_of(self.model).items()}

    def on_epoch_begin(self, epoch, logs=None):
        self.begin.append(self.now())

    def on_epoch_end(self, epoch, logs=None):
        self.end.append(self.now())


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return trained(small_recipe(model={"depth": 2}, epochs=1), tmp_path_factory.mktemp("checkpoint") / "run")


def gradual(checkpoint, *, stages=GRADUAL, finetune=None, **settings):
    settings = {"epochs": 4, "batch_size": 16, "warmup_epochs": 0, "learning_rate": RATE, "optimizer": "adamw", **settings}
    return finetune_recipe(
        checkpoint.path, data="made", augment=PLAIN, train={**settings, "stages": stages}, finetune=finetune or {}
    )


def changed(before, after):
    return {path for path in before if not np.array_equal(before[path], after[path])}


SETTINGS = [{"ema": 0.5, "finetune": {"layer_decay": 0.5}}, pytest.param({"optimizer": "muon"}, marks=pytest.mark.slow)]


@pytest.fixture(scope="module", params=SETTINGS)
def staged(request, checkpoint, tmp_path_factory):
    """A recipe, its run in one piece, and the weights of each epoch."""
    recipe, log = gradual(checkpoint, **request.param), Weights()
    return recipe, trained(recipe, tmp_path_factory.mktemp("staged") / "whole", callbacks=[log]), log


@backend
def test_each_stage_changes_what_it_trains_and_nothing_else(staged):
    _, whole, log = staged
    for before, after, layers in zip(log.begin, log.end, TRAINED, strict=True):
        assert changed(before, after) == {path for path in before if path.split("/")[0] in layers}
    for end, begin in zip(log.end, log.begin[1:], strict=False):
        assert changed(end, begin) == set()
    assert whole.summary["trained_parameters"] == whole.summary["parameters"]


def test_stages_in_parts_give_the_numbers_of_one_piece(staged, tmp_path):
    """The first part ends within a stage."""
    recipe, whole, _ = staged
    for until in (2, None):
        part = trained(recipe, tmp_path / "parts", until=until, resume=until is None)
    for name in ("loss", "val_loss", "learning_rate"):
        assert column(part, name) == column(whole, name), name
    for ours, theirs in zip(part.model().weights, whole.model().weights, strict=True):
        np.testing.assert_array_equal(numpy(ours), numpy(theirs))


def test_rates_go_on_and_no_weight_moves_further_than_adam_s_first_step(checkpoint, tmp_path):
    """Each stage is one step long: with moments of a new optimizer, Adam moves each weight by the rate, whenever it begins."""
    settings = {"steps_per_epoch": 1, "weight_decay": 0.0, "clip_norm": 0.0}
    stages, log = [{"until": 0.25, "freeze": 3}, {"until": 0.5, "freeze": 2}, {"until": 0.75, "freeze": 1}], Weights()
    run = trained(gradual(checkpoint, stages=stages, **settings), tmp_path / "run", callbacks=[log])
    plain = trained(gradual(checkpoint, stages=[], **settings), tmp_path / "plain")
    np.testing.assert_allclose(column(run, "learning_rate"), column(plain, "learning_rate"), rtol=1e-5, atol=1e-9)
    rates = [RATE, *column(run, "learning_rate")[:3]]
    for before, after, rate in zip(log.begin, log.end, rates, strict=True):
        moved = max(np.abs(after[path] - before[path]).max() for path in before)
        assert moved == pytest.approx(rate, rel=1e-3)


def test_adapters_of_earlier_blocks_come_later(checkpoint, tmp_path):
    stages = [{"until": 0.5, "freeze": 1}]
    log = Weights()
    recipe = gradual(checkpoint, stages=stages, finetune={"method": "lora", "lora_rank": 2}, epochs=2)
    run = trained(recipe, tmp_path / "run", callbacks=[log])
    for before, after, blocks in zip(log.begin, log.end, ({"block_1"}, {"block_0", "block_1"}), strict=True):
        moved = changed(before, after)
        assert {path.split("/")[0] for path in moved} == {"head", *blocks}
        assert all("lora" in path for path in moved if not path.startswith("head"))
    assert changed(log.end[0], log.begin[1]) == set()
    assert run.is_finished


@pytest.mark.parametrize(
    ("stage", "finetune", "message"),
    [
        ({"until": 0.5, "freeze": 4}, {}, "stages: freeze: received 4; allowed: 0 to 2, the blocks of the model, or 3"),
        ({"until": 0.5, "freeze": -1}, {}, r"train\.stages\.freeze: received -1"),
        ({"until": 0.5, "freeze": 1}, {"method": "probe"}, "stages: freeze: received 1; allowed: 0 with method=probe"),
    ],
)
def test_what_cannot_be_frozen_is_named(checkpoint, stage, finetune, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        gradual(checkpoint, stages=[stage], finetune=finetune)


def test_a_training_from_scratch_freezes_nothing():
    with pytest.raises(ValueError, match=r"^stages: freeze: received 1; allowed: 0 without a checkpoint$"):
        small_recipe(stages=[{"until": 0.5, "freeze": 1}])


def test_an_average_has_all_its_weights_from_its_beginning(checkpoint):
    for until, share in ((0.75, 0.25), (0.8, 0.2), (0.9, 0.1)):
        gradual(checkpoint, stages=[{"until": until, "freeze": 1}], epochs=20, average_last=share)
    with pytest.raises(
        ValueError, match=r"^average_last: received 0.5; allowed: at most 0.25, as freeze changes until epoch 3 of 4$"
    ):
        gradual(checkpoint, stages=[{"until": 0.75, "freeze": 1}], epochs=4, average_last=0.5)
