"""Does anything that is read from outside end in more than one line? A coverage-guided fuzzer (atheris) over every loader.

    python benchmarks/fuzz.py [--only TARGET ...] [--seconds 60] [--json fuzz.json]
    python benchmarks/fuzz.py --repeat TARGET FILE

Each class of `TARGETS` makes small valid files, changes them behind their checksums, and loads them. An input is loaded, or refused
by a ValueError of this project or an OSError, in one line. Anything else is a finding: another error, a hang, memory beyond the
bound. Each target runs in a process of its own, with bounds on time, memory and the time of one input.
"""

import argparse
import contextlib
import csv
import functools
import hashlib
import io
import json
import os
import pathlib
import random
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
import unittest.mock
import warnings
import zipfile
from collections.abc import Callable

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
LOADED, REFUSED = "loaded", "refused"
COUNTS = ("tried", LOADED, REFUSED, "start_kb")
INSTRUMENTED = ["keras_vit", "PIL", "tifffile"]  # the packages whose branches lead the fuzzer
MAX_LENGTH = 2**16  # bytes of an input
RSS_LIMIT_MB, TIMEOUT = 3000, 20  # of a process, with all that it imports; seconds of one input
START_SECONDS = 600  # for a process to begin, on a machine that is busy
ENDS = {"timeout-": f"takes more than {TIMEOUT} s", "oom-": f"takes more than {RSS_LIMIT_MB:,} MB", "crash-": "ends the process"}
PARTS = (*b"null true -1 1e309 nan \" ' [ { , : ; | \0 \xff \x1b".split(b" "), b"\n", b"&a *a", b"9" * 50)
SHAPE = (8, 8, 1)  # of the images that data sets are read as


def changed(content: bytes, rng: random.Random) -> bytes:
    """A content with one random change: what the tests use in the place of the fuzzer's own."""
    start, length = rng.randrange(len(content) + 1), rng.choice((1, 1, 2, 4, 16))
    before, part, after = content[:start], content[start : start + length], content[start + length :]
    return rng.choice(
        (
            lambda: before + bytes(byte ^ 1 << rng.randrange(8) for byte in part[:1]) + part[1:] + after,
            lambda: before + rng.randbytes(len(part)) + after,
            lambda: before + after,
            lambda: before + part * rng.choice((2, 3, 1000)) + after,
            lambda: before + rng.choice(PARTS) + part + after,
            lambda: before + rng.choice(PARTS) + after,
            lambda: before,
        )
    )()


class Target:
    """Reads one kind of file. Each target has `seeds() -> list[bytes]`, small valid files, and `load(bytes)`, as users read one.

    Args:
        folder: A folder to write to.
    """

    suffix = ""  # of the file's name

    def __init__(self, folder: pathlib.Path):
        self.folder = folder

    def mutated(self, content: bytes, change: Callable[[bytes], bytes], rng: random.Random) -> bytes:
        """A changed file; `change` changes some bytes."""
        return change(content)

    def file(self, content: bytes) -> pathlib.Path:
        path = self.folder / f"input{self.suffix}"
        path.write_bytes(content)
        return path


