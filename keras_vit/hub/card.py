"""The model card of a run, in the form of the Hugging Face hub: a block of YAML, then Markdown.

Source: https://huggingface.co/docs/hub/model-cards and 'Model cards for model reporting' (arXiv 1810.03993).
"""

import importlib.resources
import json
import re
import typing

from keras_vit.hub.text import literal
from keras_vit.report.page import duration
from keras_vit.report.settings import named_recipe
from keras_vit.runs.folder import RunFolder
from keras_vit.runs.scores import wilson_interval

UNKNOWN = "unknown"  # the hub's word for a licence that nobody has stated
WEAKEST = 20  # classes in the table
FEW = 30  # test images of a class below which its number says little
DATASETS = {"cifar10": "uoft-cs/cifar10", "cifar100": "uoft-cs/cifar100", "mnist": "ylecun/mnist"}  # their names on the hub
HUB_NAME = re.compile(r"[\w][\w.-]*/[\w.-]+")
PREDICT = """\
import keras_vit  # of keras-vision-transformer
from huggingface_hub import snapshot_download

run = keras_vit.RunFolder(snapshot_download({repo}))
for each in run.predict(["photo.jpg"]):
    print(each.classes, each.probabilities)
model = run.model()  # a keras.Model: normalised images -> logits"""
OTHERS = {
    "timm": "import timm\n\nmodel = timm.create_model({hub}, pretrained=True)",
    "huggingface": 'from transformers import pipeline\n\nprint(pipeline("image-classification", {repo})("photo.jpg"))',
}


def model_card(
    run: RunFolder,
    repo: str,
    files: list[tuple[str, str]],
    *,
    license: str = UNKNOWN,
    target: str | None = None,
    notes: list[str] = (),
) -> str:
    """The text of README.md.

    Args:
        run: A run that has ended.
        repo: "user/name" on the hub, which the code of the card names.
        files: (name, what it is) of what is published.
        license: Such as apache-2.0, as the hub writes it.
        target: The library whose names the weights have, "timm" or "huggingface"; None = there is only the `.keras` file.
        notes: Lines about the files.

    Raises:
        ValueError: If the run has not ended, or is damaged.
    """
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    recipe, summary = run.recipe, run.summary
    name, model = repo.rpartition("/")[2], recipe.model
    data, count = dataset_of(recipe, summary), summary.get("images", {}).get("test")
    results = []
    for metric, title, value in metrics_of(summary):
        known = {"dataset_type": data, "dataset_name": data, "dataset_split": "test", "metric_name": title}
        results.append(EvalResult(task_type="image-classification", metric_type=metric, metric_value=round(value, 6), **known))
    card_data = ModelCardData(
        license=license,
        library_name="keras",
        pipeline_tag="image-classification",
        tags=["vision-transformer", "keras-vit", *([] if target is None else ["timm" if target == "timm" else "transformers"])],
        datasets=[data],
        metrics=[result.metric_type for result in results] or None,
        eval_results=results or None,
        model_name=name,
        base_model=base_of(recipe),
    )
    code = PREDICT if target is None else f"{PREDICT}\n\n# or\n{OTHERS[target]}"
    weakest, measure = weakest_of(summary)
    plain = {
        "name": name,
        "task": "images that may have any number of classes" if recipe.labels == "multi" else "image classification",
        "size": " x ".join(map(str, (*model.image_size, model.channels))),
        "patch": " x ".join(map(str, model.patch_size)),
        "width": model.width,
        "depth": model.depth,
        "heads": model.num_heads,
        "parameters": f"{summary['parameters']:,}",
        "flops": f"{summary['flops'] / 1e6:,.1f}",
        "notes": notes,
        "numbers": numbers(summary, count),
        "method": method(summary, count),
        "weakest": weakest,
        "weakest_title": weakest_title(summary),
        "measure": measure,
        "data": data_lines(recipe, summary),
        "training": training_lines(recipe, summary),
        "limits": limits(recipe, summary, count),
        "licence": f"{license}." if license != UNKNOWN else "Not stated. Without one, nobody but its author may use this model.",
    }
    safe = {key: escaped(value) for key, value in plain.items()}
    safe["code"] = code.format(repo=json.dumps(repo), hub=json.dumps(f"hf-hub:{repo}"))
    safe["files"] = [(file, literal(what)) for file, what in files]
    template = importlib.resources.files("keras_vit.hub").joinpath("templates/card.md").read_text(encoding="utf-8")
    return str(ModelCard.from_template(card_data, template_str=template, **safe)).rstrip() + "\n"


def escaped(value: typing.Any) -> typing.Any:
    """Every text in lists and tuples as `literal`."""
    if isinstance(value, (list, tuple)):
        return [escaped(part) for part in value]
    return literal(value)


def dataset_of(recipe, summary):
    """The data set's name on the hub where it has one there, else as the run says it; of a folder only the last name."""
    source, _, path = recipe.data.partition(":")
    if path:
        return re.split(r"[/\\]", path.rstrip("/\\"))[-1] or source
    return DATASETS.get(summary.get("data", recipe.data), summary.get("data", recipe.data))


