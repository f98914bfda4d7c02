"""The report of a run: one page with what was trained on what, how good it is, where it is wrong, and how to repeat it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from keras_vit.data.labels import is_multi
from keras_vit.explain.attention import attention_rollout
from keras_vit.files import write_text
from keras_vit.model.vit import ViT
from keras_vit.report.mistakes import worst_mistakes
from keras_vit.report.page import TALL, cell, duration, one_line, render
from keras_vit.report.pictures import check_maps, color_scale, figure_picture, over, small_picture, source_of
from keras_vit.report.settings import compared_settings, named_recipe, repeat_command, text_of
from keras_vit.runs.calibration import BINS
from keras_vit.runs.class_plots import average_precision_figure
from keras_vit.runs.evaluation import Outputs, compute_outputs
from keras_vit.runs.folder import REPORT, RunFolder
from keras_vit.runs.plots import COLORS, confusion_figure, curve_figures, reliability_figure
from keras_vit.runs.prediction import model_input
from keras_vit.runs.scores import wilson_interval

Attention = Callable[[ViT, np.ndarray], np.ndarray]

MISTAKES = 18  # in the gallery
METHOD = (
    "95% confidence interval by Wilson's score method, n = {n:,} test images. "
    "It covers the choice of the test images, not that of the seed."
)
CURVES = [
    {"name": "validation", "color": COLORS[0], "dashed": False},
    {"name": "training, as augmented", "color": COLORS[0], "dashed": True},
]


def write_run_report(run: RunFolder, outputs: Outputs | None = None, *, attention: Attention = attention_rollout) -> Path:
    """Writes RUN/report.html with everything that is known of a run; what is missing is said in a sentence.

    Args:
        run: The `RunFolder`, finished or not.
        outputs: The `Outputs` of the run's best model for its own test images; None = they are computed here.
        attention: What the model attends to: model, normalised float32 images (B, H, W, C) -> float32 (B, rows, columns) on the
            grid of patches.

    Returns:
        The path of the page.

    Raises:
        ValueError: If the run's recipe cannot be read.
    """
    path = run.path / REPORT
    write_text(path, render("run.html", source="keras-vit evaluate", **content(run, outputs, attention)))
    return path


def content(run, outputs, attention):
    """The variables of run.html."""
    recipe, missing = run.recipe, []
    summary = known(lambda: run.summary, {}, missing, "the summary") if run.is_finished else {}
    rows = known(lambda: run.metrics, [], missing, "the curves")
    if not run.is_finished:
        epochs = f"{len(rows)} of {recipe.train.total_epochs} epochs are done" if rows else "no epoch is done yet"
        missing.append(f"The run has not finished: {epochs}. Machine, versions and times are known once it has.")
    if outputs is None and (not summary or has_test_images(summary)):
        outputs = known(lambda: compute_outputs(run), None, missing, "predictions on the test images")
    if outputs is None and summary and not has_test_images(summary):
        missing.append("The data set has no test images in this run.")
    if outputs is not None and summary and outputs.fingerprint != summary["fingerprint"]:
        changed = f"{outputs.data} has changed since the training (its files, or their decoder)"
        missing.append(f"{changed}: the test images may include training images.")
    scores = known(outputs.score, None, missing, "scores") if outputs else None
    return {
        "title": run.path.resolve().name,
        "what": what(recipe, summary, outputs),
        "missing": missing,
        "tiles": tiles(summary, rows, scores),
        "interval": METHOD.format(n=count_of(summary, scores)) if count_of(summary, scores) else "",
        "repeat": repeat_command(run, summary.get("backend")),
        "curves": [figure_picture(figure, title) for title, figure in curve_figures({"run": rows}).items()] if rows else [],
        "curve_legend": CURVES,
        "numbers": numbers(summary, scores),
        "pictures": pictures(scores),
        "mistakes": mistakes(outputs, recipe, attention, missing) if scores else None,
        "classes": classes(summary, scores),
        "times": times(summary, rows, recipe),
        **settings(recipe, summary),
        "machine": machine_rows(run, recipe, summary),
    }


def known(make, default, missing, what):
    """What `make` returns; if it cannot be had, the default, and a sentence in `missing` says why."""
    try:
        return make()
    except (ValueError, OSError) as error:
        missing.append(f"Missing here: {what} ({one_line(error)}).")
        return default


def has_test_images(summary):
    return any(name.startswith("test_") for name in summary)


def count_of(summary, scores):
    """Number of test images; None where it is not known."""
    return scores.images if scores else summary.get("images", {}).get("test")


def share_of(summary, scores):
    """(name, share of images that are right, number of images): what has a confidence interval; None where it is not known."""
    count = count_of(summary, scores)
    if scores is not None:
        name, value = ("exactly the right classes", scores.exact) if scores.multi_label else ("test accuracy", scores.accuracy)
    else:
        name, value = "test accuracy", summary.get("test_accuracy")
    return None if value is None or not count else (name, value, count)


def interval_text(share, count):
    low, high = wilson_interval(share, count)
    return f"{low:.2%} to {high:.2%}"


def what(recipe, summary, outputs):
    """What was trained on what, in two sentences."""
    model = recipe.model
    size, patch = (" × ".join(map(str, getattr(model, name))) for name in ("image_size", "patch_size"))
    blocks = f"{model.depth} block{'s' * (model.depth > 1)} of {model.num_heads} head{'s' * (model.num_heads > 1)}"
    shape = f"images of {size} pixels, patches of {patch}, width {model.width}, {blocks}"
    cost = f"{summary['parameters']:,} parameters, {summary['flops'] / 1e6:,.1f} million FLOPs an image" if summary else ""
    origin = f"Fine-tuned ({recipe.finetune.method}) from {recipe.finetune.checkpoint}" if recipe.finetune.checkpoint else "Trained"
    origin = f"Pre-trained ({recipe.pretrain.method}), without labels," if recipe.pretrain else origin
    if recipe.distill.teacher:
        share = summary.get("teacher_val_accuracy")
        known = "" if share is None else f" ({share:.2%} of the validation images right)"
        origin += f" with a teacher, {recipe.distill.teacher}{known},"
    images = ", ".join(f"{count:,} {name}" for name, count in summary.get("images", {}).items())
    names = summary.get("class_names") or (outputs.class_names if outputs else [])
    parts = [f"{images} images" if images else "", f"{len(names):,} classes" if names else ""]
    data = ": ".join(filter(None, (summary.get("data", recipe.data), ", ".join(filter(None, parts)))))
    several = ", any number an image" if recipe.labels == "multi" else ""
    return [f"A Vision Transformer: {'; '.join(filter(None, (shape, cost)))}.", f"{origin} on {data}{several}."]


def tiles(summary, rows, scores):
    """The numbers to see first, {name: text}."""
    found = {}
    if (precision := scores.map if scores and scores.multi_label else summary.get("test_map")) is not None:
        found["test mAP"] = f"{precision:.2%}"
    if share := share_of(summary, scores):
        name, value, count = share
        found[name] = f"{value:.2%}"
        found["95% interval"] = interval_text(value, count)
        found["test images"] = f"{count:,}"
    elif "test_accuracy" in summary:
        found["test accuracy"] = f"{summary['test_accuracy']:.2%}"
    for metric, name in (("val_accuracy", "best validation accuracy"), ("val_map", "best validation mAP")):
        if values := [row[metric] for row in rows if metric in row]:
            found[name] = f"{max(values):.2%}"
    if rows:
        found["epochs"] = f"{len(rows):,}"
        found["training time"] = duration(rows[-1]["seconds"])
        found.update(("training images per second", f"{rate:,.0f}") for rate in rates_of(rows))
    if summary:
        found["parameters"] = f"{summary['parameters']:,}"
    return found


def rates_of(rows):
    """Median of the epochs' training images a second, in a list; empty where no row has it."""
    known = [row["images_per_second"] for row in rows if "images_per_second" in row]
    return [float(np.median(known))] if known else []


