"""The commands: their help, the default that falls back, and one line and exit code 2 for a user's mistake."""

import dataclasses
import errno
import json
import os
import re
import runpy
import subprocess
import sys
import urllib.request

import keras
import pytest
from helpers import ROOT, error_line
from PIL import Image

from keras_vit import ViTConfig, backend
from keras_vit.cli import train
from keras_vit.cli.main import COMMANDS, WELCOME, dispatch
from keras_vit.data.augment import AugmentConfig
from keras_vit.processes import run_command
from keras_vit.recipes.distill import DistillConfig
from keras_vit.recipes.parse import load_recipe, parse_recipe
from keras_vit.recipes.pretrain import PretrainConfig
from keras_vit.recipes.schema import FinetuneConfig, Recipe, TrainConfig
from keras_vit.runs.folder import RunFolder

SCRIPTS = [*sorted((ROOT / "experiments").glob("*.py")), ROOT / "tuning" / "search.py"]
FAST = ["--model.depth", "1", "--model.width", "16", "--train.epochs", "2", "--train.warmup_epochs", "0"]
SCREEN = 40  # lines


def run(*options):
    run_command(lambda: train.main([str(option) for option in options]))


def fails(capsys, *options):
    return error_line(capsys, train.main, [str(option) for option in options])


def help_of(capsys, function, *arguments):
    with pytest.raises(SystemExit) as stopped:
        function(*arguments)
    assert not stopped.value.code
    return capsys.readouterr().out


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_script_is_its_command(monkeypatch, capsys, script):
    monkeypatch.setattr(sys, "argv", [str(script), "--help"])
    assert f"{script.parent.name}/{script.name}" in script.read_text().split('"""')[1], "the header shows the command"
    text = help_of(capsys, lambda: runpy.run_path(str(script), run_name="__main__"))
    assert text.startswith(f"usage: python {script}")
    command = script.stem.removesuffix("_cifar")
    assert text.partition("\n")[2] == help_of(capsys, dispatch, command, ["--help"]).partition("\n")[2]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_fits_on_two_screens(capsys, command):
    text = help_of(capsys, dispatch, None, [command, "--help"])
    assert f"keras-vit {command}" in text
    assert 10 < len(text.splitlines()) <= 2 * SCREEN


def test_the_command_alone_shows_its_commands(capsys):
    dispatch(None, [])
    assert capsys.readouterr().out == WELCOME
    assert all(f"keras-vit {command}" in WELCOME for command in COMMANDS)
    line = error_line(capsys, dispatch, None, ["trian"])
    assert line.startswith("command: received 'trian' (did you mean 'train'?); allowed: train, finetune, ")


def test_help_all_gives_every_setting_with_its_default(capsys):
    text = help_of(capsys, train.main, ["--help-all"])
    options = re.split(r"\n  (?=-)", text)[1:]
    explained = {re.split(r"[ ,]", option)[0]: " ".join(option.split()) for option in options}
    sections = {"model.": ViTConfig, "augment.": AugmentConfig, "train.": TrainConfig, "finetune.": FinetuneConfig}
    sections |= {"pretrain.": PretrainConfig, "distill.": DistillConfig}
    for section, cls in {"": Recipe, **sections}.items():
        for field in dataclasses.fields(cls):
            if f"{field.name}." in sections or field.name == "num_classes":
                continue
            option = explained[f"--{section}{field.name}"]
            assert re.search(r"[A-Z`].{15,} \(.*default: ", option), option
    assert "Passes over the training images, at least 1" in explained["--train.epochs"]
    assert "default: 12" in explained["--train.epochs"]


def test_short_names_are_settings():
    arguments = ["--epochs", "3", "--image_size=16", "--model.depth", "2", "--learning-rate=0.5", "--out", "a"]
    options, settings = train.make_parser().parse(arguments)
    recipe, _ = parse_recipe("quick", settings)
    assert (recipe.train.epochs, recipe.model.image_size, recipe.model.depth, recipe.train.learning_rate) == (3, (16, 16), 2, 0.5)
    assert options.out == "a"