def zipped(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return out.getvalue()


def unzipped(content: bytes) -> dict[str, bytes]:
    """The members of an archive; none of what is no archive, or claims to be larger than it is."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if sum(member.file_size for member in archive.infolist()) > len(content):
                return {}
            return {name: archive.read(name) for name in archive.namelist()}
    except Exception:  # of a changed archive zipfile raises much
        return {}


class Archive(Target):
    """A zip archive; mostly one of its members is changed, and its checksum is right."""

    def mutated(self, content, change, rng):
        members = unzipped(content)
        if not members or rng.random() < 0.1:
            return change(content)
        name = rng.choice(sorted(members))
        members[name] = self.member(name, members[name], change, rng)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # names twice
            return zipped(members)

    def member(self, name, content, change, rng):
        return tensors_changed(content, change, rng) if name.endswith(".safetensors") else change(content)

    def unpacked(self, content):
        """A folder with the members; of names, only those without folders."""
        path = self.folder / "unpacked"
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir()
        for name, member in unzipped(content).items():
            if re.fullmatch(r"\w[\w.-]{,50}", name):
                (path / name).write_bytes(member)
        return path


def tensors_changed(content, change, rng):
    """A safetensors file; mostly its header is changed, and its length is right."""
    end = 8 + int.from_bytes(content[:8], "little")
    if end > len(content) or rng.random() < 0.2:
        return change(content)
    header = change(content[8:end])
    return len(header).to_bytes(8, "little") + header + content[end:]


def small_config(**settings):
    from keras_vit import ViTConfig

    small = {"image_size": 8, "channels": 1, "patch_size": 4, "width": 8, "depth": 1, "num_heads": 2, "mlp_dim": 8}
    return ViTConfig(**{**small, "num_classes": 3, **settings})


def small_model(**settings):
    from keras_vit import build_vit
    from keras_vit.parity import randomise

    return randomise(build_vit(small_config(**settings)))


class Recipes(Target):
    """recipes, of trainings and of searches"""

    suffix = ".yaml"

    def seeds(self):
        from keras_vit.recipes.parse import recipe_path
        from keras_vit.recipes.schema import Recipe

        whole = Recipe().to_yaml()
        short = {"data": "digits", "model": {"variant": "Ti/4"}, "space": {"depth": "1..4"}}
        return [whole.encode(), json.dumps(short).encode(), *(recipe_path(name).read_bytes() for name in ("quick", "digits"))]

    def load(self, content):
        from keras_vit.cli.search import SECTIONS, parse
        from keras_vit.recipes.parse import read_settings

        path = self.file(content)
        read_settings(path, sections=SECTIONS)  # a hundred times as fast as all of it, and refuses most
        parse(path, None, [])


class Settings(Target):
    """settings on a command line, one a line"""

    def seeds(self):
        lines = (
            "--model.width 64 --model.image_size [32,32] --train.epochs 3",
            "--data digits --augment.flip false --mean [0.5] --std 0.2",
            '--train {"epochs":3} --space.depth 2..4 --trials 3 --max_time 2m',
        )
        return [line.replace(" ", "\n").encode() for line in lines]

    def load(self, content):
        from keras_vit.cli.search import parse

        arguments = content.decode("utf-8", "surrogateescape").replace("\0", "").split("\n")
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                parse("quick", None, arguments)
        except SystemExit as stop:  # --help
            if stop.code:
                raise


class Models(Archive):
    """`.keras` files"""

    suffix = ".keras"

    def seeds(self):
        contents = []
        for settings in ({"pool": "gap"}, {"rotary": "centered", "position": "none"}):
            small_model(**settings).save(self.folder / "seed.keras")
            contents.append((self.folder / "seed.keras").read_bytes())
        return contents

    def load(self, content):
        from keras_vit.model.saved import load_keras

        load_keras(self.file(content))


class States(Target):
    """training states"""

    def seeds(self):
        from keras_vit.runs.kept import States as Kept

        rng, kept = np.random.default_rng(0), Kept(self.folder / "seed")
        arrays = {
            "model/0000/kernel": rng.normal(size=(3, 2)).astype("float32"),
            "optimizer/0000/iteration": np.array(4),
            "optimizer/0001/half": rng.normal(size=(3,)).astype("float16"),
            "optimizer/0002/flag": np.array([True, False]),
        }
        kept.write(4, arrays, {"epoch": 1, "step": 0, "rows": [{"epoch": 1, "loss": 0.5}], "metrics": [], "backend": "jax"})
        return [kept.paths()[0].read_bytes()]

    def load(self, content):
        from keras_vit.runs.kept import States as Kept

        kept = Kept(self.folder / "states")
        kept.files.folder.mkdir(exist_ok=True)
        kept.files.path(4).write_bytes(content)
        kept.read()

    def mutated(self, content, change, rng):
        """Mostly with the right digest."""
        from safetensors import safe_open

        from keras_vit.runs.kept import digest

        content = tensors_changed(content, change, rng)
        with contextlib.suppress(Exception), safe_open(self.file(content), framework="numpy") as file:
            known, arrays = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if rng.random() < 0.9:
                content = content.replace(known["sha256"].encode(), digest(arrays, known.get("state", "")).encode())
        return content


class Checkpoints(Archive):
    """folders of timm and transformers"""

    suffix = ".zip"

    def seeds(self):
        from keras_vit import save_weights

        contents = []
        for target, settings in (("timm", {"channels": 3}), ("huggingface", {"channels": 3, "pool": "cls"})):
            path = self.folder / target
            save_weights(small_model(**settings), path, target, class_names=["a", "b", "c"])
            contents.append(zipped({file.name: file.read_bytes() for file in sorted(path.iterdir())}))
        return contents

    def load(self, content):
        read_checkpoint(self.unpacked(content))


def read_checkpoint(path):
    """Opens a checkpoint and reads all of its weights."""
    from keras_vit import open_checkpoint

    checkpoint = open_checkpoint(path)
    for name in checkpoint.config.weight_shapes:
        checkpoint.read(name)


class Tensors(Target):
    """safetensors files of timm's models"""

    suffix = ".safetensors"

    def seeds(self):
        from keras_vit import save_weights

        save_weights(small_model(), self.folder / "seed.safetensors", "timm")
        return [(self.folder / "seed.safetensors").read_bytes()]

    def load(self, content):
        read_checkpoint(self.file(content))

    def mutated(self, content, change, rng):
        return tensors_changed(content, change, rng)


class JaxArrays(Archive):
    """`.npz` files of vision_transformer"""

    suffix = ".npz"

    def seeds(self):
        from keras_vit import save_weights

        save_weights(small_model(mlp="gelu_tanh", pool="cls"), self.folder / "seed.npz", "jax")
        return [(self.folder / "seed.npz").read_bytes()]

    def load(self, content):
        read_checkpoint(self.file(content))


class DataArrays(Archive):
    """data in `.npz` files"""

    suffix = ".npz"

    def seeds(self):
        rng, contents = np.random.default_rng(0), []
        images, labels = rng.integers(0, 256, (6, 8, 8), dtype=np.uint8), np.arange(6) % 3
        for x, y in ((images, labels), (images[..., None] / np.float32(255), np.eye(3, dtype=int)[labels])):
            out = io.BytesIO()
            np.savez(out, x_train=x, y_train=y, x_test=x[:3], y_test=y[:3])
            contents.append(out.getvalue())
        return contents

    def load(self, content):
        from keras_vit.data.arrays import read_arrays

        read_arrays(str(self.file(content)), SHAPE)


class Pictures(Target):
    """pictures: PNG, JPEG, GIF, WebP, BMP, TIFF of 1 to 5 channels"""

    def seeds(self):
        import tifffile
        from PIL import Image

        rng, contents = np.random.default_rng(0), []
        image = rng.integers(0, 256, (9, 7, 4), dtype=np.uint8)
        exif = Image.Exif()
        exif[0x0112] = 6  # a quarter turn
        for kind in ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"):
            out = io.BytesIO()
            Image.fromarray(image if kind == "PNG" else image[..., :3]).save(out, kind, exif=exif)
            contents.append(out.getvalue())
        out = io.BytesIO()
        tifffile.imwrite(out, rng.integers(0, 65536, (9, 7, 5), dtype=np.uint16), photometric="minisblack")
        return [*contents, out.getvalue()]

    def load(self, content):
        """Of a picture that is found readable, the images and crops of a training must be readable too."""
        from keras_vit.data.photos import Photos, examine_all

        readable = False
        for channels in (3, 1, 4, 5):
            source = Encoded(content)
            vars(source).update(examine_all(source.open, [0], channels))
            if source.sizes.all():
                readable, photos = True, Photos(source, (*SHAPE[:2], channels))
                try:
                    photos[np.array([0])]
                    photos.crops(np.array([0]), np.array([[0.2, 0.1, 0.5, 0.6]]), SHAPE[:2])
                except ValueError as error:
                    raise RuntimeError(f"{channels} channels: {error}") from error
        if not readable:
            raise ValueError("no picture")


class Encoded:
    """One picture as a `Source` of `Photos`."""

    def __init__(self, content):
        self.content, self.labels = content, np.zeros(1, np.int64)

    def open(self, row):
        return io.BytesIO(self.content)

    def name(self, row):
        return "picture"


class Tables(Target):
    """data in CSV files"""

    suffix = ".csv"

    def seeds(self):
        for index in range(4):
            (self.folder / f"{index}.ppm").write_bytes(b"P5 2 2 255\n" + bytes([index] * 4))
        return [
            b"path,label,split\n0.ppm,a,train\n1.ppm,b,train\n2.ppm,a,test\n3.ppm,b,val\n",
            b"image;labels\n0.ppm;a|b\n1.ppm;b\n2.ppm;\n3.ppm;a\n",
            b'\xef\xbb\xbffile\tclass\n"0.ppm"\ta\n"1.ppm"\t"b ""c"""\n',
        ]

    def load(self, content):
        from keras_vit.data import checked, table

        with unittest.mock.patch.object(checked, "CHECKED", self.folder / "checked"):
            table.read_csv(str(self.file(content)), SHAPE, [])


class Runs(Archive):
    """`recipe.yaml`, `metrics.csv` and `summary.json` of run folders"""

    suffix = ".zip"

    def seeds(self):
        from keras_vit.recipes.parse import load_recipe
        from keras_vit.runs.folder import RunFolder

        run = RunFolder.create(self.folder / "seed", load_recipe("digits", train={"epochs": 2}))
        run.write_metrics([{"epoch": epoch, "seconds": epoch / 3, "loss": 1 / epoch, "val_accuracy": 0.5} for epoch in (1, 2)])
        run.write_summary({"epochs": 2, "class_names": ["a", "b"], "test_accuracy": 0.5})
        return [zipped({file.name: file.read_bytes() for file in sorted(run.path.iterdir()) if file.is_file()})]

    def load(self, content):
        from keras_vit.runs.folder import RunFolder

        run = RunFolder(self.unpacked(content))
        _ = run.recipe, run.metrics, run.summary, run.class_names

    def member(self, name, content, change, rng):
        content = change(content)
        with contextlib.suppress(Exception):
            return self.sealed(name, content.decode()).encode() if rng.random() < 0.9 else content
        return content

    def sealed(self, name, text):
        """A file with the right digest or checksums."""
        from keras_vit import files
        from keras_vit.runs import metrics

        if name == "recipe.yaml":
            return files.sealed(files.SEAL.sub("", text, count=1))
        if name == "metrics.csv":
            (*columns, last), *rows = csv.reader(io.StringIO(text))
            out, check = io.StringIO(), 0
            writer = csv.writer(out, lineterminator="\n")
            writer.writerow([*columns, last])
            for *cells, _ in rows:
                check = metrics.checksum(columns, cells, check)
                writer.writerow([*cells, f"{check:08x}"])
            return out.getvalue()
        value = json.loads(text)
        value.pop("sha256", None)
        return json.dumps({**value, "sha256": files.sha256(json.dumps(value, sort_keys=True))})


class Messages(Target):
    """messages to the chief of a search"""

    METHODS = ("CreateTrial", "GetTrial", "UpdateTrial", "EndTrial", "GetBestTrials", "GetSpace", "UpdateSpace")
    WORKERS = ("w", "v", "", "../x")

    def seeds(self):
        from keras_tuner.engine.trial import TrialStatus

        from keras_vit.private.keras_tuner import MESSAGES

        report, ended = MESSAGES.UpdateTrialRequest(trial_id="0"), MESSAGES.EndTrialRequest()
        report.metrics["val_accuracy"] = 0.5
        ended.trial.trial_id, ended.trial.status = "0", TrialStatus.to_proto("COMPLETED")
        calls = [
            ("CreateTrial", MESSAGES.CreateTrialRequest(tuner_id="w")),
            ("GetTrial", MESSAGES.GetTrialRequest(trial_id="0")),
            ("UpdateTrial", report),
            ("EndTrial", ended),
            ("GetBestTrials", MESSAGES.GetBestTrialsRequest(num_trials=1)),
        ]
        return [b"".join(self.frame(*call) for call in calls), b"".join(self.frame(*call) for call in calls[:3])]

    def frame(self, method, request):
        content = request.SerializeToString()
        return bytes([self.METHODS.index(method), 0]) + len(content).to_bytes(2, "little") + content

    def load(self, content):
        from google.protobuf.message import DecodeError

        from keras_vit.private.keras_tuner import MESSAGES
        from keras_vit.search.distribute import Chief
        from keras_vit.search.tuner import Silence

        oracle = small_oracle(self.folder / "search")
        chief, file, refusals = Chief(oracle, self.folder / "search", Silence()), io.BytesIO(content), []
        while len(head := file.read(4)) == 4:
            method, caller = self.METHODS[head[0] % len(self.METHODS)], Caller(self.WORKERS[head[1] % len(self.WORKERS)])
            try:
                request = getattr(MESSAGES, f"{method}Request").FromString(file.read(int.from_bytes(head[2:], "little")))
                getattr(chief, method)(request, caller)
            except DecodeError:  # gRPC refuses it
                refusals.append("no message")
            except Aborted as refusal:
                refusals.append(str(refusal))
            if chief.error:
                raise RuntimeError(f"{method} ends the chief: {type(chief.error).__name__}: {chief.error}") from chief.error
        oracle.save()
        small_oracle(self.folder / "search").reload()  # what it has taken, it can read again
        if refusals:
            raise ValueError(max(refusals, key=lambda text: len(text.splitlines())))


class Aborted(Exception):
    """Ends a call, as gRPC's own does."""


class Caller:
    """The context of a call, as gRPC makes it."""

    def __init__(self, worker):
        self.worker = worker

    def invocation_metadata(self):
        return (("worker", self.worker),)

    def abort(self, code, details):
        raise Aborted(details)


@functools.cache
def small_space():
    from keras_vit.recipes.parse import load_recipe
    from keras_vit.search.axes import SpaceConfig
    from keras_vit.search.space import Space

    unsearched = ("head_dim", "mlp_ratio", "stem", "stem_depth", "weight_decay", "drop_path", "batch_size", "augment")
    return Space(SpaceConfig(depth="1..4", num_heads="2..4", **dict.fromkeys(unsearched)), load_recipe("digits"))


def small_oracle(folder):
    from keras_vit.search.oracle import RandomOracle

    folder.mkdir(exist_ok=True)
    oracle = RandomOracle(small_space(), seed=0, max_trials=3)
    oracle.use_folder(folder)
    return oracle


class Searches(Archive):
    """`oracle.json` and `search.json` of search folders"""

    suffix = ".zip"
    SEARCH = {"identity": {"method": "random", "objectives": {"val_accuracy": "max"}, "data": "a1"}, "stall_limit": 600.0}  # noqa: RUF012

    def seeds(self):
        from keras_tuner.engine.trial import TrialStatus

        path = self.folder / "search"
        oracle = small_oracle(path)
        for score in (0.5, None):
            trial = oracle.create_trial("w")
            if score:
                oracle.update_trial(trial.trial_id, {"val_accuracy": score})
                trial.status = TrialStatus.COMPLETED
                oracle.end_trial(trial)
        search = json.dumps(self.SEARCH).encode()
        return [zipped({"oracle.json": oracle.state_path.read_bytes(), "search.json": search})]

    def load(self, content):
        from keras_vit.search.folder import claim

        path = self.unpacked(content)
        claim(path, self.SEARCH, overwrite=False)
        small_oracle(path).reload()

    def member(self, name, content, change, rng):
        if name == "oracle.json" and rng.random() < 0.9:
            with contextlib.suppress(Exception):
                state = change(json.loads(content)["state"].encode()).decode()
                return json.dumps({"sha256": hashlib.sha256(state.encode()).hexdigest(), "state": state}).encode()
        return change(content)


TARGETS = {
    "recipes": Recipes,
    "settings": Settings,
    "keras": Models,
    "states": States,
    "checkpoints": Checkpoints,
    "safetensors": Tensors,
    "jax": JaxArrays,
    "arrays": DataArrays,
    "pictures": Pictures,
    "csv": Tables,
    "runs": Runs,
    "chief": Messages,
    "searches": Searches,
}


def attempt(target: Target, content: bytes) -> str:
    """How reading a content ends: `LOADED`, `REFUSED`, or in words what must not be."""
    from keras_vit.processes import raised_here

    ended = LOADED
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()) as said:
            warnings.simplefilter("ignore")
            target.load(content)
    except (Exception, SystemExit) as error:
        ended = REFUSED
        documented = isinstance(error, OSError) or (isinstance(error, ValueError) and raised_here(error))
        if not documented or len(str(error).splitlines()) != 1:
            ended = f"{type(error).__name__} in {place_of(error)}: {str(error)[:300]!r}"
    return f"writes to stderr: {said.getvalue()[:300]!r}" if ended == REFUSED and said.getvalue() else ended


