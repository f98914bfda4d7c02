"""`keras-vit publish` and a stand-in of the hub: what is uploaded loads back to the same logits, here and in other libraries."""

import os
import re
import socket

import numpy as np
import pytest
from helpers import error_line, logits, random
from published import NAMES, make
from standin import TOKEN

import keras_vit
from keras_vit.checks import visible
from keras_vit.cli import publish
from keras_vit.cli.publish import main
from keras_vit.hub.contents import gather
from keras_vit.images import normalize
from keras_vit.runs.folder import RunFolder

pytest.importorskip("huggingface_hub")

CLOSE = 1e-5
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # huggingface_hub and its client


def same(model, wanted):
    images = random(3, 16, 16, 3)
    np.testing.assert_allclose(logits(model, images), logits(wanted, images), atol=CLOSE)


def test_what_is_published_loads_back(run, hub, tmp_path, capsys):
    main([str(run.path), "me/flowers", "--license", "cc-by-4.0", "--private"])
    said = capsys.readouterr().out
    assert f"published: {hub.endpoint}/me/flowers" in said
    files = hub.repositories["me/flowers"]
    assert sorted(files) == [
        "README.md", "best.keras", "config.json", "model.safetensors", "preprocessor_config.json", "recipe.yaml", "summary.json",
    ]  # fmt: skip
    assert hub.private == {"me/flowers"}
    assert hub.large == {"best.keras", "model.safetensors"}
    assert b"license: cc-by-4.0" in files["README.md"]
    assert not any(b"secret" in content for content in files.values())
    same(keras_vit.load_model("me/flowers"), run.model())  # the safetensors, from the hub
    # The repository is a run folder: it predicts with the classes and the normalisation of the training.
    import huggingface_hub

    clone = RunFolder(huggingface_hub.snapshot_download("me/flowers"))
    same(clone.model(), run.model())
    assert (clone.class_names, clone.recipe.mean, clone.recipe.data) == (NAMES, run.recipe.mean, "folder:my photos")
    # Once more: into the repository that is there, with the card as it is.
    (run.path / "README.md").write_text("---\nlicense: mit\n---\n\nmy own words\n")
    main([str(run.path), "me/flowers"])
    assert "is published as it is; --new-card writes it anew" in capsys.readouterr().out
    assert b"my own words" in hub.repositories["me/flowers"]["README.md"]


def test_the_temperature_is_published(tmp_path):
    run = make(tmp_path / "warm", "both")
    run.write_summary({**run.summary, "temperature": 1.3})
    found = gather(run, "me/flowers", tmp_path / "published")
    assert RunFolder(found.folder).temperature == 1.3
    note = "transformers's files do not state the temperature of calibrated probabilities: summary.json does"
    assert note in found.notes
    assert note in (found.folder / "README.md").read_text().replace("\\", "")


def uploaded(hub, folder):
    folder.mkdir()
    for name, content in hub.repositories["me/flowers"].items():
        (folder / name).write_bytes(content)
    (folder / "recipe.yaml").unlink()  # which says that it is a run
    return folder


def test_timm_loads_it(run, hub, tmp_path, capsys):
    from peers import module_output  # skips without PyTorch

    timm = pytest.importorskip("timm")
    main([str(run.path), "me/flowers", "--weights", "timm"])
    folder = uploaded(hub, tmp_path / "copy")
    same(keras_vit.load_model(folder), run.model())
    theirs = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    images = random(3, 16, 16, 3)
    np.testing.assert_allclose(module_output(theirs, images), logits(run.model(), images), atol=CLOSE)
    assert theirs.pretrained_cfg["label_names"] == [visible(name) for name in NAMES]


def test_transformers_load_it(run, hub, tmp_path, capsys):
    from peers import torch  # skips without it

    transformers = pytest.importorskip("transformers")
    main([str(run.path), "me/flowers"])
    folder = uploaded(hub, tmp_path / "copy")
    theirs = transformers.AutoModelForImageClassification.from_pretrained(folder).eval()
    pixels = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    with torch.no_grad():
        found = theirs(**processor([*pixels], return_tensors="pt")).logits.numpy()
    wanted = logits(run.model(), normalize(pixels, run.recipe.mean, run.recipe.std))
    np.testing.assert_allclose(found, wanted, atol=CLOSE)
    assert theirs.config.id2label[2] == r"line\nbreak"


