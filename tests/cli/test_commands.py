"""The commands of the README: help, the default that falls back, and one line and exit code 2 for a user's mistake."""

import dataclasses
import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import keras
import pytest

from keras_vit import ViTConfig
from keras_vit import backend as cli
from keras_vit.data.augment import AugmentConfig
from keras_vit.processes import run_command
from keras_vit.recipes.schema import FinetuneConfig, Recipe, TrainConfig
from keras_vit.runs.folder import RunFolder

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted(file for file in (ROOT / "experiments").glob("*.py") if file.name != "cli.py")
FAST = ["--model.depth", "1", "--model.width", "16", "--train.epochs", "2", "--train.warmup_epochs", "0"]


def run(script, *options, **environment):
    settings = {**os.environ, "KERAS_BACKEND": keras.backend.backend(), **environment}
    command = [sys.executable, str(script), *map(str, options)]
    return subprocess.run(command, cwd=ROOT, env=settings, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_help_explains(script):
    done = run(script, "--help")
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout
    assert f"experiments/{script.name}" in script.read_text().split('"""')[1], "the header shows the command"


def test_help_gives_every_setting_with_its_default():
    text = run(ROOT / "experiments" / "train_cifar.py", "--help").stdout
    options = re.split(r"\n  (?=-)", text)[1:]
    explained = {re.split(r"[ ,]", option)[0]: " ".join(option.split()) for option in options}
    sections = {"model.": ViTConfig, "augment.": AugmentConfig, "train.": TrainConfig, "finetune.": FinetuneConfig}
    for section, cls in {"": Recipe, **sections}.items():
        for field in dataclasses.fields(cls):
            if f"{field.name}." in sections or field.name == "num_classes":
                continue
            option = explained[f"--{section}{field.name}"]
            assert re.search(r"[A-Z`].{15,} \(.*default: ", option), option
    assert "Passes over the training images, at least 1" in explained["--train.epochs"]
    assert "default: 15" in explained["--train.epochs"]
    assert {"--recipe", "--out", "--overwrite", "--resume"} <= set(explained)


def test_auto_falls_back_with_a_notice_that_names_the_data(tmp_path):
    offline = {"TFDS_DATA_DIR": str(tmp_path), "https_proxy": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9"}
    done = run(ROOT / "experiments" / "train_cifar.py", *FAST, "--data", "auto", "--out", tmp_path / "run", **offline)
    assert done.returncode == 0, done.stderr
    assert "THIS IS NOT CIFAR-10" in done.stdout
    assert done.stdout.strip().splitlines()[-1].startswith("digits: test accuracy")


def fails(monkeypatch, capsys, *options):
    """The error line of train_cifar.py, run in this process; it must be one line, with exit code 2."""
    monkeypatch.setattr(sys, "argv", ["train_cifar.py", *map(str, options)])
    with pytest.raises(SystemExit) as stopped:
        run_command(train_cifar.main)
    error = capsys.readouterr().err.strip()
    assert stopped.value.code == 2
    assert error.startswith("error: ")
    assert "\n" not in error
    return error


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
        (["--resume", "/no/such/run"], "/no/such/run"),
    ],
)
def test_mistakes_are_one_line(monkeypatch, capsys, tmp_path, options, message):
    assert message in fails(monkeypatch, capsys, *options, "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_existing_run_is_refused(monkeypatch, capsys, tmp_path):
    options = ["--recipe", "digits", *FAST, "--out", str(tmp_path / "run")]
    monkeypatch.setattr(sys, "argv", ["train_cifar.py", *options])
    run_command(train_cifar.main)
    before = (tmp_path / "run" / "metrics.csv").read_bytes()
    assert "exists; go on with --resume" in fails(monkeypatch, capsys, *options)
    error = fails(monkeypatch, capsys, "--resume", tmp_path / "run", "--model.depth", "2")
    assert "another recipe: model.depth 1 there and 2 here" in error
    assert (tmp_path / "run" / "metrics.csv").read_bytes() == before


@pytest.mark.parametrize(("backend", "message"), [("theano", "is no backend"), ("", None)])
def test_backend_is_checked(backend, message):
    done = run(ROOT / "experiments" / "train_cifar.py", "--help", KERAS_BACKEND=backend)
    if message is None:
        assert done.returncode == 0
    else:
        assert done.returncode == 2
        assert message in done.stderr
        assert "Traceback" not in done.stderr


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
    monkeypatch.setattr(cli.importlib.util, "find_spec", lambda name: name in installed or None)
    monkeypatch.setattr(cli.warnings, "filterwarnings", lambda *settings, **more: None)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setenv("KERAS_BACKEND", asked or "")
    if configured:
        (tmp_path / "keras.json").write_text(json.dumps({"backend": configured}))
    cli.choose_backend()
    assert os.environ["KERAS_BACKEND"] == chosen
    monkeypatch.setenv("KERAS_BACKEND", "tensorflow")
    if "tensorflow" not in installed:
        with pytest.raises(ValueError, match=f"'tensorflow' is not installed; allowed here: {installed[0]}"):
            cli.choose_backend()


def test_divergence_and_full_disk_are_one_line(monkeypatch, capsys, tmp_path):
    options = ["--recipe", "digits", *FAST, "--train.optimizer", "sgd", "--train.clip_norm", "0", "--train.learning_rate", "1e30"]
    error = fails(monkeypatch, capsys, *options, "--out", tmp_path / "diverged")
    assert "train.learning_rate" in error

    written, fsync = [], os.fsync

    def full(handle):
        written.append(handle)
        if len(written) > 5:  # recipe, picture, then model, metrics and state of the first epoch, model of the second
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", full)
    error = fails(monkeypatch, capsys, "--recipe", "digits", *FAST, "--out", tmp_path / "full")
    assert error == "error: cannot read or write: No space left on device; what was written before is kept"
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(sys, "argv", ["train_cifar.py", "--resume", str(tmp_path / "full")])
    run_command(train_cifar.main)
    assert RunFolder(tmp_path / "full").summary["epochs"] == 2


def test_faults_of_the_program_keep_their_traceback():
    with pytest.raises(json.JSONDecodeError):  # a ValueError, raised by code that is not this project's
        run_command(lambda: json.loads("{"))