def test_auto_falls_back_with_a_notice_that_names_the_data(monkeypatch, capsys, tmp_path):
    for name in ("https_proxy", "http_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody is there
    monkeypatch.setattr(urllib.request, "_opener", None)  # one with these proxies would stay for all later tests
    run(*FAST, "--data", "auto", "--data-dir", tmp_path, "--out", tmp_path / "run")
    said = capsys.readouterr().out
    assert "THIS IS NOT CIFAR-10" in said
    assert said.strip().splitlines()[-1].startswith("digits: test accuracy")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--recipe", "quik"], "did you mean 'quick'"),
        (["--recipe", "digits", "--data", "cifar11"], "cifar11"),
        (["--recipe", "digits", "--model.patch_size", "3"], "patch_size"),
        (["--recipe", "digits", "--model.num_heads", "5"], "num_heads"),
        (["--recipe", "digits", "--model.variant", "XL/2"], "variant"),
        (["--recipe", "digits", "--train.epochs", "0"], "epochs: received 0"),
        (["--recipe", "digits", "--train.epochs", "-1"], "epochs: received -1"),
        (["--recipe", "digits", "--data", "folder:/no/such/folder"], "/no/such/folder"),
        (["--recipe", "digits", "--model.num_classes", "7"], "model.num_classes: received 7; allowed: none"),
        (["--recipe", "digits", "--epoch", "3"], "option: received --epoch (did you mean --epochs?)"),
        (["--recipe", "digits", "--train.epoch", "3"], "option: received --train.epoch (did you mean --train.epochs?)"),
        (["--recipe", "digits", "--epochs", "few"], "train.epochs: received 'few'; allowed: an integer"),
        (["--recipe", "digits", "--validation", "few"], "validation: received 'few'; allowed: an integer or a number or null"),
        (["--recipe", "digits", "--epochs"], "--epochs: received none; allowed: one argument"),
        (["--epochs", "3", "--train.epochs=4"], "--epochs: received 3 and --train.epochs too; allowed: one of the two"),
        (["--num_classes", "3"], "option: received --num-classes; allowed: those of --help and --help-all"),
        (["--model"], "--model: received none; allowed: one argument"),
        (["--train", "3"], "train: received '3'; allowed: settings, each as --train.NAME=VALUE"),
        (['--model={"foo":4}'], "option: received --model.foo; allowed: those of --help-all"),
        (["--train.batch_size="], "train.batch_size: received ''; allowed: an integer"),
        (["digits"], "option: received digits; allowed: those of --help-all"),
        (["--resume", "/no/such/run"], "/no/such/run"),
        (["--resume", "/no/such/run", "--overwrite"], "--overwrite: received true; allowed with --resume: none"),
    ],
)
def test_mistakes_are_one_line(capsys, tmp_path, options, message):
    out = [] if "--resume" in options else ["--out", tmp_path / "run"]
    assert message in fails(capsys, *options, *out)
    assert not (tmp_path / "run").exists()


def test_existing_run_is_refused(capsys, tmp_path):
    options = ["--recipe", "digits", *FAST, "--train.epochs", "1", "--out", tmp_path / "run"]
    run(*options)
    before = (tmp_path / "run" / "metrics.csv").read_bytes()
    assert "exists; go on with --resume" in fails(capsys, *options)
    error = fails(capsys, "--resume", tmp_path / "run", "--model.depth", "2")
    assert "another recipe: model.depth 1 there and 2 here" in error
    assert (tmp_path / "run" / "metrics.csv").read_bytes() == before


def test_a_backend_that_is_none_is_one_line():
    command = [sys.executable, "experiments/train_cifar.py", "--help"]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "KERAS_BACKEND": "theano"}, capture_output=True, text=True)
    assert done.returncode == 2
    assert re.fullmatch(r"error: KERAS_BACKEND: received 'theano', which is no backend; allowed here: .*\n", done.stderr)