def place_of(error):
    """The line of this project's code in which an error arose."""
    ours = [frame for frame in traceback.extract_tb(error.__traceback__) if "keras_vit/" in frame.filename.removeprefix(str(ROOT))]
    return " ".join(f"{pathlib.Path(frame.filename).name}:{frame.lineno}" for frame in ours[-1:]) or "the fuzzer"


# A target in a process of its own


def fuzz(name, folder, seconds):
    """Fuzzes one target in this process, which the fuzzer ends. Leaves in the folder counts and findings."""
    import atheris

    with atheris.instrument_imports(include=INSTRUMENTED):
        (folder / "files").mkdir()
        (folder / "seeds").mkdir()
        target = TARGETS[name](folder / "files")
        for index, content in enumerate(target.seeds()):
            if (outcome := attempt(target, content)) != LOADED:
                sys.exit(f"{name}: its seed {index} is not loaded: {outcome}")
            (folder / "seeds" / str(index)).write_bytes(content)
    counts = np.memmap(folder / "counts", np.int64, "w+", shape=len(COUNTS))  # outlasts this process, however it ends
    counts[COUNTS.index("start_kb")] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    def try_one(content):
        outcome = attempt(target, content)
        counts[0] += 1
        if outcome in COUNTS:
            counts[COUNTS.index(outcome)] += 1
            return
        place = outcome.partition(": ")[0]
        found = folder / f"found-{hashlib.sha1(place.encode()).hexdigest()[:8]}{target.suffix}"
        if not found.exists():
            found.write_bytes(content)
            found.with_name(f"{found.name}.why").write_text(outcome, encoding="utf-8")

    def mutate(content, most, seed):
        new = target.mutated(content, lambda part: atheris.Mutate(part, len(part) + 64) if part else b"x", random.Random(seed))
        return new if len(new) <= most else content

    bounds = [f"-max_total_time={seconds}", f"-rss_limit_mb={RSS_LIMIT_MB}", f"-timeout={TIMEOUT}", f"-max_len={MAX_LENGTH}"]
    places = [f"-artifact_prefix={folder}/", str(folder / "seeds")]
    atheris.Setup([sys.argv[0], *bounds, "-len_control=0", "-seed=1", *places], try_one, custom_mutator=mutate)
    atheris.Fuzz()


