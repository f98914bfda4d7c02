"""What is lost when something breaks? Faults made one at a time in a small run, and what the commands make of them.

    python benchmarks/faults.py [--only KIND ...] [--kills 20] [--json faults.json]

Each function of `KINDS` makes faults of one kind and says of each how it ended: the run survived (it goes on to the numbers of the
run without a fault, or a line says what is used instead), the command was refused in one line with exit code 2, or neither. It
must be neither never, and nothing that was intact may be gone afterwards.
"""

import argparse
import collections
import contextlib
import errno
import filecmp
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest.mock

import numpy as np
from damage import Ended, command, damages

ROOT = pathlib.Path(__file__).resolve().parents[1]
SURVIVED, REFUSED, NEITHER, LOST = "survived", "refused", "neither", "lost"
SUMMATION = 1e-4  # of the loss
EPOCHS, TRAINED = 4, 3  # of the whole run, and of the one that is damaged


class Work:
    """The runs that are damaged, in a temporary folder.

    Attributes:
        folder: The folder.
        recipe: The `Recipe` of all runs.
        whole: A run without a fault.
        half: The same, stopped before its last epoch.
        kills: Kills of each kind.
        details: For each fault that ended as it must not, a line.
    """

    def __init__(self, folder, kills):
        from keras_vit.recipes.parse import load_recipe
        from keras_vit.training.loop import train

        self.folder, self.kills, self.details, self.count = folder, kills, [], 0
        self.data = folder / "data.npz"
        write_arrays(self.data)
        model = {"depth": 1, "width": 8, "mlp_dim": 12, "num_heads": 2, "stem": "patch", "stem_depth": 0, "patch_size": 4}
        settings = {"epochs": EPOCHS, "batch_size": 16, "warmup_epochs": 0, "learning_rate": 0.01, "optimizer": "adamw", "ema": 0.0}
        augment = {"flip": False, "crop": 0, "cutmix": 0.0}
        self.recipe = load_recipe("digits", data=f"arrays:{self.data}", model=model, train=settings, augment=augment)
        self.recipe_file = folder / "recipe.yaml"
        self.recipe_file.write_text(self.recipe.to_yaml().replace("  num_classes: 10\n", ""))
        silent = {"verbose": 0, "pictures": False}
        self.whole = train(self.recipe, folder / "whole", **silent)
        self.half = train(self.recipe, folder / "half", until=TRAINED, **silent)
        self.picture = folder / "picture.png"
        write_picture(self.picture)

    def copy(self, run) -> pathlib.Path:
        """A copy of a run, with the same hard links."""
        self.count += 1
        target = self.folder / f"copy-{self.count}"
        subprocess.run(["cp", "-a", run.path, target], check=True)
        return target

    def judge(self, ended: Ended, what: str, same) -> str:
        """How a fault ended; `same(ended)` tells whether the numbers are those without it."""
        verdict = NEITHER
        if ended.refused:
            verdict = REFUSED
        elif ended.code == 0 and (ended.said or same(ended)):
            verdict = SURVIVED
        if verdict == NEITHER:
            self.details.append(f"{what}: exit code {ended.code}: {' | '.join(ended.lines[-3:])[-300:]}")
        return verdict

    def is_whole(self, path) -> bool:
        """Whether a run has ended with the numbers of the one without a fault."""
        from keras_vit.runs.folder import RunFolder

        run = RunFolder(path)
        return run.is_finished and [run.summary[name] for name in ("test_loss", "best_epoch")] == [
            self.whole.summary[name] for name in ("test_loss", "best_epoch")
        ]

    def is_nearly_whole(self, path) -> bool:
        """The same up to the order of sums, where several processes took part."""
        from keras_vit.runs.folder import RunFolder

        run = RunFolder(path)
        return run.is_finished and abs(run.summary["test_loss"] - self.whole.summary["test_loss"]) < SUMMATION

    def goes_on(self, path, what: str) -> str:
        """`SURVIVED` if a run that something has happened to resumes to the numbers of the one without, else `LOST`."""
        ended = command("train", "--resume", path)
        if ended.code == 0 and self.is_whole(path):
            return SURVIVED
        self.details.append(f"{what}: does not go on: {' | '.join(ended.lines[-3:])[-300:]}")
        return LOST


