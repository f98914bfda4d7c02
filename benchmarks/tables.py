"""Writes the measured tables of README.md, benchmarks/ and docs/ from the records in benchmarks/results/.

    python benchmarks/tables.py            # write
    python benchmarks/tables.py --check    # exit code 1 if a table differs from its record

A table stands between `<!-- table: NAME -->` and `<!-- end -->`. NAME is a function of `TABLES`, or a record whose table it is.
"""

import functools
import json
import math
import re
import statistics
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGES = ("README.md", "benchmarks/*.md", "docs/**/*.md")
MARKED = re.compile(r"(?<=<!-- table: )(?P<name>[\w-]+)( -->\n).*?(?=<!-- end -->)", re.DOTALL)
WORDS = {
    "torch": "PyTorch",
    "tensorflow": "TensorFlow",
    "jax": "JAX",
    "litert": "LiteRT",
    "onnx": "ONNX Runtime",
    "openvino": "OpenVINO",
}
DATA = {"cifar10": "CIFAR-10", "mnist": "MNIST", "digits": "digits"}
RECIPES = ("quick", "standard", "best", "digits", "mnist", "mnist-conv", "photos-scratch")  # in the order of README's table
MEASURES = {  # of a row of `throughput.py`: title and how it is written
    "rate": ("images/s", "{:,.1f}"),
    "ratio": ("of timm", "{:.2f}"),
    "utilisation": ("of the peak", "{:.0%}"),
    "first_step": ("first step", "{:.1f} s"),
    "memory_mb": ("peak memory", "{:.1f} GB"),
    "latency": ("one image", "{:.1f} ms"),
}
# Title, record and measure of each column.
SIDE_BY_SIDE = {
    "speed": (
        ("AMD: training", "train-32-amd", "ratio"),
        ("first step", "train-32-amd", "first_step"),
        ("inference", "infer-32-amd", "ratio"),
        ("one image", "infer-1-amd", "ratio"),
        ("Intel: training", "train-32-intel", "ratio"),
        ("inference", "infer-32-intel", "ratio"),
    ),
    **{
        f"train-{size}": tuple(
            (
                f"{machine}: {MEASURES[measure][0]}" if measure == "rate" else MEASURES[measure][0],
                f"train-{size}-{machine.lower()}",
                measure,
            )
            for machine in ("AMD", "Intel")
            for measure in ("rate", "ratio", "utilisation", "first_step", "memory_mb")
        )
        for size in (32, 224)
    },
    "infer-32": (
        ("AMD: images/s", "infer-32-amd", "rate"),
        ("of timm", "infer-32-amd", "ratio"),
        ("of the peak", "infer-32-amd", "utilisation"),
        ("one image", "infer-1-amd", "latency"),
        ("of timm", "infer-1-amd", "ratio"),
        ("Intel: images/s", "infer-32-intel", "rate"),
        ("of timm", "infer-32-intel", "ratio"),
        ("of the peak", "infer-32-intel", "utilisation"),
    ),
}


def record(name):
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def label(contender):
    """The name of a contender in a table; this project's own is bold."""
    first, *rest = contender.split(", ")
    if first == "export":
        return ", ".join([WORDS[rest[0]] if rest[0] != "torch" else "torch", *rest[1:]])
    if not rest:
        return "timm, eager" if first == "timm" else first
    text = ", ".join([first.replace(" merging", "").replace(" remat", ""), *(WORDS.get(word, word) for word in rest)])
    text += ", merging" if "merging" in first else ", remat" if "remat" in first else ""
    return f"**{text}**" if first == "keras_vit" else text


def written(row, measure):
    """One measure of a row as text; empty where it was not measured."""
    if measure == "latency":
        return MEASURES[measure][1].format(1000 / row["rate"]) if "rate" in row else ""
    if measure not in row:
        return ""
    text = MEASURES[measure][1].format(row[measure] / 1000 if measure == "memory_mb" else row[measure])
    return f"**{text}**" if measure == "ratio" and row["name"].startswith("keras_vit,") else text


def table(columns, rows):
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join("|" + "".join(f" {cell} |" if cell != "" else " |" for cell in cells) + "\n" for cells in lines)