def run(name, seconds, kept):
    """Fuzzes a target in another process; its row, and its findings as lines."""
    from keras_vit.processes import ON_PROCESSOR

    folder = kept / name
    folder.mkdir(parents=True)
    command = [sys.executable, __file__, "--inside", str(folder), "--only", name, "--seconds", str(seconds)]
    environment = {**os.environ, **ON_PROCESSOR, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=folder)
        until = time.monotonic() + START_SECONDS + seconds + TIMEOUT  # it ends by itself before
        try:
            while not (ended := os.wait4(process.pid, os.WNOHANG))[0]:
                if time.monotonic() > until:
                    process.kill()
                time.sleep(0.1)
        except BaseException:
            process.kill()
            raise
    process.returncode = os.waitstatus_to_exitcode(ended[1])
    if not (folder / "counts").is_file():
        lines = (folder / "log").read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["no output"]
        sys.exit(f"{name}: it has not begun: {lines[-1]}")
    counts = dict(zip(COUNTS, map(int, np.fromfile(folder / "counts", np.int64)), strict=True))
    findings = [(file.with_suffix(""), file.read_text(encoding="utf-8")) for file in sorted(folder.glob("found-*.why"))]
    findings += [(file, why) for prefix, why in ENDS.items() for file in sorted(folder.glob(f"{prefix}*"))]
    if process.returncode and not findings:
        findings.append((folder / "log", f"ends with exit code {process.returncode}"))
    row = {"target": name, "reads": TARGETS[name].__doc__, **{key: counts[key] for key in ("tried", LOADED, REFUSED)}}
    row |= {"findings": len(findings), "start_mb": counts["start_kb"] / 1024, "peak_mb": ended[2].ru_maxrss / 1024}
    return row, [f"{why}\n  python benchmarks/fuzz.py --repeat {name} {file}" for file, why in findings]


