"""README, documentation and benchmark tables say what the code and the records say."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def run(*command):
    return subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=60)


def test_readme_is_short_and_its_first_block_chooses_a_backend():
    assert len(README.splitlines()) <= 150
    block = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1]
    assert block.index("import keras_vit") < block.index("import keras\n")


def test_tables_are_those_of_the_records():
    done = run("benchmarks/tables.py", "--check")
    assert done.returncode == 0, done.stderr


def test_every_record_says_how_it_was_made():
    for path in (ROOT / "benchmarks" / "results").glob("*.json"):
        record = json.loads(path.read_text(encoding="utf-8"))
        assert {"command", "source"} <= set(record), path.name
        assert record["source"] == "raw" or record["source"].startswith("typed from"), path.name


def test_settings_page_is_that_of_the_dataclasses():
    pytest.importorskip("griffe")
    done = run("docs/settings.py", "--check")
    assert done.returncode == 0, done.stderr
