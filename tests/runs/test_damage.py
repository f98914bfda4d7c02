"""Damage to every file of a run folder, in every way: found before the file is used, and never a traceback or other numbers."""

import csv
import errno
import os
import random
import re
import shutil
import warnings
import zipfile

import numpy as np
import pytest
from helpers import one_line_error

from benchmarks.damage import command, damages
from keras_vit import ViTConfig, build_vit
from keras_vit.data.dataset import load_data
from keras_vit.files import Damaged
from keras_vit.parity import randomise
from keras_vit.recipes.parse import load_recipe
from keras_vit.recipes.schema import Recipe, TrainConfig
from keras_vit.runs.arrays import write_arrays
from keras_vit.runs.folder import RunFolder
from keras_vit.runs.kept import check_archive, digest, read_state
from keras_vit.runs.metrics import read_metrics, write_metrics

CONFIG = ViTConfig(image_size=8, channels=1, patch_size=4, width=8, depth=1, num_heads=2, mlp_dim=8, num_classes=10, pool="gap")
WAYS = list(damages(random.Random(1).randbytes(4096)))
STATE, STATE_BEFORE = "last/state-000000012.safetensors", "last/state-000000008.safetensors"
FAILURES = (errno.EIO, errno.ESTALE, errno.EXDEV, errno.ENOSPC, errno.EROFS, errno.EACCES)
BEST, BEST_BEFORE = "last/best-000003.keras", "last/best-000002.keras"


