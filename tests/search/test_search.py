"""The command: its files and messages, with trials that train nothing; the mistakes that it refuses, in one line."""

import dataclasses
import json
import os
import shutil
import sys
from pathlib import Path

import keras
import pytest
import yaml
from helpers import error_line, interrupted, interruptible
from searches import FAKE

from keras_vit.cli import search
from keras_vit.cli.main import dispatch
from keras_vit.files import read_yaml
from keras_vit.locks import LOCK, Lock
from keras_vit.recipes.parse import load_recipe
from keras_vit.search import folder as folders
from keras_vit.search import session, settings, tuner, worker
from keras_vit.search.axes import SpaceConfig
from keras_vit.search.folder import differences
from keras_vit.search.pareto import front

SPACES = Path(__file__).resolve().parents[2] / "tuning" / "spaces"

FACTS = {
    "data": "digits",
    "fallback": "",
    "notes": [],
    "fingerprint": "f0",
    "class_names": [str(digit) for digit in range(10)],
    "multi_label": False,
    "train": 1294,
    "validation": 144,
    "backend": keras.backend.backend(),
    "device": "a device",
    "accelerators": 0,
    "precision": "float32",
    "precision_reason": "",
}
# Fewer shapes are counted in less time. What comes later on a command line wins.
SPACE = ["--space.num_heads", "2,4", "--space.head_dim", "16", "--space.mlp_ratio", "2"]
SMALL = ["--recipe", "digits", "--data", "digits", "--trials", "6", "--budget", "3epochs", *SPACE]
ONE = [*SMALL, "--trials", "1"]


@pytest.fixture
def command(monkeypatch, tmp_path):
    """Runs the command with these arguments, on trials and data that are made up."""
    monkeypatch.setattr(tuner, "TRIAL", FAKE)

    def run(*arguments, out="search", **facts):
        for module in (search, worker):
            monkeypatch.setattr(module, "load_facts", lambda recipe: {**FACTS, **facts})
        search.main([*arguments, "--out", str(tmp_path / out)])
        return tmp_path / out

    return run


def events(folder):
    """The events of a TensorBoard file: each is its length, a checksum, the event and a checksum."""
    from tensorboardX.proto.event_pb2 import Event

    data = next(folder.glob("events.*")).read_bytes()
    while data:
        length = int.from_bytes(data[:8], "little")
        yield Event.FromString(data[12 : 12 + length])
        data = data[16 + length :]


def test_a_whole_search(command, capsys):
    arguments = [*SMALL, "--objective", "accuracy,latency", "--retrain", "2", "--seeds", "2"]
    folder = command(*arguments)
    said = " ".join(capsys.readouterr().out.split())
    state = json.loads(json.loads((folder / "oracle.json").read_text())["state"])
    assert len(state["trials"]) == 6
    results = {number: json.loads((folder / f"trial-{number}" / "result.json").read_text()) for number in range(6)}
    best = max(results, key=lambda number: results[number]["val_accuracy"])

    assert load_recipe(folder / "best.yaml") == load_recipe(folder / f"trial-{best}" / "run" / "recipe.yaml")
    trials = [{"id": str(number), "status": "COMPLETED", "metrics": metrics} for number, metrics in results.items()]
    points = front(trials, {"val_accuracy": "max", "latency_ms": "min"})
    assert {file.stem for file in (folder / "front").iterdir()} == {point["id"] for point in points}
    begun, recipe = load_recipe(folder / "trial-0" / "recipe.yaml"), load_recipe("digits")
    assert (begun.model.depth, begun.train.learning_rate) == (recipe.model.depth, recipe.train.learning_rate)

    assert begun.model.num_classes == 10  # predicted parameters and FLOPs are those of the head that is trained

    retrained = json.loads((folder / "retrain.json").read_text())
    assert [len(row["test_scores"]) for row in retrained] == [2, 2]
    assert retrained[0]["id"] == str(best)
    for seed in range(2):
        recipe = load_recipe(folder / "retrain" / f"{best}-seed-{seed}-3-epochs" / "recipe.yaml")
        assert (recipe.seed, recipe.validation) == (seed, 0)
    page = (folder / "report.html").read_text()
    assert "<h2>Trained again</h2>" in page
    assert "Finished." in page

    first = results[0]
    summaries = [value for event in events(folder / "trial-0" / "hparams") for value in event.summary.value]
    assert {"_hparams_/experiment", "_hparams_/session_start_info", "_hparams_/session_end_info"} <= {v.tag for v in summaries}
    shown = {value.tag: value.simple_value for value in summaries if value.tag.startswith("search/")}
    assert shown["search/val_accuracy"] == pytest.approx(first["val_accuracy"])

    for text in (
        "smallest within 1 point of the best: trial",
        "best: trial",
        "front: trial",
        "overhead of a trial: 7.5 s (median)",
        "report: ",
        f"retrain {best}-seed-1: test",
        f"keras-vit train --recipe {folder / 'best.yaml'}",
    ):
        assert text in said, text
    assert not [name for name in (folders.DATA, folders.JAX_CACHE) if (folder / name).exists()]

    times = {file: file.stat().st_mtime_ns for file in folder.glob("*/result.json")}
    assert command(*arguments) == folder  # again: nothing left to do
    assert times == {file: file.stat().st_mtime_ns for file in folder.glob("*/result.json")}