def write_arrays(path):
    rng = np.random.default_rng(0)
    labels = np.arange(96) % 3
    images = (rng.normal(size=(96, 8, 8)) * 40 + 40 + 60 * labels[:, None, None]).clip(0, 255).astype(np.uint8)
    parts = {"train": slice(0, 64), "val": slice(64, 80), "test": slice(80, 96)}
    np.savez(
        path, **{f"{name}_{part}": each[rows] for part, rows in parts.items() for name, each in (("x", images), ("y", labels))}
    )


def write_picture(path):
    from PIL import Image

    Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)).save(path)


# Kinds of faults: each yields how every fault of it ended


def damaged_files(work, run, file, commands):
    """Damages a file of a run in every way, runs a command on it, and looks whether another file was changed in vain."""
    name = run.path.joinpath(file)
    for way, content in damages(name.read_bytes()).items():
        for make in commands:
            path = work.copy(run)
            (path / file).write_bytes(content)
            before = {each: each.read_bytes() for each in files_of(path)}
            arguments, same = make(path)
            ended = command(*arguments)
            verdict = work.judge(ended, f"{file}, {way}, {arguments[0]}", same)
            yield verdict
            if verdict == REFUSED and any(not each.exists() or each.read_bytes() != content for each, content in before.items()):
                work.details.append(f"{file}, {way}, {arguments[0]}: refused, but files have changed")
                yield LOST
            shutil.rmtree(path)


def files_of(path):
    return [each for each in path.rglob("*") if each.is_file() and each.name != ".lock"]


def resuming(work):
    return lambda path: (("train", "--resume", path), lambda _: work.is_whole(path))


def reading(work):
    """The commands that read a run, each with whether it says what it says of the intact one."""

    def make(name):
        intact = plain(command(*arguments_of(work, work.half.path)[name]).out, work.half.path)

        def of(path):
            arguments = arguments_of(work, path)[name]
            return arguments, lambda ended: plain(ended.out, path) == intact

        return of

    return [make(name) for name in arguments_of(work, work.half.path)]


def arguments_of(work, path):
    return {
        "evaluate": ("evaluate", path, "--split", "validation"),
        "compare": ("evaluate", path, work.whole.path, "--out", work.folder / "both.png"),
        "predict": ("predict", path, work.picture),
    }


def plain(text, path):
    """Words and numbers of a text without a run's name, which decides the width of a table."""
    return re.sub(r"[^\w.%]+", " ", text.replace(str(path), "").replace(path.name, ""))


def damaged_states(work):
    """`last/state-*`, the newest, damaged; the run is resumed"""
    yield from damaged_files(work, work.half, work.half.states.paths()[0].relative_to(work.half.path), [resuming(work)])


def both_states_damaged(work):
    """both of `last/state-*` damaged; the run is resumed"""
    newest, before = work.half.states.paths()
    for way, content in damages(newest.read_bytes()).items():
        path = work.copy(work.half)
        for file in (newest, before):
            (path / "last" / file.name).write_bytes(content)
        yield work.judge(command("train", "--resume", path), f"both states, {way}", lambda _, path=path: work.is_whole(path))
        shutil.rmtree(path)


def damaged_models(work):
    """`best.keras` damaged; the run is resumed, evaluated, compared, predicts"""
    yield from damaged_files(work, work.half, "best.keras", [resuming(work), *reading(work)])


def damaged_recipes(work):
    """`recipe.yaml` damaged; the same"""
    yield from damaged_files(work, work.half, "recipe.yaml", [resuming(work), *reading(work)])