def test_a_model_that_no_other_library_has(tmp_path, hub, capsys):
    run = make(tmp_path / "run", "neither")
    main([str(run.path), "me/flowers"])
    said = capsys.readouterr().out
    assert "transformers cannot hold this model (stem: received 'conv'; " in said
    assert "timm cannot hold this model (stem: received 'conv'; " in said
    assert "best.keras is the only file with weights" in said
    assert sorted(hub.repositories["me/flowers"]) == ["README.md", "best.keras", "recipe.yaml", "summary.json"]
    assert "timm cannot hold this model" in (run.path / "README.md").read_text().replace("\\", "")
    same(keras_vit.load_model("me/flowers"), run.model())
    assert keras_vit.open_checkpoint("me/flowers").mean == run.recipe.mean  # it is read as a run
    line = error_line(capsys, main, [str(run.path), "me/flowers", "--weights", "timm"])
    assert line == "stem: received 'conv'; allowed in timm: patch"


def test_a_dry_run_uploads_nothing(run, hub, capsys):
    main([str(run.path), "me/flowers", "--dry-run"])
    said = capsys.readouterr().out
    assert re.search(rf"best\.keras +│ +{run.model_path.stat().st_size:,} │", said)
    assert "README.md is written; edit it before you publish" in said
    assert "a dry run: nothing was uploaded to me/flowers" in said
    assert hub.requests == []
    assert (run.path / "README.md").read_text().count("\nlicense: unknown\n") == 1


def test_a_card_from_before_the_runs_end_is_said(run, hub, capsys):
    card = run.path / "README.md"
    card.write_text("---\nlicense: mit\n---\n")
    os.utime(card, (0, 0))  # the run was extended since
    main([str(run.path), "me/flowers", "--dry-run"])
    assert "is published as it is, with numbers from before the run's last end; --new-card" in capsys.readouterr().out


def test_hubs_that_refuse(run, hub, capsys, monkeypatch):
    def fails(*options):
        line = error_line(capsys, main, [str(run.path), "me/flowers", *options])
        assert TOKEN not in line
        return line

    start = "hub: received 'me/flowers'; allowed: a name that your token may write to"
    monkeypatch.setenv("HF_TOKEN", "hf_another")
    assert fails() == f"{start} ({hub.endpoint} answers 401: no token, or one that is not valid: hf auth login)"
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    line = error_line(capsys, main, [str(run.path), "someone/flowers"])
    assert line.endswith(f"({hub.endpoint} answers 403: the token may not write there)")
    for part, status in (("/preupload/", 404), ("/commit/", 403), ("/repos/create", 404)):
        hub.fails = {part: status}
        assert f"{hub.endpoint} answers {status}: " in fails()
    hub.fails = {"/commit/": 500}
    assert fails().startswith(f"{start} ({hub.endpoint} answers 500: ")
    hub.fails = {"/lfs/": 403}
    assert fails() == f"{start} ({hub.endpoint} answers 403: the token may not write there)"
    hub.fails = {}
    (run.path / "README.md").write_text("---\nlicense: [\n---\n")
    assert fails().startswith(f"README.md: {str(run.path / 'README.md')!r} is no model card (")
    assert fails("--license", "mit").endswith(
        "allowed with " + repr(str(run.path / "README.md")) + ", which states one: none, or --new-card"
    )


def test_what_cannot_be_published(run, tmp_path, capsys, monkeypatch):
    def fails(*options):
        return error_line(capsys, main, [str(option) for option in options])

    assert fails(run.path, "flowers") == "USER/NAME: received 'flowers'; allowed: a name on the hub, such as you/flowers"
    assert fails(run.path, "me/a b").startswith("USER/NAME: received 'me/a b'; ")
    assert fails(run.path, "me/x", "--weights", "jax") == "--weights: received 'jax'; allowed: auto, huggingface, timm, none"
    assert fails(run.path, "me/x", "--license", "MIT License").startswith("--license: received 'MIT License'; allowed: ")
    assert "which is no folder; allowed: a run folder" in fails(tmp_path / "none", "me/x")
    run.model_path.unlink()
    for path in (run.path / "last").iterdir():
        path.unlink()
    assert "which has no best.keras; allowed: a run with a validated epoch" in fails(run.path, "me/x")
    (run.path / "summary.json").unlink()
    assert "which has no summary.json; allowed: a run that has ended" in fails(run.path, "me/x")
    monkeypatch.setattr(publish, "NEEDED", "no_such_package")
    assert fails(run.path, "me/x") == "publish: needs no_such_package: pip install 'keras-vision-transformer[hub]'"


def test_without_a_network(run, hub, capsys, monkeypatch):
    from huggingface_hub import constants

    with socket.create_server(("127.0.0.1", 0)) as free:
        endpoint = f"http://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    line = error_line(capsys, main, [str(run.path), "me/flowers"])
    assert line.startswith("hub: received 'me/flowers'; allowed: a name that your token may write to (")
    assert f"({endpoint} cannot be reached: " in line