@interruptible
def test_interrupt_and_the_same_command(command, capsys, monkeypatch):
    small = [*SMALL, "--trials", "3"]
    whole = command(*small, out="whole")
    monkeypatch.setenv("FAKE_SECONDS", "30")
    begun = whole.with_name("search") / "trial-0" / "run"
    with interrupted(begun.exists), pytest.raises(KeyboardInterrupt):
        command(*small)
    assert "stopped; the same command goes on" in capsys.readouterr().out
    monkeypatch.setenv("FAKE_SECONDS", "0")
    folder = command(*small)
    assert load_recipe(folder / "best.yaml") == load_recipe(whole / "best.yaml")
    results = [[json.loads((place / f"trial-{n}" / "result.json").read_text()) for n in range(3)] for place in (folder, whole)]
    assert results[0] == results[1]


def test_another_search_in_the_folder_is_refused(command):
    folder = command(*ONE)
    for arguments, facts, difference in (
        (["--seed", "1"], {}, "base.seed 0 there and 1 here"),
        (["--space.depth", "2..3"], {}, "space.depth 2..8 there and 2..3 here"),
        (["--max-params", "1e6"], {}, "limits.max_params None there and 1000000.0 here"),
        (["--method", "random"], {}, "method bayesian there and random here"),
        ([], {"fingerprint": "f1"}, "data f0 there and f1 here"),
    ):
        with pytest.raises(ValueError, match="another search: .*" + difference):
            command(*ONE, *arguments, **facts)
    assert load_recipe(folder / "best.yaml").seed == 0
    assert differences({"a\x1b": "b\n"}, {"a": {"c": 1}}) == r"a\x1b b\n there and None here; a.c None there and 1 here"
    command(*ONE, "--seed", "1", "--overwrite")
    assert load_recipe(folder / "best.yaml").seed == 1


def test_a_folder_in_use_is_refused(command, tmp_path):
    (tmp_path / "search").mkdir()
    with Lock(tmp_path / "search", "out"), pytest.raises(ValueError, match=rf"^out: .* in use by process {os.getpid()} on "):
        command(*SMALL)


def test_a_file_in_the_way_is_refused(command, tmp_path):
    (tmp_path / "search").write_text("mine")
    with pytest.raises(OSError, match="search"):
        command(*SMALL)
    assert (tmp_path / "search").read_text() == "mine"