def damaged_metrics(work):
    """`metrics.csv` damaged; the same"""
    yield from damaged_files(work, work.half, "metrics.csv", [resuming(work), *reading(work)])


def damaged_summaries(work):
    """`summary.json` damaged; the run is resumed and compared"""
    comparing = lambda path: (arguments_of(work, path)["compare"], lambda _: False)  # noqa: E731  the same numbers would be chance
    yield from damaged_files(work, work.whole, "summary.json", [resuming(work), comparing])


def failing_writes(work):
    """each write of a training fails once: full disk, EIO, ESTALE, EXDEV, read-only; the run is resumed"""
    for code in (errno.ENOSPC, errno.EIO, errno.ESTALE, errno.EXDEV, errno.EROFS):
        name = "fsync" if code in (errno.ENOSPC, errno.EIO) else "replace"
        for number in range(1, 100):
            path, real, calls = work.copy(work.half), getattr(os, name), []

            def failing(*arguments, real=real, calls=calls, number=number, code=code):
                calls.append(arguments)
                if len(calls) == number:
                    raise OSError(code, os.strerror(code))
                return real(*arguments)

            with unittest.mock.patch.object(os, name, failing):
                ended = command("train", "--resume", path)
            if len(calls) < number:  # every one has failed
                shutil.rmtree(path)
                break
            verdict = work.judge(ended, f"{errno.errorcode[code]} in write {number}", lambda _, path=path: work.is_whole(path))
            yield verdict
            if verdict != NEITHER and work.goes_on(path, f"{errno.errorcode[code]} in write {number}") == LOST:
                yield LOST
            shutil.rmtree(path)


def lost_folders(work):
    """the run folder is deleted, moved or made anew while it trains"""
    import keras

    from keras_vit.training.loop import train

    for what in ("deleted", "moved", "made anew"):
        path = work.copy(work.half)

        class Spoil(keras.callbacks.Callback):
            def on_train_batch_end(self, batch, logs=None, path=path, what=what):
                if batch == 1:
                    if what == "moved":
                        path.rename(f"{path}-moved")
                    else:
                        shutil.rmtree(path)
                    if what == "made anew":
                        shutil.copytree(work.whole.path, path)

        spoil = Spoil()
        with unittest.mock.patch("keras_vit.cli.command.train", lambda *a, spoil=spoil, **k: train(*a, **k, callbacks=[spoil])):
            ended = command("train", "--resume", path)
        verdict = work.judge(ended, f"run folder {what}", lambda _: False)
        yield verdict
        if what == "moved":
            yield from (LOST for _ in [0] if work.goes_on(pathlib.Path(f"{path}-moved"), "moved folder") == LOST)
        elif what == "made anew" and not same_files(path, work.whole.path):
            yield LOST
        elif what == "deleted" and path.exists():
            work.details.append(f"deleted run folder: made again with {[each.name for each in path.iterdir()]}")
            yield LOST


def same_files(one, other):
    names = [file.relative_to(other) for file in files_of(other)]
    return len(files_of(one)) == len(names) and filecmp.cmpfiles(one, other, names, shallow=False)[0] == names


def second_runs(work):
    """a second training on a folder that trains: new, --overwrite, --resume, --resume --extend"""
    from keras_vit.locks import Lock

    path = work.copy(work.half)
    before = {each: each.read_bytes() for each in files_of(path)}
    new = ("train", "--recipe", work.recipe_file, "--out", path)
    with Lock(path, "run"):
        for arguments in (new, (*new, "--overwrite"), ("train", "--resume", path), ("train", "--resume", path, "--extend", 2)):
            ended = command(*arguments)
            named = any(f"process {os.getpid()} on " in line for line in ended.lines)
            yield work.judge(ended, f"second run: {arguments[-1]}", lambda _: False) if named else NEITHER
            if {each: each.read_bytes() for each in files_of(path)} != before:
                yield LOST
        ended = command("evaluate", path, "--split", "validation")  # reading stays allowed
        yield SURVIVED if ended.code == 0 else NEITHER


