"""The report of an export, `export.json`: its settings, checked, and later what was written and measured."""

import datetime
import typing
from pathlib import Path

import numpy as np
from rich.table import Table

from keras_vit.checks import MAX_SIDE, as_channels, check_int, check_number, check_type, visible
from keras_vit.data.decode import one_line
from keras_vit.export.formats import EVERY
from keras_vit.export.models import interface
from keras_vit.export.runtimes import FILES
from keras_vit.files import MAX_JSON, plain_json, read_text
from keras_vit.machine import machine

# What those who read a report rely on.
FIELDS = {
    "format": typing.Literal[tuple(EVERY)],
    "precision": str,
    "input": typing.Literal["uint8", "float32"],
    "image_shape": tuple[int, int, int],
    "data_format": typing.Literal["channels_last", "channels_first"],
    "batch_size": int | None,
    "mean": list[float] | None,
    "std": list[float] | None,
    "class_names": list[str],
    "multi_label": bool,
    "center_crop": float,
    "temperature": float,
}


def describe(
    model, format, precision, input, mean, std, class_names, batch_size, multi_label=False, center_crop=1.0, temperature=1.0
) -> dict:
    """The settings of an export, with which its report begins.

    Raises:
        ValueError: For settings that do not fit the model or each other.
    """
    found = interface(model)
    check_number("center_crop", center_crop, above=0, at_most=1)
    check_number("temperature", temperature, above=0)
    known = mean is not None and std is not None
    if input == "uint8" and not known:
        raise ValueError("input: received 'uint8'; allowed without mean and std: float32")
    if input == "auto":
        input = "uint8" if known else "float32"
    return {
        "format": format,
        "precision": precision,
        "input": input,
        "image_shape": list(found.pictures if input == "uint8" else found.image_shape),
        "data_format": found.data_format,
        "batch_size": batch_size,
        "merge_tokens": found.merge_tokens,
        "mean": of_every_channel("mean", mean, found.channels),
        "std": of_every_channel("std", std, found.channels, above=0),
        "class_names": names_of_classes(class_names, found.num_classes),
        "multi_label": multi_label,
        "center_crop": center_crop,
        "temperature": temperature,
        "parameters": model.count_params(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "exported_with": machine()["versions"],
    }


def of_every_channel(name, value, channels, **bounds):
    return None if value is None else np.broadcast_to(as_channels(name, value, channels, **bounds), channels).tolist()


def names_of_classes(names, count):
    """The names as text, or the class numbers; none for a model without a head."""
    names = [visible(str(name)) for name in (range(count) if names is None else names)]
    if len(names) != count:
        allowed = f"{count}, the classes of the model" if count else "none, as the model gives features"
        raise ValueError(f"class_names: received {len(names)}; allowed: {allowed}")
    return names


def read_report(folder: Path, field: str = "--compare") -> dict:
    """The report of an export; `field` begins the error.

    Raises:
        ValueError: If the folder is no export.
    """
    allowed = "a folder with an intact export.json"
    try:
        report = plain_json(read_text(folder / "export.json", MAX_JSON))
        check_type("export.json", report, dict[str, typing.Any])
        report = {"temperature": 1.0, **report}  # of earlier releases
        for name, kind in FIELDS.items():
            check_type(name, report.get(name), kind)
        for side in report["image_shape"]:
            check_int("image_shape", side, 1, MAX_SIDE)
        check_number("temperature", report["temperature"], above=0)
        check_number("center_crop", report["center_crop"], above=0, at_most=1)
    except (OSError, ValueError) as error:
        raise ValueError(f"{field}: received {str(folder)!r}; allowed: {allowed} ({one_line(error)})") from None
    if not (folder / FILES[report["format"]]).exists():
        raise ValueError(f"{field}: received {str(folder)!r}, which has no {FILES[report['format']]}; allowed: {allowed}")
    return report


def bytes_of(folder: Path) -> int:
    """Size of an export without its report."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file() and file.name != "export.json")


def export_table(reports: list[dict]) -> Table:
    """A rich table of reports of `export_model`."""
    table = Table("format", "precision", "input", "written by")
    for name in ("MB", "largest difference", "same class", "seconds"):
        table.add_column(name, justify="right")
    for report in reports:
        table.add_row(
            report["format"],
            report["precision"],
            report["input"],
            report["written_by"],
            f"{report['bytes'] / 1e6:.2f}",
            f"{report['difference']:.1e}",
            f"{report['agreement']:.1%}",
            f"{report['seconds']:.0f}",
        )
    return table