@pytest.mark.parametrize(
    ("asked", "configured", "installed", "chosen"),
    [
        (None, "tensorflow", ("jax",), "jax"),  # Keras wrote "tensorflow" where there is none
        (None, "torch", ("tensorflow", "torch"), "torch"),
        (None, None, ("jax", "torch"), "jax"),
        ("torch", "jax", ("jax", "torch"), "torch"),
    ],
)
def test_backend_is_one_that_is_installed(monkeypatch, tmp_path, asked, configured, installed, chosen):
    monkeypatch.setattr(backend.importlib.util, "find_spec", lambda name: name in installed or None)
    monkeypatch.delitem(sys.modules, "keras")  # imported: too late to choose
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setenv("KERAS_BACKEND", asked or "")
    if configured:
        (tmp_path / "keras.json").write_text(json.dumps({"backend": configured}))
    assert backend.choose_backend() is None
    assert os.environ["KERAS_BACKEND"] == chosen
    monkeypatch.setenv("KERAS_BACKEND", "tensorflow")
    problem = f"KERAS_BACKEND: received 'tensorflow', which is not installed; allowed here: {', '.join(installed)}"
    assert backend.choose_backend() == (None if "tensorflow" in installed else problem)


def test_divergence_and_full_disk_are_one_line(monkeypatch, capsys, tmp_path):
    options = ["--recipe", "digits", *FAST, "--train.optimizer", "sgd", "--train.clip_norm", "0", "--train.learning_rate", "1e30"]
    error = fails(capsys, *options, "--out", tmp_path / "diverged")
    assert "train.learning_rate" in error

    written, fsync = [], os.fsync

    def full(handle):
        written.append(handle)
        if len(written) > 5:  # recipe, picture, then model, metrics and state of the first epoch, model of the second
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", full)
    error = fails(capsys, "--recipe", "digits", *FAST, "--out", tmp_path / "full")
    assert error == "cannot read or write: No space left on device; what was written before is kept"
    monkeypatch.setattr(os, "fsync", fsync)
    run("--resume", tmp_path / "full")
    assert RunFolder(tmp_path / "full").summary["epochs"] == 2


def test_faults_of_the_program_keep_their_traceback():
    with pytest.raises(json.JSONDecodeError):  # a ValueError, raised by code that is not this project's
        run_command(lambda: json.loads("{"))


def test_photos_without_a_recipe_get_the_one_for_photos(tmp_path, monkeypatch, capsys):
    for index in range(8):
        (tmp_path / "ab"[index % 2]).mkdir(exist_ok=True)
        Image.new("RGB", (90, 80), (30 * index, 0, 0)).save(tmp_path / "ab"[index % 2] / f"{index}.png")
    seen = []
    monkeypatch.setattr(train, "train_and_report", lambda *arguments, **named: seen.append(arguments[1]))
    train.main(["--data", f"folder:{tmp_path}", "--seed", "3"])
    train.main(["--data", f"folder:{tmp_path}", "--epochs", "2"])
    train.main(["--data", f"folder:{tmp_path}", "--recipe", "quick"])
    photos, stated, quick = seen
    assert photos == load_recipe("photos-scratch", data=f"folder:{tmp_path}", seed=3, train={"epochs": 300})
    assert stated.train.epochs == 2
    assert quick == load_recipe("quick", data=f"folder:{tmp_path}")
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("recipe ")]
    assert len(said) == 2
    found = "5 training pictures of 80 pixels a side, no accelerator, no checkpoint; 300 epochs"
    assert said[0].startswith(f"recipe photos-scratch: {found}")


def test_a_training_without_out_finds_a_free_folder(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in ("digits-digits", "digits-digits-2"):
        train.main(["--recipe", "digits", *FAST])
        (folder,) = re.findall(r"run folder (\S+)", capsys.readouterr().out)
        assert (tmp_path / folder / "summary.json").is_file()
        assert folder.replace(f"-{keras.backend.backend()}", "") == f"runs/{name}"


@pytest.mark.backend
def test_doctor_trains_three_steps(capsys):
    assert dispatch("doctor", []) == 0
    said = capsys.readouterr().out
    assert "distribute: none; devices: 1, processes: 1" in said
    losses = re.search(r"losses of 3 steps: ([\d.]+), ([\d.]+), ([\d.]+);", said)
    assert float(losses[1]) > float(losses[3]) > 0
    assert "the same in all processes" in said