def clock_going_backwards(work):
    """the clock goes back by a day at a random moment"""
    for seed in range(3):
        path, real, calls = work.copy(work.half), time.time, []
        when = random.Random(seed).randrange(1, 30)

        def back(real=real, calls=calls, when=when):
            calls.append(1)
            return real() - 86_400 * (len(calls) > when)

        with unittest.mock.patch.object(time, "time", back):
            ended = command("train", "--resume", path)
        yield work.judge(ended, "clock", lambda _, path=path: work.is_whole(path))


def kills(work):
    """SIGKILL at a random moment of a training, half of them while a training state is written; the run is resumed"""
    for number in range(work.kills):
        rng, writing = random.Random(number), number % 2
        path = work.folder / f"killed-{number}"
        arguments = ["train", "--recipe", work.recipe_file, "--out", path]
        process = subprocess.Popen(
            [sys.executable, "-c", program(writing), *map(str, arguments)],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True, cwd=ROOT,
        )  # fmt: skip
        wait_for_moment(rng, path, process, writing)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if not (path / "recipe.yaml").is_file():  # killed before the run began
            ended = command(*arguments)
            yield work.judge(ended, f"kill {number}", lambda _, path=path: work.is_whole(path))
        else:
            yield work.goes_on(path, f"kill {number}")
        shutil.rmtree(path)


def program(slow):
    """Python that runs `keras-vit`; `slow`: what it writes takes time, so that a kill meets it."""
    slower = "import os, time; real = os.fsync; os.fsync = lambda handle: (time.sleep(0.3), real(handle)); "
    return f"{slower if slow else ''}from keras_vit.cli.main import main; main()"


def wait_for_moment(rng, path, process, writing):
    """Waits for a random moment of a training into a folder; `writing`: for one at which it writes a state."""
    states, deadline = rng.randrange(3), time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline:
        if writing:
            partial = [file for file in path.glob("last/.partial-*") if file.suffix == ".safetensors"]
            if len([*path.glob("last/state-*")]) >= states and partial:
                break
        elif (path / "recipe.yaml").is_file():
            time.sleep(rng.uniform(0, 4))
            break
        time.sleep(0.002)


def kills_of_processes(work):
    """SIGKILL of one or both of two processes, half of them while a state within an epoch is written; one or two go on"""
    import keras
    from devices import start

    backend = keras.backend.backend()

    def begin(*arguments, slow=False):
        return start(backend, 2, ["-c", program(slow), "train", *map(str, arguments), "--train.distribute", "data"])

    for number in range(work.kills):
        rng, path, what = random.Random(number), work.folder / f"killed-processes-{number}", f"kill {number} of two processes"
        new = ("--recipe", work.recipe_file, "--train.save_every", "2 steps", "--out", path)
        started = begin(*new, slow=number % 2)
        wait_for_moment(rng, path, started[0], writing=number % 2)
        lost = rng.choice([[0], [1], [0, 1]])
        for rank in lost:
            started[rank].kill()
        said = [process.communicate(timeout=200)[1] for process in started]
        left = [process.returncode for rank, process in enumerate(started) if rank not in lost]
        # 0: it had ended before. JAX aborts the others where the first process is killed.
        if any(code not in (0, 2, *[-signal.SIGABRT] * (backend == "jax")) for code in left):
            work.details.append(f"{what}: the other one ended with {left}: {said[1 - lost[0]][-300:]}")
            yield NEITHER
            continue
        again = ("--resume", path) if (path / "recipe.yaml").is_file() else new
        if rng.randrange(2):
            ended = command("train", *again, "--train.distribute", "none")
            code, lines = ended.code, ended.lines
        else:
            started = begin(*again)
            lines = [process.communicate(timeout=300)[1] for process in started]
            code = max(abs(process.returncode) for process in started)
        if code == 0 and work.is_nearly_whole(path):
            yield SURVIVED
        else:
            work.details.append(f"{what}: does not go on: {code}: {' | '.join(lines)[-300:]}")
            yield LOST
        shutil.rmtree(path, ignore_errors=True)