def numbers(summary, scores):
    """(name, value, meaning) of the scores on the test images."""
    if scores is None:
        names = {
            "test_accuracy": "accuracy",
            "test_balanced_accuracy": "balanced accuracy",
            "test_map": "mAP",
            "test_f1": "mean F1",
        }
        found = [
            (words, f"{summary[name]:.2%}", "as the training has read them") for name, words in names.items() if name in summary
        ]
    elif scores.multi_label:
        interval = interval_text(scores.exact, scores.images)
        found = [
            ("mean average precision (mAP)", share(scores.map), "mean over the classes"),
            ("mean F1", share(scores.mean_f1), "mean over the classes, at probability 0.5"),
            ("exactly the right classes", share(scores.exact), f"share of images; 95% interval {interval}"),
            ("binary cross-entropy", f"{scores.loss:.4f} nats", "mean over images and classes"),
            ("expected calibration error", share(scores.calibration.error), f"of each class of each image, {BINS} bins"),
            *temperature_row(scores),
        ]
    else:
        interval = interval_text(scores.accuracy, scores.images)
        found = [
            ("accuracy", share(scores.accuracy), f"95% interval {interval}"),
            ("balanced accuracy", share(scores.balanced_accuracy), "mean of the classes' recalls"),
            (f"top-{scores.top_k} accuracy", share(scores.top_k_accuracy), f"true class among the {scores.top_k} likeliest"),
            ("cross-entropy", f"{scores.loss:.4f} nats", "mean over the images"),
            ("expected calibration error", share(scores.calibration.error), f"mean |accuracy − confidence| in {BINS} bins"),
            *temperature_row(scores),
        ]
    if scores is not None and scores.augmented:
        better, meaning = scores.augmented, f"mean of the logits over views of each image ({scores.views})"
        name, value = ("mAP", better.map) if better.multi_label else ("accuracy", better.accuracy)
        found.append((f"{name} with test-time augmentation", share(value), meaning))
    return [[cell(text) for text in row] for row in found]