def of_record(name):
    """The table of a record: of `throughput.py` every measure that its rows have, else its columns as they are."""
    data = record(name)
    if "columns" in data:
        return table(data["columns"], data["rows"])
    (result,) = data["results"]
    measures = [measure for measure in MEASURES if any(measure in row for row in result["rows"])]
    rows = [[label(row["name"]), *(written(row, measure) for measure in measures)] for row in result["rows"]]
    return table(["", *(MEASURES[measure][0] for measure in measures)], rows)


def training():
    """Test accuracies of the recipes: those of records of `levers.py`, a row for all seeds of one, then older ones."""
    groups = []
    records = (record(path.stem) for path in sorted(RESULTS.glob("levers-*.json")))
    for found in sorted(records, key=lambda found: RECIPES.index(found["recipe"])):
        known = {"recipe": found["recipe"], "data": DATA.get(found["data"], found["data"])}
        groups.append([{**run, **known, "seconds": round(run["seconds"])} for run in found["runs"] if run["lever"] == "as it is"])
    rows = []
    for group in [*groups, *([row] for row in record("training")["rows"])]:
        accuracies, seconds, row = [run["test_accuracy"] for run in group], sorted(run["seconds"] for run in group), group[0]
        several = len(group) > 1
        rows.append(
            (
                f"`{row['recipe']}`",
                row["data"],
                WORDS.get(row["backend"], row["backend"]),
                row["device"].split()[0].removesuffix("(R)"),
                f"{row['seed']} to {group[-1]['seed']}" if several else row["seed"],
                f"{statistics.mean(accuracies):.2%}" + (f" ± {100 * statistics.stdev(accuracies):.2f}" if several else ""),
                f"{row['parameters']:,}",
                f"{seconds[0]:,}" + (f" to {seconds[-1]:,}" if several else ""),
                f"{statistics.median(run['images_per_second'] for run in group):,.0f}",
            )
        )
    columns = ["recipe", "data", "backend", "machine", "seeds", "test accuracy", "parameters", "seconds", "images/s"]
    return table(columns, rows)


def side_by_side(name):
    """A table whose columns come from several records, a row for every contender of any of them."""
    columns = SIDE_BY_SIDE[name]
    rows = {source: {row["name"]: row for row in record(source)["results"][0]["rows"]} for _, source, _ in columns}
    names = [*dict.fromkeys(name for by_name in rows.values() for name in by_name)]
    if name == "speed":  # the project's own, the exports that are fastest, and the other Keras
        names = [name for name in names if name.startswith(("keras", "export, openvino")) and "merging" not in name]
    cells = [[written(rows[source].get(name, {"name": name}), measure) for _, source, measure in columns] for name in names]
    return table(["", *(title for title, _, _ in columns)], [[label(name), *row] for name, row in zip(names, cells, strict=True)])


def pipeline():
    """What the input pipeline delivers beside what the model consumes."""
    rates = record("pipeline")["images_per_second"]
    rows = [[name, f"{rate:,.0f}", f"{rate / rates['training']:.1f}"] for name, rate in rates.items()]
    return table(["", "images/s", "of training"], rows)


def search():
    """The whole trainings after which a method holds what random search holds at the end."""
    data = record("search")
    rows = [["random search", *[data["trials"]] * 3, f"{statistics.median(data['final']['random']):.2%}"]]
    for method, costs in data["needed"].items():
        costs, ninth = sorted(costs), math.ceil(0.9 * len(costs)) - 1
        numbers = (f"{cost:.1f}" for cost in (statistics.median(costs), costs[ninth], costs[-1]))
        rows.append([method, *numbers, f"{statistics.median(data['final'][method]):.2%}"])
    return table(["", "median", "nine of ten searches", "worst", "accuracy at the end"], rows)


def depth():
    """Images/s, ratio to timm, first step and peak memory by depth, with and without gradient checkpointing."""
    results = record("depth-intel")["results"]
    names = [row["name"] for row in results[0]["rows"]]
    rows = []
    for result in results:
        by_name = {row["name"]: row for row in result["rows"]}
        cells = (
            f"{row['rate']:.0f}, {row['ratio']:.2f}, {row['first_step']:.1f} s, {row['memory_mb'] / 1000:.1f} GB"
            for row in (by_name[name] for name in names)
        )
        rows.append([result["depth"], *cells])
    titles = [label(name).strip("*").removeprefix("keras_vit, ") for name in names]
    return table(["depth", *titles], rows)


