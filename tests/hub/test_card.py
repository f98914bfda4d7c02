"""The model card: metadata that the hub reads, numbers of the run, and names that are text and nothing else."""

import re

import pytest
import yaml
from published import NAMES, make

from keras_vit.hub.card import model_card
from keras_vit.hub.text import literal

pytest.importorskip("huggingface_hub")

FILES = [("best.keras", "the model")]


def parts(text):
    """The metadata and the Markdown."""
    empty, block, body = text.split("---\n", 2)
    assert empty == ""
    return yaml.safe_load(block), body


def test_metadata_and_numbers(run):
    metadata, body = parts(model_card(run, "me/flowers", FILES, license="apache-2.0", target="huggingface"))
    index = metadata.pop("model-index")
    assert metadata == {
        "license": "apache-2.0",
        "library_name": "keras",
        "pipeline_tag": "image-classification",
        "tags": ["vision-transformer", "keras-vit", "transformers"],
        "datasets": ["my photos"],
        "metrics": ["accuracy", "balanced_accuracy"],
    }
    assert index[0]["name"] == "flowers"
    (result,) = index[0]["results"]
    assert result["task"] == {"type": "image-classification"}
    assert result["dataset"] == {"name": "my photos", "type": "my photos", "split": "test"}
    assert [(metric["type"], metric["value"]) for metric in result["metrics"]] == [("accuracy", 0.83), ("balanced_accuracy", 0.8)]
    # Wilson's interval of 83 of 100, by the formula.
    low, high = (
        (0.83 + 1.9208 / 100 + sign * 1.96 * (0.83 * 0.17 / 100 + 0.9604 / 1e4) ** 0.5) / (1 + 3.8416 / 100) for sign in (-1, 1)
    )
    assert f"| its 95% confidence interval | {low:.2%} to {high:.2%} |" in body
    assert "| test accuracy | 83.00% |" in body
    assert 'snapshot_download("me/flowers")' in body
    assert 'pipeline("image-classification", "me/flowers")' in body
    assert "100 test images of 4 classes: the numbers of single classes say little" in body.replace("\\", "")
    assert "/home/secret" not in body
    assert parts(model_card(run, "me/flowers", FILES))[0]["license"] == "unknown"


def test_names_of_classes_are_text(run):
    _, body = parts(model_card(run, "me/flowers", FILES))
    prose = re.sub(r"```.*?```", "", body, flags=re.DOTALL)
    for name in NAMES[:3]:
        assert sum(literal(name) in line for line in prose.splitlines()) == 2  # among the classes, and in the table
    assert literal("line\nbreak") == r"line\\nbreak"
    assert not re.search(r"(?<!\\)[<>$]", prose)
    assert not re.search(r"(?<!\\)\]\(", prose)
    shown = {
        "- 1. a": r"\- 1. a",
        "12) a": r"12\) a",
        "WWW.x.y :cat:": r"WWW\.x.y \:cat:",
        "http://x": r"http\://x",
        "it's 5%": "it's 5%",
    }
    assert {text: literal(text) for text in shown} == shown
    rows = [line for line in prose.splitlines() if line.startswith("|") and "70.0" in line]
    assert rows == [r"| \<script\>alert(1)\</script\> | 70.0% |"]


def test_markdown_shows_the_names_as_they_are(run):
    """By a renderer of CommonMark with tables."""
    markdown_it = pytest.importorskip("markdown_it")
    _, body = parts(model_card(run, "me/flowers", FILES))
    html = markdown_it.MarkdownIt("gfm-like", {"linkify": False}).render(body)
    assert "<script" not in html
    assert "<a " not in html
    assert "<td>&lt;script&gt;alert(1)&lt;/script&gt;</td>" in html
    assert "<td>a, |b| `c`</td>" in html
    assert "<td>line\\nbreak</td>" in html


def test_data_sets_and_origins(tmp_path):
    run = make(tmp_path / "a", "both", data="cifar10", finetune={"checkpoint": "timm/vit_base", "method": "lora"})
    run.write_summary(run.summary | {"data": "cifar10"})
    metadata, body = parts(model_card(run, "me/x", FILES))
    assert metadata["datasets"] == ["uoft-cs/cifar10"]
    assert metadata["base_model"] == "timm/vit_base"
    assert "fine-tuned (lora) from timm/vit_base" in body.replace("\\", "")
    run = make(tmp_path / "b", "both", finetune={"checkpoint": "/home/secret/x.npz"})
    metadata, body = parts(model_card(run, "me/x", FILES))
    assert "base_model" not in metadata
    assert "secret" not in body
    (tmp_path / "b" / "summary.json").unlink()
    with pytest.raises(ValueError, match=r"which has no summary.json; allowed: a run that has ended"):
        model_card(run, "me/x", FILES)


def test_how_true_probabilities_are(run, tmp_path):
    errors, body = {"test_calibration_error": 0.012, "test_calibration_error_before": 0.056}, {}
    for name, more in (("unknown", {}), ("own", errors), ("scaled", {"temperature": 1.314, **errors})):
        other = make(tmp_path / name, "both")
        other.write_summary({**other.summary, **more})
        body[name] = parts(model_card(other, "me/x", FILES))[1].replace("\\", "")
    assert "Probabilities are the model's own; how often they are right is not stated here." in body["unknown"]
    assert "Probabilities are the model's own; their expected calibration error on the test images is 1.20%." in body["own"]
    assert "calibrated by temperature 1.31, fitted to validation images, which divides the logits" in body["scaled"]
    assert "Expected calibration error on the test images 1.20%, without it 5.60%." in body["scaled"]


def test_several_labels_and_no_test_images(tmp_path):
    run = make(tmp_path / "a", "both", labels="multi", train={"monitor": "map", "loss": "binary_cross_entropy"})
    summary = {name: value for name, value in run.summary.items() if not name.startswith("test_")}
    run.write_summary(summary | {"images": {"train": 80}})
    metadata, body = parts(model_card(run, "me/x", FILES))
    assert "model-index" not in metadata
    assert "No test images" in body
    classes = {name: {"average_precision": 0.5, "recall": 0.1, "f1": 0.1} for name in NAMES}
    run.write_summary(summary | {"multi_label": True, "test_map": 0.5, "test_f1": 0.25, "test_classes": classes})
    metadata, body = parts(model_card(run, "me/x", FILES))
    metrics = metadata["model-index"][0]["results"][0]["metrics"]
    assert [(metric["type"], metric["value"]) for metric in metrics] == [("mean_average_precision", 0.5), ("f1", 0.25)]
    assert "| class | average precision |" in body
    assert "any number an image" in body