def temperature_row(scores):
    """A row on the temperature; none where probabilities are the model's own."""
    if scores.temperature == 1:
        return []
    meaning = f"of the validation images; calibrates all probabilities here: without it the error is {scores.error_before:.2%}"
    return [("temperature", f"{scores.temperature:.3g}", meaning)]


def share(value):
    return "–" if value is None else f"{value:.2%}"


def pictures(scores):
    """Pictures of the predictions on the test images."""
    if scores is None:
        return []
    if scores.multi_label:
        figure = average_precision_figure(scores.average_precision, scores.class_names)
        return [figure_picture(figure, "Average precision of each class", wide=True)]
    error = f"Expected calibration error {scores.calibration.error:.2%}."
    meaning = "Rows are true classes, columns predicted ones; the colour is the share of the true class."
    return [
        figure_picture(confusion_figure(scores.confusion, scores.class_names), "Confusion matrix", meaning, wide=True),
        figure_picture(
            reliability_figure(scores.calibration), "Calibration", f"{error} Below the dashed line the model is too sure."
        ),
    ]


def mistakes(outputs, recipe, attention, missing):
    """The gallery of the surest mistakes: cards, how many mistakes there are, and what their pictures show."""
    wrong = (
        ((outputs.logits > 0) != (outputs.labels == 1)).any(axis=1)
        if is_multi(outputs.labels)
        else outputs.logits.argmax(axis=1) != outputs.labels
    )
    found = worst_mistakes(outputs.logits, outputs.labels, MISTAKES, outputs.temperature)
    result = {"count": int(wrong.sum()), "images": len(wrong), "multi_label": is_multi(outputs.labels), "cards": [], "scale": ""}
    result["calibrated"] = outputs.temperature != 1
    if not found:
        return result
    images = known(lambda: outputs.images.images(np.array([each.index for each in found])), None, missing, "pictures of mistakes")
    if images is None:
        return result
    maps = attention_maps(outputs.model, images, recipe, attention, missing)
    result["scale"] = color_scale() if maps is not None else ""
    names = outputs.class_names
    for place, mistake in enumerate(found):
        picture = small_picture(images[place])
        result["cards"].append(
            {
                "number": mistake.index,
                "true": [(names[label], probability) for label, probability in mistake.true],
                "predicted": [(names[label], probability) for label, probability in mistake.predicted],
                "worst": names[mistake.worst],
                "confidence": mistake.confidence,
                "picture": source_of(picture),
                "attention": source_of(over(picture, maps[place])) if maps is not None else "",
            }
        )
    return result