def arrays(seed):
    rng = np.random.default_rng(seed)
    return {
        "model/0000/kernel": rng.normal(size=(7, 5)).astype("float32"),
        "model/0001/seed": rng.integers(0, 2**32, 2, dtype=np.uint32),
        "optimizer/0000/iteration": np.array(seed),
        "optimizer/0001/half": rng.normal(size=(3,)).astype("float16"),
        "optimizer/0002/flag": np.array([True, False]),
        "optimizer/0003/none": np.zeros((0, 4), "float32"),
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A finished run of three epochs, of which the third is the best, made without training."""
    data = load_data("digits", image_size=8, channels=1)
    recipe = Recipe(model=CONFIG, data="digits", train=TrainConfig(epochs=3, warmup_epochs=0, batch_size=100)).for_data(data)
    run = RunFolder.create(tmp_path_factory.mktemp("runs") / "made", recipe)
    rows = [
        {"epoch": epoch, "seconds": epoch / 3, "loss": 2 - epoch / 7, "val_loss": 1 / epoch, "val_accuracy": epoch / 9}
        for epoch in (1, 2, 3)
    ]
    for epoch in (1, 2, 3):
        run.write_metrics(rows[:epoch])
        model = randomise(build_vit(CONFIG))
        model.get_layer("head").bias.assign(np.random.default_rng(epoch).normal(size=10))
        run.write_model(epoch, model)
        run.write_state(4 * epoch, arrays(epoch), {"epoch": epoch, "step": 0, "rows": rows[:epoch]})
    facts = {"class_names": data.class_names, "fingerprint": data.fingerprint, "multi_label": False, "test_accuracy": 0.5}
    run.write_summary({**facts, "epochs": 3, "best_epoch": 3, "parameters": 1000, "flops": 1000, "data": "digits"})
    return run


@pytest.fixture
def run(made, tmp_path):
    """A copy that a test may spoil, with the same hard links."""
    target = tmp_path / "run"
    shutil.copytree(made.path, target)
    os.remove(target / "best.keras")
    os.link(target / BEST, target / "best.keras")
    return RunFolder(target)


def state_of(run):
    found, values = run.read_state()
    return {name: array.tobytes() for name, array in found.items()}, values


# What is read of each file, as something to compare.
READERS = {
    "recipe.yaml": lambda path: RunFolder(path).recipe,
    "metrics.csv": lambda path: RunFolder(path).metrics,
    "summary.json": lambda path: RunFolder(path).summary,
    STATE: lambda path: state_of(RunFolder(path)),
    "best.keras": lambda path: RunFolder(path).intact_model_path().read_bytes(),
}


def found_or_error(read, path):
    try:
        return read(path), None
    except ValueError as error:
        return None, str(error)


def test_what_lies_in_a_run_folder(made):
    kept = {"recipe.yaml", "metrics.csv", "best.keras", "summary.json", STATE, STATE_BEFORE, BEST, BEST_BEFORE}
    assert {str(file.relative_to(made.path)) for file in made.path.rglob("*") if file.is_file()} == kept
    assert (made.path / BEST).samefile(made.model_path)
    assert state_of(made)[1]["epoch"] == 3
    assert [row["val_accuracy"] for row in made.metrics] == [1 / 9, 2 / 9, 3 / 9]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("file", READERS)
def test_damage_is_found_whatever_it_is(run, made, file, way):
    """The file is refused in one line, or what is read is what was written; of states and models the one before will do."""
    content = damages((run.path / file).read_bytes(), seed=len(file)).get(way)
    if content is None:
        pytest.skip("no damage to this file")
    intact, read = READERS[file](made.path), READERS[file]
    (run.path / file).write_bytes(content)
    if file not in (STATE, "best.keras"):
        found, error = found_or_error(read, run.path)
        assert found == intact if error is None else "\n" not in error and file in error
        return
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = read(run.path)
    if found == intact:  # the damage hit nothing that counts, or padding
        assert not said
        return
    (line,) = (str(each.message) for each in said)
    assert "\n" not in line
    if file == STATE:
        assert found[1]["epoch"] == 2
        assert found[0] == {name: array.tobytes() for name, array in arrays(2).items()}
        assert f"{STATE}' is damaged (" in line
        assert "the run goes on after epoch 2, with the state before" in line
    else:
        assert found == (made.path / BEST_BEFORE).read_bytes()
        assert "best.keras' is damaged (" in line
        assert "the model of epoch 2 is used in its place" in line


def test_any_single_bit_of_a_state_is_found_or_harmless(made, tmp_path):
    content, intact, rng = (made.path / STATE).read_bytes(), state_of(made), random.Random(3)
    path = tmp_path / "state.safetensors"
    missed = 0
    for place in rng.sample(range(8 * len(content)), 400):
        changed = bytearray(content)
        changed[place // 8] ^= 1 << place % 8
        path.write_bytes(changed)
        try:
            found, values = read_state(path)
        except Damaged:
            continue
        missed += 1
        assert ({name: array.tobytes() for name, array in found.items()}, values) == intact
    assert missed < 40


def test_a_header_that_lies_takes_no_memory(tmp_path):
    """safetensors refuses what the file does not hold, before it allocates anything."""
    path = tmp_path / "state.safetensors"
    for size in (2**63, 10**12, 10**8 + 1):
        path.write_bytes(size.to_bytes(8, "little") + b"{}")
        with pytest.raises(Damaged):
            read_state(path)
    header = b'{"a": {"dtype": "F32", "shape": [1000000, 1000000], "data_offsets": [0, 4000000000000]}}'
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(64))
    with pytest.raises(Damaged):
        read_state(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"epoch": 1, "step"', "Expecting ':' delimiter"),
        ("[" * 100_000, "received values in values; allowed: a depth of 32"),
        ("[3]", r"values: received \[3\]; allowed: a dict"),
        ('{"step": 0}', "epoch: received None; allowed: an integer of at least 0"),
        ('{"epoch": 1, "step": -1}', "step: received -1; allowed: an integer of at least 0"),
        ('{"epoch": "\\n", "step": 0}', r"epoch: received '\\n'; allowed"),
    ],
)
def test_values_of_a_state_that_none_has_are_damage_whatever_their_digest(tmp_path, text, message):
    path, found = tmp_path / "state.safetensors", arrays(1)
    write_arrays(path, found, {"state": text, "sha256": digest(found, text)})
    with one_line_error(message, Damaged):
        read_state(path)
    text = '{"epoch": 1, "step": 0}'
    write_arrays(path, found, {"state": text, "sha256": digest(found, text)})
    assert read_state(path)[1] == {"epoch": 1, "step": 0}


def test_weights_that_are_no_numbers_are_damage(run):
    spoilt = {**arrays(4), "model/0000/kernel": np.array([[1.0, np.nan]], "float32")}
    with one_line_error(r"^state: received model/0000/kernel, not finite after 16 steps"):
        run.write_state(16, spoilt, {"epoch": 4})
    assert [path.name for path in run.states.paths()] == [STATE[5:], STATE_BEFORE[5:]]
    run.states.files.prune(8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("keras_vit.runs.kept.not_finite", lambda arrays: None)
        run.write_state(16, spoilt, {"epoch": 4})
    with pytest.warns(UserWarning, match=r"is damaged \(model/0000/kernel is not finite\); the run goes on after epoch 2"):
        assert run.read_state()[1]["epoch"] == 2


def test_no_intact_state_is_one_line_and_overwrites_nothing(run):
    for file in (STATE, STATE_BEFORE):
        (run.path / file).write_bytes(b"")
    before = {file: file.read_bytes() for file in run.path.rglob("*") if file.is_file()}
    with one_line_error(r"^run: '.*12\.safetensors' is damaged .*; '.*08\.safetensors' is damaged .*start again with --overwrite$"):
        run.read_state()
    assert {file: file.read_bytes() for file in run.path.rglob("*") if file.is_file()} == before


def test_states_and_models_of_an_end_that_was_given_up_go(run):
    """A run that goes on from an older state than the newest must not find the newer ones again."""
    run.write_state(10, arrays(9), {"epoch": 2})
    assert [path.name[6:15] for path in run.states.paths()] == ["000000010", "000000008"]
    run.best.choose(2)
    assert run.model_path.samefile(run.path / BEST_BEFORE)
    assert not (run.path / BEST).exists()
    with pytest.raises(Damaged, match="No such file"):
        run.best.choose(3)


def test_a_file_system_without_hard_links_gets_copies(run, monkeypatch):
    def none(*paths):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", none)
    run.best.choose(2)
    assert run.model_path.read_bytes() == (run.path / BEST_BEFORE).read_bytes()
    assert not run.model_path.samefile(run.path / BEST_BEFORE)
    run.model_path.write_bytes(b"")
    with pytest.warns(UserWarning, match="the model of epoch 2 is used in its place"):
        assert run.intact_model_path() == run.path / BEST_BEFORE


def test_an_archive_whose_members_are_larger_than_it_is_not_read(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.keras", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", bytes(10**7))
    with pytest.raises(Damaged, match="members are larger than the file"):
        check_archive(tmp_path / "a.keras")


def test_a_recipe_without_its_digest_must_be_whole(run):
    """A user who changes a run's recipe deletes the line with the digest; what is left must state every setting."""
    path = run.recipe_path
    seal, *lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([seal, *lines]).replace("seed: 0", "seed: 1"))
    with one_line_error(r"recipe.yaml: damaged, or changed: it does not fit its digest; if you changed it, delete its line"):
        RunFolder(run.path)
    with one_line_error(r"recipe.yaml: damaged, or changed"):
        load_recipe(path)
    path.write_text("".join(lines).replace("seed: 0", "seed: 1"))
    assert RunFolder(run.path).recipe.seed == 1
    for count in (0, len(lines) // 2, len(lines) - 1):
        path.write_text("".join(lines[:count]))
        with one_line_error(r"recipe.yaml: (received no .*; allowed: the recipe of a run, with every setting|\w+: received None)"):
            RunFolder(run.path)
    assert RunFolder.create(run.path, load_recipe("digits"), overwrite=True).recipe == load_recipe("digits")


def test_metrics_are_read_as_they_were_written(tmp_path):
    path = tmp_path / "metrics.csv"
    rows = [{"epoch": 1, "loss": 0.1, "val_recall:a,b\n": 1e-300}, {"epoch": 2, "loss": 1 / 3}]
    write_metrics(path, rows)
    assert read_metrics(path) == rows
    with open(path, newline="", encoding="utf-8") as file:
        assert [row["loss"] for row in csv.DictReader(file)] == ["0.1", repr(1 / 3)]
    write_metrics(path, [])
    assert read_metrics(path) == []
    assert read_metrics(tmp_path / "none.csv") == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "its columns are not epoch, ..., crc32"),
        ("crc32\n1,2\n", "its columns are not epoch, ..., crc32"),
        ("epoch,loss\n1,0.5\n", "its columns are not epoch, ..., crc32"),
        ("epoch,loss,crc32\n1,0.5,00000000\n", "row 1 does not fit its checksum"),
        ("epoch,loss,crc32\n\n", "not enough values"),
        ("epoch,loss,crc32\n1," + "9" * 200_000, "field larger than field limit"),
        ("epoch,loss,crc32\nx,0.5,e92b5eb9\n", "row 1 does not fit|invalid literal"),
    ],
)
def test_other_metrics_are_damage(tmp_path, text, message):
    path = tmp_path / "metrics.csv"
    path.write_text(text)
    with pytest.raises(Damaged, match=message):
        read_metrics(path)