def write_photos(folder, count, broken=0):
    from PIL import Image

    rng = np.random.default_rng(0)
    for index in range(count):
        file = folder / "ab"[index % 2] / f"{index}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(file)
        if index < broken:
            file.write_bytes(file.read_bytes()[:60])


def vanishing_data(work):
    """the folder of images vanishes within an epoch, and is back when the run is resumed"""
    import keras

    from keras_vit.runs.folder import RunFolder
    from keras_vit.training.loop import train

    data, whole = work.folder / "photos", work.folder / "of-photos"
    write_photos(data, 80)
    settings = ["--recipe", work.recipe_file, "--data", f"folder:{data}", "--augment.resized_crop", "0.5"]
    command("train", *settings, "--out", whole)
    for epoch in (1, 2, 3):

        class Spoil(keras.callbacks.Callback):
            def on_epoch_begin(self, number, logs=None, epoch=epoch):
                if number == epoch:
                    data.rename(f"{data}-away")

        path, spoil = work.folder / f"of-photos-{epoch}", Spoil()
        with unittest.mock.patch("keras_vit.cli.command.train", lambda *a, spoil=spoil, **k: train(*a, **k, callbacks=[spoil])):
            ended = command("train", *settings, "--out", path)
        named = any(str(data) in line for line in ended.lines)
        yield work.judge(ended, f"data vanishing in epoch {epoch + 1}", lambda _: False) if named else NEITHER
        pathlib.Path(f"{data}-away").rename(data)
        again = command("train", "--resume", path)
        if again.code != 0 or RunFolder(path).summary["test_loss"] != RunFolder(whole).summary["test_loss"]:
            work.details.append(f"data vanishing in epoch {epoch + 1}: {again.lines[-1:]}")
            yield LOST


def broken_pictures(work):
    """1% of the files of an image folder are broken"""
    data = work.folder / "with-broken"
    write_photos(data, 200, broken=2)
    ended = command("train", "--recipe", work.recipe_file, "--data", f"folder:{data}", "--out", work.folder / "of-broken")
    yield work.judge(ended, "broken pictures", lambda _: False)


KINDS = [
    damaged_states,
    both_states_damaged,
    damaged_models,
    damaged_recipes,
    damaged_metrics,
    damaged_summaries,
    failing_writes,
    lost_folders,
    second_runs,
    clock_going_backwards,
    vanishing_data,
    broken_pictures,
    kills,
    kills_of_processes,
]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[kind.__name__ for kind in KINDS], help="kinds of faults (default: all)")
    parser.add_argument("--kills", type=int, default=20, help="number of kills (default: 20)")
    parser.add_argument("--json", type=pathlib.Path, help="file to write: the table")
    options = parser.parse_args()
    rows, details = [], []
    with tempfile.TemporaryDirectory() as folder:
        work = Work(pathlib.Path(folder), options.kills)
        for kind in KINDS:
            if options.only and kind.__name__ not in options.only:
                continue
            began, counts = time.monotonic(), collections.Counter(kind(work))
            ends = {name: counts[name] for name in (SURVIVED, REFUSED, NEITHER, LOST)}
            rows.append({"fault": kind.__doc__, "tried": counts.total() - counts[LOST], **ends})
            print(f"{kind.__name__}: {rows[-1]}, {time.monotonic() - began:.0f} s", flush=True)
            print(*work.details, sep="\n", end="\n" * bool(work.details), flush=True)
            details += work.details
            work.details.clear()
    if options.json:
        from record import write_record

        write_record(options.json, rows=rows, details=details)


if __name__ == "__main__":
    main()