def devices():
    """How far the numbers on many devices are from those on one."""
    rows = [
        (WORDS[row["backend"]], row["distribute"], row["devices"], row["processes"], f"{row['loss']:.1e}", f"{row['val_loss']:.1e}")
        for row in record("devices")["rows"]
        if row["distribute"] != "none"
    ]
    return table(["", "`distribute`", "devices", "processes", "training loss", "validation loss"], rows)


def devices_speed():
    """Images/s of one process, of two apart and of two together; a process has one core."""
    rates = {}
    for row in record("devices-speed")["rows"]:
        rates.setdefault(row["backend"], {})[row["run"]] = row
    columns = ["", "one process", "two apart", "two together", "share of communication"]
    rows = []
    for backend, found in rates.items():
        share = f"{found['two together']['communication']:.0%}"
        rows.append([WORDS[backend], *(f"{row['images_per_second']:,.0f}" for row in found.values()), share])
    return table(columns, rows)


def faults():
    """How faults of each kind ended."""
    ends = ("tried", "survived", "refused", "neither", "lost")
    rows = [[row["fault"], *(f"{row[end]:,}" for end in ends)] for row in record("faults")["rows"]]
    return table(["fault", *ends], rows)


def fuzz():
    """What became of the inputs of each loader."""
    ends, memory = ("tried", "loaded", "refused", "findings"), {"memory at the start": "start_mb", "at most": "peak_mb"}
    rows = [
        [row["reads"], *(f"{row[end]:,}" for end in ends), *(f"{row[key]:,.0f} MB" for key in memory.values())]
        for row in record("fuzz")["rows"]
    ]
    return table(["", *ends, *memory], rows)


def serving():
    """What is left of a model's rate behind HTTP, and how long requests take."""
    rows = [
        (
            ", ".join(WORDS.get(word, word.capitalize()) for word in row["platform"].split("_")),
            row["images_a_request"],
            row["clients"],
            f"{row['rate']:,.0f}",
            f"{row['rate'] / row['own_rate']:.0%}",
            f"{row['p50_ms']:.1f} ms",
            f"{row['p99_ms']:.1f} ms",
            row["errors"],
        )
        for row in record("serving")["rows"]
    ]
    return table(["", "images a request", "clients", "images/s", "of the own rate", "p50", "p99", "errors"], rows)


def faithfulness(name="faithfulness"):
    """Deletion and insertion of each method beside random orders of the patches."""
    rows, others = [], "quantus" in record(name)["rows"][0]
    for row in record(name)["rows"]:
        gains = {curve: (sign * row[curve], row[f"{curve}_95"]) for curve, sign in (("deletion", -1), ("insertion", 1))}
        cells = [f"{100 * gain:+.1f} ± {100 * width:.1f}" for gain, width in gains.values()]
        better = ["yes" if gain > width else "no" for gain, width in gains.values()]
        verdict = better[0] if better[0] == better[1] else f"deletion {better[0]}, insertion {better[1]}"
        more = [f"{row['quantus']:.2f}"] if others else []
        rows.append([f"{row['method']}", *cells, verdict, f"{row['likeness']:.2f}", *more, f"{row['ms_per_image']:.1f} ms"])
    more = ["Quantus: faithfulness correlation"] if others else []
    return table(["", "deletion", "insertion", "better than random", "likeness to shuffled weights", *more, "an image"], rows)


TABLES = {
    "serving": serving,
    "training": training,
    "depth": depth,
    "pipeline": pipeline,
    "search": search,
    "devices": devices,
    "devices-speed": devices_speed,
    "faults": faults,
    "fuzz": fuzz,
    "faithfulness": faithfulness,
    "faithfulness-peers": functools.partial(faithfulness, "faithfulness-peers"),
    **{name: functools.partial(side_by_side, name) for name in SIDE_BY_SIDE},
}


def renewed(text):
    """A page with its tables written anew."""

    def replace(match):
        name = match["name"]
        return f"{name}{match[2]}{TABLES[name]() if name in TABLES else of_record(name)}"

    return MARKED.sub(replace, text)


def main():
    old = []
    for path in sorted(path for page in PAGES for path in ROOT.glob(page)):
        text = path.read_text(encoding="utf-8")
        if (new := renewed(text)) != text:
            old.append(str(path.relative_to(ROOT)))
            if sys.argv[1:] != ["--check"]:
                path.write_text(new, encoding="utf-8")
    if old and sys.argv[1:] == ["--check"]:
        sys.exit(f"{', '.join(old)}: a table differs from its record; python benchmarks/tables.py")


if __name__ == "__main__":
    main()