def test_a_search_that_is_damaged_beyond_its_predecessor_is_refused(command):
    folder = command(*ONE)
    (folder / "oracle.json").write_text("{")
    command(*ONE)  # the one before is whole
    for name in ("oracle.json", "oracle.previous.json"):
        (folder / name).write_text("{")
    with pytest.raises(ValueError, match="its predecessor are damaged; start again with --overwrite"):
        command(*ONE)
    command(*ONE, "--overwrite")
    assert len(json.loads(json.loads((folder / "oracle.json").read_text())["state"])["trials"]) == 1


def test_a_folder_that_is_no_search_is_left_alone(command, tmp_path):
    for name in ("data", "trial-photos"):
        (tmp_path / "search" / name).mkdir(parents=True)
    for more in ([], ["--overwrite"]):
        with pytest.raises(ValueError, match="which holds data, trial-photos; allowed: a new or a search folder"):
            command(*SMALL, *more)
    assert {file.name for file in (tmp_path / "search").iterdir()} == {"data", "trial-photos", LOCK}


def test_data_without_validation_images_is_refused(command):
    with pytest.raises(ValueError, match="validation: received 0 images of digits; allowed: at least 1"):
        command(*SMALL, validation=0)


@pytest.mark.parametrize(
    ("visible", "accelerators", "workers", "devices"),
    [(None, 2, 3, ["0", "1", "0"]), ("3", 1, 1, ["3"]), ("GPU-a,GPU-b", 2, 2, ["GPU-a", "GPU-b"])],
)
def test_each_worker_has_a_gpu_that_is_the_users(monkeypatch, visible, accelerators, workers, devices):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    given = session.worker_environments(workers, accelerators)
    assert [variables["CUDA_VISIBLE_DEVICES"] for variables, _ in given] == devices
    assert [cores for _, cores in given] == [None] * workers


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--space.depth", "8..2"], r"space.depth: received '8..2'; allowed: a range LOW..HIGH"),
        (["--space.depth", "many"], "space.depth: received 'many'; allowed: a number"),
        (["--space.depth", "0..3"], "space.depth: received 0; allowed: integers of at least 1"),
        (["--space.pool", "cls,max"], "space.pool: received 'max'; allowed: "),
        (["--space.learning-rate", "0..1"], "learning_rate: received 0"),
        (["--space.patch_size", "3,5"], "space: no configuration can be built; the first one: "),
        (["--space.depht", "2"], r"option: received --space.depht \(did you mean --space.depth\?\)"),
        (["--space", "shape"], "space: received 'shape'; allowed: a .yaml or .json file that names axes"),
        (["--space", "no.yaml"], "space: received 'no.yaml'; allowed: a file that exists"),
        (["--max-params", "10"], r"max_params 10; none of [\d,]+ shapes keeps them; allowed: at least [\d,]+ parameters"),
        (["--max-memory", "0"], "max_memory: received 0"),
        (["--budget", "0s"], "budget: received '0s'; allowed: 9epochs"),
        (["--budget", "1e999epochs"], "budget: received '1e999epochs'; allowed: 9epochs"),
        (["--max-time", "1.2.3h"], r"max_time: received '1.2.3h'; allowed: a time above 0"),
        (["--budget", "9"], "budget: received '9'; allowed: 9epochs"),
        (["--max-time", "0"], "max_time: received '0'; allowed: a time above 0"),
        (["--trials", "0"], "trials: received 0"),
        (["--workers", "0"], "workers: received 0"),
        (["--retrain", "-1"], "retrain: received -1"),
        (
            ["--objective", "latency"],
            "objective: received 'latency'; allowed: one of accuracy, balanced_accuracy, map, f1, recall:CLASS, and after it any",
        ),
        (["--objective", "accuracy,map"], "objective: received 'accuracy,map'; allowed: one of "),
        (
            ["--objective", "map"],
            "objective: received 'map'; allowed with one label an image: accuracy, balanced_accuracy, recall",
        ),
        (["--train.monitor", "loss"], "monitor: received 'loss'; allowed: auto, or accuracy, the search's objective"),
        (["--objective", "recall:12"], r"objective: received 'recall:12' .*; allowed: recall:0, recall:1, "),
        (["--method", "genetic"], "method.*genetic"),
        (
            ["--method", "hyperband", "--budget", "2epochs"],
            "budget: received '2epochs'; with method hyperband allowed: at least 3",
        ),
        (["--chief", "here"], "chief: received 'here'; allowed: HOST:PORT or PORT"),
        (["--chief", "8500", "--retrain", "1"], "chief: received --retrain 1, --workers 1; allowed: --workers with each worker"),
        (["--worker", "here"], "worker: received 'here'; allowed: HOST:PORT or PORT"),
        (["--worker", "8500"], "out: received .*, which holds no search; allowed: the --out of the chief"),
        (["--worker", "8500", "--workers", "0"], "workers: received 0"),
        (["--worker", "8500", "--trials", "4"], "option: received --trials; allowed: those of --help"),
    ],
)
def test_bad_input_is_named(command, tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        command(*([] if "--worker" in arguments else SMALL), *arguments)
    assert not list(tmp_path.glob("search/trial-*"))


@pytest.mark.parametrize(
    ("objective", "several", "words"),
    [
        ("map", True, "validation mAP"),
        ("balanced_accuracy", False, "balanced validation accuracy"),
        ("recall:7", False, "validation recall of 7"),
    ],
)
def test_other_objectives_than_accuracy(command, capsys, objective, several, words):
    folder = command(*ONE, "--objective", f"{objective},params", "--retrain", "1", multi_label=several)
    said = " ".join(capsys.readouterr().out.split())
    assert f"best: trial 0, {words} " in said
    assert load_recipe(folder / "best.yaml").train.monitor == objective
    (row,) = json.loads((folder / "retrain.json").read_text())
    assert len(row["test_scores"]) == 1
    assert f"retrain 0-seed-0: test {objective.replace('_', ' ')} " in said
    assert words in (folder / "report.html").read_text()


def test_accuracy_is_no_objective_of_several_labels(command):
    with pytest.raises(ValueError, match=r"^objective: received 'accuracy'; allowed with several labels an image: map, f1, recall"):
        command(*ONE, multi_label=True)


def test_a_worker_with_other_data_is_refused(command):
    command(*ONE)
    with pytest.raises(ValueError, match=r"worker: received another search than that in .*: data f0 there and f9 here"):
        command("--worker", "8500", fingerprint="f9")


def test_without_cifar10_the_search_says_so_and_takes_digits(command, capsys, monkeypatch):
    folder = command("--trials", "1", "--budget", "3epochs", *SPACE, fallback="no network")
    said = capsys.readouterr().out
    assert "THIS IS NOT CIFAR-10" in said
    assert "no network" in said
    assert load_recipe(folder / "recipe.yaml").model.image_size == load_recipe("digits").model.image_size


def test_the_default_space_is_a_file_to_copy():
    assert SpaceConfig(**read_yaml(SPACES / "default.yaml")) == SpaceConfig()


@pytest.mark.parametrize("path", sorted(SPACES.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_space_file_is_all_that_is_searched(path):
    _, _, space, _ = search.parse("quick", path, ["--space.depth", "3,5"])
    named = {**read_yaml(path), "depth": "3,5"}
    assert {name: value for name, value in dataclasses.asdict(space).items() if value is not None} == named


def test_a_space_file_replaces_the_axes_of_a_recipe(tmp_path):
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"data": "digits", "space": {"depth": "3..4", "head_dim": 8}}))
    (tmp_path / "space.yaml").write_text("patch_size: [1, 2]\n")
    _, _, space, _ = search.parse(tmp_path / "recipe.yaml", tmp_path / "space.yaml", [])
    assert {name: value for name, value in dataclasses.asdict(space).items() if value is not None} == {"patch_size": [1, 2]}
    assert search.parse(tmp_path / "recipe.yaml", None, [])[2] == SpaceConfig(depth="3..4", head_dim=8)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("depht: 2..4", r"space.yaml: space: received 'depht' \(did you mean 'depth'\?\); allowed: patch_size, depth"),
        ("- depth", "space.yaml: received a list; allowed: a mapping of axes"),
        ("", "space.yaml: received a NoneType; allowed: a mapping of axes"),
        ("depth: [", "space.yaml: not valid YAML"),
    ],
)
def test_bad_space_files_are_named(tmp_path, text, message):
    (tmp_path / "space.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        search.parse("quick", tmp_path / "space.yaml", [])


def test_missing_packages_are_named(monkeypatch, capsys):
    for name in [name for name in sys.modules if name.startswith(("keras_vit.search", "keras_vit.cli.search"))]:
        monkeypatch.delitem(sys.modules, name)  # as in a new process
    for name in ("keras_tuner", "six"):
        monkeypatch.setitem(sys.modules, name, None)
    said = error_line(capsys, dispatch, None, ["search", "--help"])
    assert said == "search: needs keras_tuner, six: pip install 'keras-vision-transformer[search]'"


def test_default_budget_leaves_room_for_some_fifteen_trials():
    for max_time in ("15m", "40m", "4h"):
        config = settings.SearchConfig(max_time=max_time)
        assert config.trial_budget["kind"] == "seconds"
        trials = config.seconds / (config.trial_budget["amount"] + settings.START_SECONDS)
        assert 12 <= trials <= 18, max_time


@pytest.mark.parametrize("damage", ["missing", "no run", "cut off", "no text"])
def test_a_trial_folder_that_is_gone_does_not_stop_the_search(command, capsys, damage):
    """The state knows the best trial's configuration: its recipe is written from there."""
    folder = command(*SMALL, "--trials", "3")
    best = load_recipe(folder / "best.yaml")
    name = next(file.stem for file in (folder / "front").iterdir() if load_recipe(file) == best)
    trial, recipe = folder / f"trial-{name}", folder / f"trial-{name}" / "run" / "recipe.yaml"
    if damage == "missing":
        shutil.rmtree(trial)
    elif damage == "no run":
        shutil.rmtree(trial / "run")
    else:
        recipe.write_bytes(recipe.read_bytes()[:200] if damage == "cut off" else b"\xff\xfe" * 50)
    (folder / "best.yaml").unlink()
    command(*SMALL, "--trials", "5")
    assert "best: trial" in capsys.readouterr().out
    points = {file.stem: load_recipe(file) for file in (folder / "front").iterdir()}
    assert load_recipe(folder / "best.yaml") in points.values()
    if name in points:
        same = {"epochs": best.train.epochs, "warmup_epochs": best.train.warmup_epochs}  # made trials have no length of their own
        assert points[name].with_train(**same) == best
    state = json.loads(json.loads((folder / "oracle.json").read_text())["state"])
    assert [trial["status"] for trial in state["trials"]] == ["COMPLETED"] * 5


def test_a_search_folder_whose_description_is_damaged_is_named(command, tmp_path, capsys):
    folder = command(*ONE)
    for text in ("[1]", "{}", '{"identity": 3}', "{", ""):
        (folder / "search.json").write_text(text)
        with pytest.raises(ValueError, match=r"^out: received '.*', which holds .*; allowed: a new or a search folder"):
            command(*ONE)
        with pytest.raises(ValueError, match=r"^out: received '.*', which holds no search; allowed: the --out of the chief"):
            search.main(["--worker", "1", "--out", str(folder)])
    for identity in ({"data": "f0", "backend": FACTS["backend"]}, {"space": [], "data": "f0", "backend": FACTS["backend"]}):
        (folder / "search.json").write_text(json.dumps({"identity": identity}))
        with pytest.raises(ValueError, match=r"^out: received '.*', whose search.json is damaged \(.*\); allowed: an intact one"):
            search.main(["--worker", "1", "--out", str(folder)])