def test_metrics_that_end_too_soon_are_found_in_a_run_that_has_ended(run):
    path = run.path / "metrics.csv"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    with one_line_error(r"^run: '.*metrics.csv' is damaged \(it has 2 of 3 epochs\)"):
        _ = run.metrics


@pytest.mark.parametrize("code", FAILURES, ids=errno.errorcode.get)
@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_each_write_that_fails_leaves_the_old_files(made, run, monkeypatch, function, code):
    """In turn each write of an epoch that is the best, and of the summary: what is read after is what was, or what was to be."""
    row = {"epoch": 4, "seconds": 2.0, "loss": 0.5, "val_loss": 0.1, "val_accuracy": 0.9}
    writes = (
        lambda: run.write_model(4, build_vit(CONFIG)),
        lambda: run.write_metrics([*made.metrics, row]),
        lambda: run.write_state(16, arrays(4), {"epoch": 4, "rows": [*made.metrics, row]}),
        lambda: run.write_summary({**made.summary, "epochs": 4}),
    )
    (run.path / "summary.json").unlink()
    real, calls = getattr(os, function), []

    def failing(*arguments):
        calls.append(arguments)
        if len(calls) == number:
            raise OSError(code, os.strerror(code))
        return real(*arguments)

    monkeypatch.setattr(os, function, failing)
    for write in writes:
        calls.clear()
        before = {file: file.read_bytes() for file in run.path.rglob("*") if file.is_file()}
        number = 1
        with pytest.raises(OSError, match=re.escape(os.strerror(code))) as caught:
            write()
        assert os.path.dirname(caught.value.filename) in (str(run.path), str(run.path / "last"))
        assert ".partial-" not in caught.value.filename
        assert {file: file.read_bytes() for file in run.path.rglob("*") if file.is_file()} == before
        number = 0
        write()


