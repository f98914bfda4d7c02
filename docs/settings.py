"""Writes reference/settings.md: every field of a recipe and of a search space, read from the source of the dataclasses.

    python docs/settings.py            # write the page
    python docs/settings.py --check    # exit code 1 if the page is out of date

Nothing is imported: griffe reads the files, so that no backend need be installed.
"""

import ast
import json
import re
import sys
from pathlib import Path

import griffe

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "reference" / "settings.md"
TABLES = (  # title, what the name of a field begins with on the command line, class
    ("Recipe", "", "keras_vit.recipes.schema.Recipe"),
    ("Model", "model.", "keras_vit.model.config.ViTConfig"),
    ("Augmentation", "augment.", "keras_vit.data.augment.AugmentConfig"),
    ("Training", "train.", "keras_vit.recipes.schema.TrainConfig"),
    ("Stages of a training", "", "keras_vit.recipes.parts.Stage"),
    ("Extensions of a training", "", "keras_vit.recipes.parts.Extension"),
    ("Fine-tuning", "finetune.", "keras_vit.recipes.schema.FinetuneConfig"),
    ("Pre-training", "pretrain.", "keras_vit.recipes.pretrain.PretrainConfig"),
    ("Distillation", "distill.", "keras_vit.recipes.distill.DistillConfig"),
    ("Search space", "space.", "keras_vit.search.space.SpaceConfig"),
    ("How a search goes", "", "keras_vit.search.settings.SearchConfig"),
    ("Limits of a search", "", "keras_vit.search.space.Limits"),
)
KINDS = ("attributes", "parameters")  # sections of a docstring that explain fields
WORDS = {
    "str": "text",
    "bool": "true or false",
    "int": "integer",
    "float": "number",
    "None": "null",
    "tuple[integer, integer]": "two integers",
    "list[number]": "list of numbers",
    "list[Stage]": "list of stages",
    "list[Extension]": "list of extensions",
    "dict[text, Any]": "section",
    "dict[text, number]": "{name: number}",
    "ViTConfig": "section",
    "AugmentConfig": "section",
    "TrainConfig": "section",
    "FinetuneConfig": "section",
    "PretrainConfig": "section",
    "DistillConfig": "section",
    "Axis": "axis",
}
EMPTY = '""'
HEAD = """\
# Settings

Every field of a recipe, and of a search space. The name is that of the YAML file and of the command line:
`train.epochs` is `epochs` in the section `train` of the file, and `--train.epochs 30` on the command line.

`python docs/settings.py` writes this page from the dataclasses.
"""


def page() -> str:
    package = griffe.load("keras_vit", search_paths=[ROOT], allow_inspection=False)
    return "\n".join([HEAD, *(table(package, title, prefix, path) for title, prefix, path in TABLES)])


def table(package, title, prefix, path):
    """A section: the first line of the class's docstring and a row a field."""
    kind = package[path.removeprefix("keras_vit.")]
    sections = kind.docstring.parse("google")
    explanations = {item.name: item.description for section in sections if section.kind.value in KINDS for item in section.value}
    fields = {
        name: field for name, field in kind.attributes.items() if field.annotation is not None and "property" not in field.labels
    }
    if set(fields) != set(explanations):
        raise ValueError(f"{path}: fields and docstring differ in {sorted(set(fields) ^ set(explanations))}")
    lines = [f"## {title}", "", sections[0].value, "", "| field | type | default | meaning |", "|---|---|---|---|"]
    for name, field in fields.items():
        meaning = " ".join(explanations[name].split()).replace("|", "\\|")
        lines.append(f"| `{prefix}{name}` | {type_of(kind, field)} | {default_of(field)} | {meaning} |")
    return "\n".join([*lines, ""])


def type_of(kind, field):
    """The annotation in words; of a `typing.Literal[NAMES]` the values."""
    text = str(field.annotation).replace("typing.", "")
    literal = re.match(r"Literal\[(\w+)\]", text)
    if literal:
        values = " or ".join(f"`{value}`" for value in ast.literal_eval(str(kind.module[literal[1]].value)))
        text = values + text[literal.end() :]
    for name, word in WORDS.items():
        text = re.sub(rf"\b{re.escape(name)}(?!\w)", word, text)
    return text.replace(" | ", " or ")


def default_of(field):
    """The default as in a recipe's file."""
    if field.value is None:
        return "required"
    text = str(field.value)
    if text.startswith("dataclasses.field("):
        factory = text.partition("default_factory=")[2].rstrip(")")
        return {"list": "`[]`", "dict": "`{}`"}.get(factory, "see below")
    return f"`{json.dumps(ast.literal_eval(text)).strip(chr(34)) or EMPTY}`"


def main():
    text = page()
    if sys.argv[1:] == ["--check"]:
        if not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != text:
            sys.exit(f"{PAGE.relative_to(ROOT)} is out of date: python docs/settings.py")
        return
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