def attention_maps(model, images, recipe, attention, missing):
    """Maps (B, rows, columns); None, with a sentence in `missing`, where the model has none."""
    try:
        maps = attention(model, model_input(model, images, recipe.mean, recipe.std))
        return check_maps(maps, len(images), model.config.grid_size)
    except Exception as error:  # a picture that cannot be made must not cost the page
        missing.append(f"Missing here: maps of the attention ({one_line(error)}).")
        return None


def classes(summary, scores):
    """The table of the classes, {"names", "rows"}; None where nothing is known of them."""
    columns = {"precision": "precision (%)", "recall": "recall (%)", "f1": "F1 (%)", "count": "test images"}
    columns = {"average_precision": "average precision (%)", **columns}
    if scores is not None:
        rows = scores.to_dict()["classes"]
    else:
        rows = [{"name": name, **values} for name, values in summary.get("test_classes", {}).items()]
    columns = {name: words for name, words in columns.items() if any(name in row for row in rows)}
    table = [[cell(row["name"]), *(class_cell(name, row.get(name)) for name in columns)] for row in rows]
    return {"names": ["class", *columns.values()], "rows": table, "tall": len(rows) > TALL} if rows else None


def class_cell(name, value):
    if value is None:
        return cell("–")
    return cell(f"{value:,}" if name == "count" else f"{100 * value:.1f}", value)


def times(summary, rows, recipe):
    """(name, value) of times, rates and memory."""
    found = []
    if rows:
        epochs = [row["epoch_seconds"] for row in rows if "epoch_seconds" in row]
        found.append(("training, validation included", duration(rows[-1]["seconds"])))
        found += [("median epoch", duration(float(np.median(epochs))))] if epochs else []
        found += [("training images per second, median epoch", f"{rate:,.0f}") for rate in rates_of(rows)]
    if summary:
        if summary.get("process_seconds") is not None:
            found.append(("whole process, start and compilation included", duration(summary["process_seconds"])))
        if summary.get("peak_memory_mb"):
            found.append(("largest memory of the process", f"{summary['peak_memory_mb']:,.0f} MB"))
        found.append(("FLOPs of one image", f"{summary['flops']:,}"))
    return [[cell(name), cell(value)] for name, value in found]


def settings(recipe, summary):
    """All settings, those that differ from the named recipe marked."""
    name = named_recipe(recipe, summary.get("command", ""))
    rows = compared_settings(recipe, name)
    table = [
        [
            cell(row["name"]),
            cell(text_of(row["value"]), marked=row["differs"]),
            cell("" if row["value"] == row["named"] else text_of(row["named"])),
        ]
        for row in rows
    ]
    changed = [row["name"] for row in rows if row["differs"]]
    return {
        "settings": table,
        "settings_names": ["setting", "this run", f"recipe {name}, where it differs"],
        "changed": changed,
        "recipe": name,
    }


def machine_rows(run, recipe, summary):
    """(name, value) of machine, software and data."""
    found = {}
    if summary:
        found = {
            "device": summary.get("device"),
            "devices": summary.get("devices"),
            "backend": summary.get("backend"),
            "precision": summary.get("precision"),
            "versions": ", ".join(f"{name} {version}" for name, version in summary.get("versions", {}).items()),
            "commit of keras_vit": summary.get("commit") or "not known",
            "data": summary.get("data"),
            "about the data": "; ".join(summary.get("data_notes", [])) or None,
            "fingerprint of the data": summary.get("fingerprint"),
            "date": summary.get("date"),
            "started by": summary.get("command"),
        }
        if summary.get("callbacks"):
            found["callbacks of your own"] = ", ".join(summary["callbacks"])
    found |= {"seed": recipe.seed, "folder": str(run.path.resolve())}
    return [[cell(name), cell(str(value))] for name, value in found.items() if value is not None]