COMMANDS = {
    "evaluate": ("evaluate", "RUN"),
    "explain": ("explain", "RUN", "PICTURE"),
    "compare": ("evaluate", "RUN", "OTHER"),
    "predict": ("predict", "RUN", "PICTURE"),
    "export": ("export", "RUN", "--format", "torch"),
    "finetune": ("finetune", "RUN", "--data", "digits", "--out", "NEW"),
    "resume": ("train", "--resume", "RUN"),
    "parity": ("parity", "RUN"),
}
READ_BY = {
    "recipe.yaml": COMMANDS,
    "summary.json": ("evaluate", "compare", "predict", "explain", "finetune", "export"),
    "metrics.csv": ("compare",),
    "best.keras": ("evaluate", "explain", "predict", "export", "finetune", "parity"),
    STATE: ("resume",),
}


@pytest.mark.parametrize("way", ["cut at 8/16", "empty", "noise"])
@pytest.mark.parametrize(("file", "name"), [(file, name) for file, names in READ_BY.items() for name in names])
def test_each_command_refuses_a_damaged_file_in_one_line(made, run, tmp_path, monkeypatch, file, name, way):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "picture.png").write_bytes(b"")
    together = {STATE: (STATE, STATE_BEFORE), "best.keras": ("best.keras", BEST_BEFORE)}  # no intact one is left
    for each in together.get(file, (file,)):
        (run.path / each).write_bytes(damages((run.path / each).read_bytes())[way])
    if file == STATE:
        (run.path / "summary.json").unlink()
    before = {each: each.read_bytes() for each in run.path.rglob("*") if each.is_file()}
    added = {".lock", *(["report.html"] if name == "evaluate" else [])}  # a page with what is left of the run
    places = {"RUN": run.path, "OTHER": made.path, "PICTURE": tmp_path / "picture.png", "NEW": tmp_path / "new"}
    ended = command(*(places.get(argument, argument) for argument in COMMANDS[name]))
    assert ended.refused, ended
    assert file.rpartition("/")[2] in ended.lines[-1], ended
    assert {each: each.read_bytes() for each in run.path.rglob("*") if each.is_file() and each.name not in added} == before


def test_the_model_before_is_evaluated_and_said(made, run):
    """Its numbers are those of the epoch that the line names."""
    other = RunFolder.create(run.path.with_name("other"), run.recipe)
    other.write_model(2, made.model())
    shutil.copyfile(made.path / BEST_BEFORE, other.model_path)
    (run.path / "best.keras").write_bytes(b"")
    ended, expected = (command("evaluate", path, "--split", "validation") for path in (run.path, other.path))
    assert ended.code == expected.code == 0
    assert [line for line in ended.lines if line.startswith("warning: run: ")] == [
        f"warning: run: {str(run.model_path)!r} is damaged (File is not a zip file); the model of epoch 2 is used in its place"
    ]
    numbers = [out[out.index("accuracy   ") : out.index("written: ")] for out in (ended.out, expected.out)]
    assert numbers[0] == numbers[1]
