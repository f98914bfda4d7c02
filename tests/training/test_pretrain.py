"""Pre-training on images without labels: its numbers, its run folder, going on, and the fine-tuning of what comes out."""

import dataclasses

import keras
import numpy as np
import pytest
from helpers import SMALL, error_line, numpy, one_line_error, predict, random_pixels
from PIL import Image

import keras_vit
from keras_vit.cli import evaluate, export, finetune, pretrain
from keras_vit.cli import predict as predict_command
from keras_vit.cli import train as train_command
from keras_vit.data.dataset import DataSet, Split
from keras_vit.data.masking import to_patches
from keras_vit.data.seeds import FIXED_MASK
from keras_vit.images import normalize
from keras_vit.recipes.parse import load_recipe
from keras_vit.recipes.pretrain import PretrainConfig
from keras_vit.runs.folder import RunFolder
from keras_vit.search.space import Space, SpaceConfig
from keras_vit.training.finetune import finetune_recipe
from keras_vit.training.loop import train
from keras_vit.training.speed import evaluation_seconds

backend = pytest.mark.backend
LOSS = 1e-5  # relative, float32 in batches against float64
MODEL = {**SMALL, "depth": 2, "pool": "map", "stem": "patch"}  # 2 x 4 patches of 4 x 3 pixels
PRETRAIN = {"method": "mae", "decoder_width": 8, "decoder_heads": 2}
SETTINGS = {"epochs": 3, "batch_size": 8, "warmup_epochs": 0, "learning_rate": 0.01, "optimizer": "adamw", "precision": "float32"}


def made_data(unlabelled=True, seed=0):
    """Images that grow brighter to the right, and noise: 64 to train on, 24, 12."""
    rng = np.random.default_rng(seed)
    parts = []
    for count in (64, 24, 12):
        slope = 8 * (np.arange(12).reshape(1, 1, 12, 1) - 5.5)
        pixels = (128 + slope + rng.integers(-6, 7, size=(count, 8, 12, 1))).astype("uint8")
        parts.append(Split(pixels, np.zeros(count, int) if unlabelled else np.arange(count) % 3))
    return DataSet("made", *parts, [] if unlabelled else ["a", "b", "c"], "f", [])


def recipe_of(**overrides):
    settings = {"train": SETTINGS, "model": MODEL, "pretrain": PRETRAIN, "augment": {"crop": 1, "flip": False}}
    settings = {name: {**values, **overrides.pop(name, {})} for name, values in settings.items()}
    return load_recipe("pretrain", mean=0.4, std=0.3, **settings, **overrides)


class Keep(keras.callbacks.Callback):
    """Keeps the model that is trained."""

    def on_train_end(self, logs=None):
        self.kept = self.model


def pretrained(folder, recipe=None, callbacks=(), **settings):
    settings = {"verbose": 0, "pictures": False, **settings}
    return train(recipe or recipe_of(), folder, data=made_data(), callbacks=callbacks, **settings)


@pytest.fixture(scope="module")
def kept():
    return Keep()


@pytest.fixture(scope="module")
def finished(tmp_path_factory, kept):
    return pretrained(tmp_path_factory.mktemp("runs") / "run", callbacks=[kept], pictures=True)


@backend
def test_run_folder(finished, kept):
    rows, summary = finished.metrics, finished.summary
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert rows[-1]["val_loss"] < 0.9 * rows[0]["val_loss"]
    assert rows[-1]["loss"] < 0.9 * rows[0]["loss"]
    assert summary["val_loss"] == min(row["val_loss"] for row in rows)
    assert (summary["monitor"], summary["class_names"]) == ("loss", [])
    assert not any(name.startswith("test_") for name in summary)
    assert "accuracy" not in rows[0]
    picture = np.asarray(Image.open(finished.plots / "reconstructions.png").convert("RGB"))
    assert picture.shape[1] > 500
    assert picture.std() > 30
    assert {"batch.png", "curves.png"} <= {file.name for file in finished.plots.iterdir()}
    assert "Pre-trained (mae), without labels, on made" in (finished.path / "report.html").read_text()
    assert kept.kept.count_params() == summary["trained_parameters"]


@backend
def test_validation_loss_is_that_of_numpy(finished, kept):
    """Of the trained autoencoder, on the same hidden patches after every epoch."""
    recipe, split = finished.recipe, made_data().validation
    images = normalize(split.images(np.arange(24)), recipe.mean, recipe.std)
    orders = recipe.masking.orders(24, (8, 12), FIXED_MASK, recipe.seed, 0)
    given, targets = recipe.masking.apply(images, orders)
    painted = predict(kept.kept, given).astype("float64")
    assert finished.metrics[-1]["val_loss"] == pytest.approx(((painted - targets) ** 2).mean(), rel=LOSS)
    patches = to_patches(images, (4, 3)).astype("float64")  # and by hand: which are hidden, and what they are
    for image, place in ((0, 2), (23, 7)):  # two of eight are seen
        patch = patches[image, orders[image, place]]
        np.testing.assert_allclose(targets[image, place - 2], (patch - patch.mean()) / patch.std(), rtol=1e-4, atol=1e-4)


