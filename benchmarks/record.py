"""The record of a run: what `--json FILE` of the benchmarks writes and what `tables.py` reads from `results/`."""

import json
import shlex
import sys
import time
from pathlib import Path

from keras_vit.machine import machine


def write_record(path: Path, **outcome) -> None:
    """Writes the outcome of this process's command, with the command, the date and the machine."""
    record = {"command": shlex.join(["python", *sys.argv]), "date": time.strftime("%Y-%m-%d"), **machine(), "source": "raw"}
    path.write_text(json.dumps({**record, **outcome}, indent=1, ensure_ascii=False, default=float) + "\n", encoding="utf-8")
