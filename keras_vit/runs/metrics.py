"""metrics.csv: a row an epoch, each with a checksum over it and all rows before, by which damage is found."""

import csv
import io
import zlib
from pathlib import Path

from keras_vit.files import Damaged, write_text

# Columns of metrics.csv, in order. `seconds` is training time since the first epoch, also of a run that was resumed.
METRICS = (
    "epoch",
    "seconds",
    "epoch_seconds",
    "images_per_second",
    "learning_rate",
    "loss",
    "accuracy",
    "val_loss",
    "val_accuracy",
    "val_balanced_accuracy",
    "memory_mb",
)
CHECK = "crc32"  # the last column


def columns_of(rows: list[dict]) -> list[str]:
    """The columns of metrics.csv for these rows: the usual ones, and those that only some runs have, such as `val_map`."""
    return [*METRICS, *dict.fromkeys(name for row in rows for name in row if name not in METRICS)]


def write_metrics(path: Path, rows: list[dict]) -> None:
    """Writes rows, a dictionary an epoch."""
    columns, text, check = columns_of(rows), io.StringIO(), 0
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*columns, CHECK])
    for row in rows:
        cells = [str(row.get(name, "")) for name in columns]
        check = checksum(columns, cells, check)
        writer.writerow([*cells, f"{check:08x}"])
    write_text(path, text.getvalue())


def read_metrics(path: Path) -> list[dict]:
    """The rows of a file of `write_metrics`; none where there is no file.

    Raises:
        Damaged: If the file is another.
    """
    if not path.is_file():
        return []
    rows, check = [], 0
    try:
        with open(path, newline="", encoding="utf-8") as file:
            reader = csv.reader(file)
            *columns, last = next(reader, [""])
            if last != CHECK or columns[:1] != [METRICS[0]]:
                raise Damaged(f"its columns are not {METRICS[0]}, ..., {CHECK}")
            for number, (*cells, stated) in enumerate(reader, 1):
                check = checksum(columns, cells, check)
                if stated != f"{check:08x}":
                    raise Damaged(f"row {number} does not fit its checksum")
                rows.append({name: number_of(name, value) for name, value in zip(columns, cells, strict=True) if value})
    except Damaged:
        raise
    except (OSError, csv.Error, ValueError) as error:
        raise Damaged(" ".join(str(error).split())) from None
    return rows


def number_of(name, value):
    return int(value) if name == METRICS[0] else float(value)


def checksum(columns, cells, before):
    return zlib.crc32("\0".join([*columns, *cells]).encode("utf-8", "surrogatepass"), before)