def repeat(name, file):
    """Reads one input; a finding keeps its traceback."""
    with tempfile.TemporaryDirectory() as folder:
        target = TARGETS[name](pathlib.Path(folder))
        target.seeds()  # some have files beside them
        content = pathlib.Path(file).read_bytes()
        outcome = attempt(target, content)
        if outcome not in (LOADED, REFUSED):
            target.load(content)
        print(outcome)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=TARGETS, default=[*TARGETS], help="targets (default: all)")
    parser.add_argument("--seconds", type=int, default=60, help="time of each target (default: 60)")
    parser.add_argument("--repeat", nargs=2, metavar=("TARGET", "FILE"), help="read one input")
    parser.add_argument("--json", type=pathlib.Path, help="file to write: the table")
    parser.add_argument("--inside", type=pathlib.Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.repeat:
        return repeat(*options.repeat)
    if options.inside:
        return fuzz(*options.only, options.inside, options.seconds)
    try:
        import atheris  # noqa: F401
    except ImportError:
        sys.exit("fuzz: received no atheris; allowed with: pip install -r requirements-dev.txt (Linux)")
    rows, details, kept = [], [], pathlib.Path(tempfile.mkdtemp(prefix="fuzz-"))
    for name in options.only:
        row, findings = run(name, options.seconds, kept)
        rows.append(row)
        print(", ".join(f"{key}: {f'{value:,.0f}' if isinstance(value, (int, float)) else value}" for key, value in row.items()))
        print(*findings, sep="\n", end="\n" * bool(findings), flush=True)
        details += [line.partition("\n")[0] for line in findings]
    if not details:
        shutil.rmtree(kept)
    if options.json:
        from record import write_record

        write_record(options.json, rows=rows, details=details, seconds=options.seconds)
    sys.exit(bool(details))


if __name__ == "__main__":
    main()