def base_of(recipe):
    """The checkpoint on the hub that the weights come from; None for one of a disk."""
    checkpoint = recipe.finetune.checkpoint.removeprefix("hf-hub:")
    return checkpoint if HUB_NAME.fullmatch(checkpoint) else None


def metrics_of(summary):
    """(the hub's word, title, value) of each measure on the test images."""
    names = (
        ("accuracy", "test accuracy", "test_accuracy"),
        ("balanced_accuracy", "balanced test accuracy", "test_balanced_accuracy"),
        ("mean_average_precision", "test mAP", "test_map"),
        ("f1", "mean F1 of the classes", "test_f1"),
    )
    return [(metric, title, summary[key]) for metric, title, key in names if summary.get(key) is not None]


def numbers(summary, count):
    found = [(title, f"{value:.2%}") for _, title, value in metrics_of(summary)]
    if "test_accuracy" in summary and count:
        low, high = wilson_interval(summary["test_accuracy"], count)
        found.insert(1, ("its 95% confidence interval", f"{low:.2%} to {high:.2%}"))
    if summary.get("test_loss") is not None:
        found.append(("test loss", f"{summary['test_loss']:.4f}"))
    if count:
        found.append(("test images", f"{count:,}"))
    return found


def method(summary, count):
    if not metrics_of(summary):
        return "No test images: nothing is known of images that the model has not been chosen by."
    text = "The test images were read once, at the end; choices were made on validation images."
    return f"{text} The interval is Wilson's." if "test_accuracy" in summary and count else text


def weakest_of(summary):
    """(name, value) of the classes with the lowest recall or average precision, and which of the two."""
    classes = summary.get("test_classes") or {}
    measure = "average_precision" if summary.get("multi_label") else "recall"
    known = [(name, values[measure]) for name, values in classes.items() if values.get(measure) is not None]
    known.sort(key=lambda pair: pair[1])
    return [(name, f"{value:.1%}") for name, value in known[:WEAKEST]], measure.replace("_", " ")


def weakest_title(summary):
    count = len(summary.get("test_classes") or {})
    return "By class, the weakest first:" if count <= WEAKEST else f"The weakest {WEAKEST} of {count:,} classes:"


def data_lines(recipe, summary):
    images = ", ".join(f"{count:,} {name}" for name, count in summary.get("images", {}).items())
    names = summary.get("class_names") or []
    shown = ", ".join(map(str, names[:WEAKEST])) + (", ..." if len(names) > WEAKEST else "")
    lines = [f"{dataset_of(recipe, summary)}{f': {images} images' if images else ''}"]
    if names:
        lines.append(f"{len(names):,} classes{', any number an image' if recipe.labels == 'multi' else ''}: {shown}")
    if summary.get("fingerprint"):
        lines.append(f"fingerprint {summary['fingerprint']}")
    return lines


def training_lines(recipe, summary):
    start = f"fine-tuned ({recipe.finetune.method}) from {base_of(recipe) or 'a checkpoint'}" if recipe.finetune.checkpoint else ""
    seconds = summary.get("process_seconds")
    lines = [
        f"recipe {named_recipe(recipe, summary.get('command', ''))}{f', {start}' if start else ', from random weights'}",
        f"{summary['epochs']:,} epochs, the model of epoch {summary['best_epoch']:,} (the best validation {summary['monitor']})",
        f"optimizer {recipe.train.optimizer}, batches of {recipe.train.batch_size}, seed {summary['seed']}, {summary['precision']}",
        f"{summary['device']}, {summary['backend']}{f', {duration(seconds)}' if seconds else ''}",
    ]
    versions = ", ".join(f"{name} {version}" for name, version in summary.get("versions", {}).items())
    return lines + ([versions] if versions else [])


def probabilities(summary):
    """How true the probabilities are, in a sentence."""
    error, before = summary.get("test_calibration_error"), summary.get("test_calibration_error_before")
    if error is None:
        return "Probabilities are the model's own; how often they are right is not stated here."
    if not summary.get("temperature"):
        return f"Probabilities are the model's own; their expected calibration error on the test images is {error:.2%}."
    scaled = f"calibrated by temperature {summary['temperature']:.3g}, fitted to validation images, which divides the logits"
    return f"Probabilities are {scaled}. Expected calibration error on the test images {error:.2%}, without it {before:.2%}."


def limits(recipe, summary, count):
    """What the numbers do not say; only what follows from the run."""
    lines = [
        "The numbers hold for images like those of the test set: of the same source, and of the same classes in the same shares.",
        "An image of none of the classes gets one of them all the same."
        if recipe.labels != "multi"
        else "A class that training did not know is never found.",
        "One training with one seed: another seed gives other numbers.",
        probabilities(summary),
        "Not examined: pictures that are damaged, made to deceive, or of groups of people that the data has few of.",
    ]
    classes = len(summary.get("class_names") or [])
    if count and classes and count / classes < FEW:
        lines.insert(1, f"{count:,} test images of {classes:,} classes: the numbers of single classes say little.")
    return lines