@backend
def test_the_encoder_is_what_was_trained_and_what_is_loaded(finished, kept):
    trained = {weight.path: numpy(weight) for weight in kept.kept.weights}
    for model in (finished.model(), keras_vit.load_model(finished.path)):
        assert model.config == dataclasses.replace(finished.recipe.model, num_classes=0)
        shared = [weight for weight in model.weights if not weight.path.startswith("pool")]
        assert {weight.path for weight in shared} == {path for path in trained if not path.startswith("decoder/")}
        for weight in shared:
            np.testing.assert_array_equal(numpy(weight), trained[weight.path], err_msg=weight.path)
        images = np.random.default_rng(0).normal(size=(2, 8, 12, 1)).astype("float32")
        assert predict(model, images).shape == (2, 8)


@backend
def test_fine_tuning_begins_with_the_encoder_and_a_head_at_zero(finished, tmp_path):
    before = {weight.path: numpy(weight) for weight in finished.model().weights}
    seen = {}

    class Look(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            seen.update({weight.path: numpy(weight).copy() for weight in self.model.weights})

    settings = {**SETTINGS, "epochs": 1}
    recipe = finetune_recipe(finished.path, data="made", augment={"flip": False, "crop": 0}, train=settings)
    assert (recipe.mean, recipe.std, recipe.model.depth) == ([0.4], [0.3], 2)
    assert not recipe.pretrain
    run = train(recipe, tmp_path / "run", data=made_data(False), verbose=0, pictures=False, callbacks=[Look()])
    assert {path for path in seen if path not in before} == {"head/kernel", "head/bias"}
    for path, value in seen.items():
        np.testing.assert_array_equal(value, before.get(path, np.zeros_like(value)), err_msg=path)
    assert "head: no head in the checkpoint, 3 classes here: a new head" in run.summary["checkpoint_notes"]
    assert run.summary["class_names"] == ["a", "b", "c"]
    Image.fromarray(random_pixels(8, 12)).save(tmp_path / "picture.png")
    assert run.predict(tmp_path / "picture.png")[0].classes[0] in "abc"


def numbers(run):
    return [{name: row[name] for name in ("loss", "val_loss", "learning_rate")} for row in run.metrics]


def test_a_kill_within_an_epoch_leaves_the_same_numbers(finished, tmp_path):
    """Also of the pooling, which is not trained but saved."""
    recipe = recipe_of(train={"save_every": "3 steps"})

    class Kill(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            self.epoch = epoch

        def on_train_batch_begin(self, batch, logs=None):
            if (self.epoch, batch) == (1, 3):
                raise OSError("a kill after three steps of the second epoch")

    with pytest.raises(OSError, match="a kill"):
        pretrained(tmp_path / "run", recipe, callbacks=[Kill()])
    part = RunFolder(tmp_path / "run")
    assert (len(part.metrics), part.read_state()[1]["step"]) == (1, 3)
    part = pretrained(part.path, recipe, resume=True)
    assert numbers(part) == numbers(finished)
    for ours, theirs in zip(part.model().weights, finished.model().weights, strict=True):
        np.testing.assert_array_equal(numpy(ours), numpy(theirs), err_msg=ours.path)


def test_a_convolutional_stem_and_raw_pixels_learn_too(tmp_path):
    """With residual blocks in the stem, and with every start that a classifier may have."""
    model = {"image_size": (8, 12), "patch_size": 4, "stem": "conv", "stem_depth": 1, "pool": "gap", "width": 16}
    starts = {"init": "mimetic", "whiten": True}
    run = pretrained(tmp_path / "run", recipe_of(model=model, train=starts, pretrain={"mask_ratio": 0.5, "normalize": False}))
    losses = [row["val_loss"] for row in run.metrics]
    assert losses[-1] < 0.9 * losses[0]


def test_a_training_of_so_many_seconds_measures_the_validation_too():
    recipe, data = recipe_of().for_data(made_data()), made_data()
    an_image, first = evaluation_seconds(recipe, data)
    assert 0 < an_image < 1
    assert first >= 0


def test_without_validation_images_the_last_epoch_counts(tmp_path):
    data = dataclasses.replace(made_data(), validation=None, test=None)
    run = train(recipe_of(train={"epochs": 2}), tmp_path / "run", data=data, verbose=0)
    assert run.summary["best_epoch"] == 2
    assert run.summary.get("val_loss") is None
    assert (run.plots / "reconstructions.png").is_file()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"pretrain": {"mask_ratio": 0.01}}, "mask_ratio: received 0.01; allowed: one that hides some of 8 patches, not all"),
        ({"pretrain": {"mask_ratio": 1}}, "mask_ratio: received 1; allowed: a number above 0 and below 1"),
        ({"pretrain": {"decoder_width": 10}}, "decoder_width: received 10; allowed: multiples of 4 and of decoder_heads, 2"),
        ({"pretrain": {"decoder_depth": 0}}, "decoder_depth: received 0; allowed: an integer of at least 1"),
        ({"augment": {"cutmix": 1.0}}, "cutmix: received 1.0; allowed: 0.0 with pretrain.method=mae"),
        ({"augment": {"label_smoothing": 0.1}}, "label_smoothing: received 0.1; allowed: 0.0 with pretrain.method=mae"),
        ({"model": {"patch_dropout": 0.5}}, "patch_dropout: received 0.5; allowed: 0.0 with pretrain.method=mae"),
        ({"train": {"class_weights": "balanced"}}, "class_weights: received 'balanced'; allowed: 'none' with pretrain.method=mae"),
        ({"train": {"stages": [{"until": 0.5}]}}, "stages: received 1; allowed: none with pretrain.method=mae"),
        ({"train": {"monitor": "accuracy"}}, "monitor: received 'accuracy'; allowed: auto, loss with pretrain.method=mae"),
        ({"finetune": {"checkpoint": "x"}}, "checkpoint: received 'x'; allowed: '' with pretrain.method=mae"),
        ({"labels": "multi"}, "labels: received 'multi'; allowed: 'auto' with pretrain.method=mae, which reads none"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_settings_that_have_no_meaning_are_refused(overrides, message):
    with one_line_error(message):
        recipe_of(**overrides)


def test_settings_without_pre_training():
    with one_line_error("mask_ratio: received 0.5; allowed: 0.75 with pretrain.method=none"):
        PretrainConfig(mask_ratio=0.5)
    with one_line_error("method: received 'mim'; allowed: none, mae"):
        PretrainConfig(method="mim")


# The command


OPTIONS = ["--model.width", "8", "--model.depth", "1", "--model.num_heads", "2", "--model.mlp_dim", "12", "--model.patch_size", "4"]
OPTIONS += ["--image-size", "8", "--epochs", "1", "--batch-size", "8", "--train.warmup_epochs", "0", "--precision", "float32"]
OPTIONS += ["--augment.crop", "1", "--mask-ratio", "0.5"]


def test_pictures_without_class_folders_and_a_few_with(tmp_path, capsys):
    """The two commands of the guide: all pictures, then those that lie in class folders."""
    for index in range(24):
        for folder in [tmp_path / "all"] + [tmp_path / "some" / "ab"[index % 2]] * (index < 20):
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random_pixels(9, 10, 3, seed=index)).save(folder / f"{index}.png")
    run = tmp_path / "run"
    pretrain.main(["--data", f"folder:{tmp_path / 'all'}", "--out", str(run), *OPTIONS])
    said = capsys.readouterr().out
    assert "22 train, 2 validation; no labels; 8x8x3" in said
    assert "pre-training, 50% of the patches hidden, 1 epochs" in said
    assert "validation loss" in said.splitlines()[-1]
    pretrain.main(["--resume", str(run), "--extend", "1"])
    assert len(RunFolder(run).metrics) == 2
    tuned = ["--data", f"folder:{tmp_path / 'some'}", "--out", str(tmp_path / "tuned"), "--epochs", "1", "--batch-size", "8"]
    finetune.main([str(run), *tuned, "--augment.resized_crop", "0", "--augment.crop", "1"])
    assert RunFolder(tmp_path / "tuned").summary["class_names"] == ["a", "b"]
    lines = {
        evaluate: [str(run)],
        predict_command: [str(run), str(tmp_path / "some")],
        export: [str(run), "--format", "keras", "--out", str(tmp_path / "export")],
    }
    for command, arguments in lines.items():
        line = error_line(capsys, command.main, arguments)
        assert line == (
            f"run: received {str(run)!r}, pre-trained without classes; allowed: a run with classes, "
            f"as `keras-vit finetune {run} --data DATA` makes of it"
        )
    with one_line_error("keep_head: received true; allowed: false, for 2 classes and a checkpoint of 0"):
        finetune.main([str(run), *tuned, "--overwrite", "--finetune.keep_head", "true"])


