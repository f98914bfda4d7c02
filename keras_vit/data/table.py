"""A data set from a CSV file: a row an image, with its path, its labels and, if there is such a column, its part."""

import csv
import dataclasses
import unicodedata
from pathlib import Path

import numpy as np

from keras_vit.checks import visible
from keras_vit.data.decode import one_line
from keras_vit.data.folder import PART_NAMES, Files, printable
from keras_vit.data.labels import NONE, check_memory, class_counts, is_multi
from keras_vit.data.photos import collect

# Names of the columns, in any case.
COLUMNS = {
    "path": ("path", "file", "filename", "file_name", "filepath", "file_path", "image", "image_path", "image_file"),
    "label": ("label", "labels", "class", "classes", "class_name", "category"),
    "split": ("split", "subset", "partition"),
}
SEPARATOR = "|"  # between the labels of one image
DELIMITERS = ",;\t"  # between columns; the header tells which
SHOWN = 5  # names in a message


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of the file: the line that it ends in, the path as written, its cell of labels and its part."""

    line: int
    path: str
    label: str
    part: str


def read_csv(path: str, shape: tuple[int, int, int], notes: list[str], kind: str = "auto") -> tuple[dict, list[str]]:
    """Images and labels by part, and the class names; see `dataset.read_source`.

    Args:
        path: A CSV file in UTF-8 with a header. Columns are separated by commas, semicolons or tabs.
        shape: (H, W, C) wanted.
        notes: Gets lines for the user.
        kind: `single`, `multi` (`|` separates the labels of an image; an empty cell is an image without any) or `auto`: `multi` if
            any label has a `|`; `none`: labels are not read, so that the column may be missing, and there are no classes.

    Raises:
        ValueError: If there is no such file, or it is not in UTF-8, lacks a column, or holds what cannot be told apart.
    """
    received = f"data: received {f'csv:{path}'!r}"
    file = Path(path).expanduser()
    if not path or not file.is_file():
        raise ValueError(f"{received}: there is no such file; allowed: csv:FILE")
    rows = read_rows(file, received, labelled=kind != NONE)
    if not rows:
        raise ValueError(f"{received} without rows; allowed: a row an image")
    if kind == NONE:
        check_once(rows, received)
        return read_parts(file, rows, np.zeros(len(rows), np.int64), shape, notes, received), []
    multi = kind == "multi" or (kind == "auto" and any(SEPARATOR in row.label for row in rows))
    names_of_rows = [split_labels(row, multi, received) for row in rows]
    check_once(rows, received)
    check_spellings(rows, names_of_rows, received)
    if blanks := [row for row in rows if any(cell != cell.strip() for cell in cells_of(row, multi))]:
        notes.append(f"labels: blanks around {len(blanks):,} are left out, first {blanks[0].label!r} in line {blanks[0].line}")
    training = [names for row, names in zip(rows, names_of_rows, strict=True) if row.part == "train"]
    class_names = sorted({name for names in training for name in names})
    if training and len(class_names) < 2:
        found = f"class {class_names[0]!r} alone" if class_names else "no labels"
        raise ValueError(f"{received} with {found}; allowed: two classes or more")
    position = {name: index for index, name in enumerate(class_names)}
    if multi:
        check_memory(f"{received} with {len(rows):,} rows and {len(class_names):,} labels,", len(rows) * len(class_names))
    labels = np.zeros((len(rows), len(class_names)), np.int8) if multi else np.zeros(len(rows), np.int64)
    for index, names in enumerate(names_of_rows if training else ()):
        for name in names:
            if name not in position:
                known = visible(", ".join(class_names[:SHOWN])) + ", ..." * (len(class_names) > SHOWN)
                raise ValueError(f"{received} with label {name!r} in line {rows[index].line}; allowed, as in train: {known}")
            if multi:
                labels[index, position[name]] = 1
            else:
                labels[index] = position[name]
    parts = read_parts(file, rows, labels, shape, notes, received)
    readable = parts["train"][1]
    counts = class_counts(np.maximum(readable, 0) if is_multi(readable) else readable[readable >= 0], len(class_names))
    for label in np.flatnonzero(counts == 0):
        raise ValueError(f"{received} with no readable image of class {class_names[label]!r}; allowed: one or more")
    return parts, class_names


def read_parts(file, rows, labels, shape, notes, received):
    """Images and labels by part, of rows and their labels."""
    parts = {}
    if not any(row.part == "train" for row in rows):
        found = ", ".join(sorted({row.part for row in rows}))
        raise ValueError(f"{received} with rows of {found} alone; allowed: rows of train beside them")
    for part in dict.fromkeys(row.part for row in rows):
        chosen = [index for index, row in enumerate(rows) if row.part == part]
        files = [file.parent / rows[index].path for index in chosen]
        parts[part] = collect(Files(files, labels[chosen], file.parent, shape[-1]), part, shape, notes)
    return parts


def read_rows(file: Path, received: str, labelled: bool = True) -> list[Row]:
    """The rows of a CSV file; blank lines are left out. Unless `labelled`, there may be no column of labels."""
    try:
        with open(file, newline="", encoding="utf-8-sig") as opened:
            first = opened.readline()
            opened.seek(0)
            reader = csv.reader(opened, delimiter=max(DELIMITERS, key=first.count), strict=True)
            header = next(reader, [])
            places = find_columns([name.strip() for name in header], received, labelled)
            rows = []
            for cells in reader:
                if not any(cell.strip() for cell in cells):
                    continue
                if len(cells) != len(header):
                    raise ValueError(
                        f"{received} with {len(cells)} cells in line {reader.line_num}; allowed: {len(header)}, as the header"
                    )
                values = {"label": "", **{name: cells[place] for name, place in places.items()}}
                rows.append(make_row(reader.line_num, values, received))
            return rows
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise ValueError(f"{received}, which is not in UTF-8 (byte 0x{byte:02x}); allowed: a CSV file saved as UTF-8") from None
    except (csv.Error, OSError) as error:
        raise ValueError(f"{received}, which cannot be read ({one_line(error)}); allowed: a CSV file in UTF-8") from None


def find_columns(header: list[str], received: str, labelled: bool = True) -> dict[str, int]:
    """The places of the columns of path, label and, if there is one, split."""
    shown = visible(", ".join(printable(name) for name in header)) or "none"
    places = {}
    for column, names in COLUMNS.items():
        found = [place for place, name in enumerate(header) if name.lower() in names]
        if len(found) > 1:
            both = ", ".join(header[place] for place in found)
            raise ValueError(f"{received} with {len(found)} columns for the {column}: {both}; allowed: one of {', '.join(names)}")
        if not found and (column == "path" or (column == "label" and labelled)):
            raise ValueError(f"{received} without a column for the {column}; its columns: {shown}; allowed: {', '.join(names)}")
        if found:
            places[column] = found[0]
    return places


def make_row(line: int, values: dict[str, str], received: str) -> Row:
    path, part = values["path"].strip(), "train"
    if not path or "\0" in path:
        raise ValueError(f"{received} with path {path!r} in line {line}; allowed: a file, relative to the CSV file's folder")
    if "split" in values:
        given = values["split"].strip()
        part = PART_NAMES.get(given.lower())
        if not part:
            raise ValueError(f"{received} with split {given!r} in line {line}; allowed: {', '.join(PART_NAMES)}")
    return Row(line, path, values["label"], part)


def cells_of(row: Row, multi: bool) -> list[str]:
    return row.label.split(SEPARATOR) if multi else [row.label]


def split_labels(row: Row, multi: bool, received: str) -> list[str]:
    """The class names of a row."""
    names = [unicodedata.normalize("NFC", cell.strip()) for cell in cells_of(row, multi)]
    if multi and names == [""]:
        return []
    if "" in names:
        where = (
            "an empty cell for an image without labels"
            if multi
            else f"a class (with labels=multi: any number, with {SEPARATOR} between)"
        )
        raise ValueError(f"{received} with label {row.label!r} in line {row.line}; allowed: {where}")
    return names


def check_once(rows: list[Row], received: str) -> None:
    """Raises a ValueError for a path in two rows: parts that share an image, or a row for each label of one."""
    lines = {}
    for row in rows:
        if row.path in lines:
            raise ValueError(
                f"{received} with {printable(row.path)!r} in lines {lines[row.path]} and {row.line}; allowed: once, "
                f"with {SEPARATOR} between several labels"
            )
        lines[row.path] = row.line


def check_spellings(rows: list[Row], names_of_rows: list[list[str]], received: str) -> None:
    """Raises a ValueError for classes whose names differ in case or inner blanks only."""
    spellings = {}  # by what they have in common: {spelling: first line}
    for row, names in zip(rows, names_of_rows, strict=True):
        for name in names:
            spellings.setdefault(" ".join(name.casefold().split()), {}).setdefault(name, row.line)
    for found in spellings.values():
        if len(found) > 1:
            shown = " and ".join(f"{name!r} (line {line})" for name, line in list(found.items())[:SHOWN])
            raise ValueError(
                f"{received} with labels {shown}, which differ in case or blanks only; allowed: one spelling of a class"
            )