def test_the_command_refuses(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for arguments, message in (
        (["--data", f"folder:{tmp_path / 'empty'}"], f"data: received 'folder:{tmp_path / 'empty'}' with no images; allowed: "),
        (["--recipe", "quick"], "recipe: received 'quick', which trains a classifier; allowed: "),
        (["--data", "digits", "--model.channels", "1", "--mask-ratio", "2"], "mask_ratio: received 2"),
    ):
        line = error_line(capsys, pretrain.main, [*arguments, "--out", str(tmp_path / "run")])
        assert line.startswith(message)
    with one_line_error("pretrain.method: received 'mae'; allowed: 'none' in a search"):
        Space(SpaceConfig(), recipe_of())
    assert not (tmp_path / "run").exists()


def test_a_subset_of_labelled_images_trains_a_classifier(tmp_path):
    options = ["--recipe", "digits", "--subset", "64", "--epochs", "1", "--train.warmup_epochs", "0"]
    train_command.main(
        [*options, "--model.depth", "1", "--model.width", "16", "--model.mlp_dim", "16", "--out", str(tmp_path / "run")]
    )
    run = RunFolder(tmp_path / "run")
    assert run.summary["images"] == {"train": 64, "validation": 144, "test": 359}
    assert run.recipe.subset == 64
