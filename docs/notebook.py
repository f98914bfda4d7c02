"""Runs tour.ipynb from top to bottom, and writes the page of the docs that shows it.

    python docs/notebook.py            # runs it; writes its outputs into tour.ipynb and guides/tour.md
    python docs/notebook.py --try      # runs it and writes nothing
    python docs/notebook.py --check    # exit code 1 if the page is not the notebook's

It needs the extra `docs`, and what the notebook's first line installs.
"""

import re
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbconvert import MarkdownExporter

DOCS = Path(__file__).resolve().parent
NOTEBOOK, PAGE = DOCS / "tour.ipynb", DOCS / "guides" / "tour.md"
MOST = 600  # seconds for a cell
ESCAPES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


def main(arguments):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    if arguments != ["--check"]:
        with tempfile.TemporaryDirectory() as folder:  # what it trains goes with it
            client = NotebookClient(notebook, timeout=MOST, resources={"metadata": {"path": folder}})
            client.execute()
        clean(notebook)
    page, pictures = to_page(notebook)
    if arguments == ["--check"]:
        kept = {path.name for path in PAGE.parent.glob("tour_*.png")}
        return int(PAGE.read_text(encoding="utf-8") != page or kept != set(pictures))
    if arguments != ["--try"]:
        nbformat.write(notebook, NOTEBOOK)
        for path in PAGE.parent.glob("tour_*.png"):
            path.unlink()
        PAGE.write_text(page, encoding="utf-8")
        for name, data in pictures.items():
            (PAGE.parent / name).write_bytes(data)
    return 0


def clean(notebook):
    """Outputs without colours, warnings on stderr, times and metadata that change with each run."""
    for cell in notebook.cells:
        cell.metadata = {}
        for output in cell.get("outputs", ()):
            if output.output_type == "stream":
                output.text = ESCAPES.sub("", output.text).replace("\r\n", "\n")
    notebook.metadata.language_info = {"name": "python"}  # without versions; colours of the code follow from it


def to_page(notebook):
    """The Markdown of the page, and its pictures by file name."""
    exporter = MarkdownExporter()
    text, resources = exporter.from_notebook_node(notebook, {"unique_key": "tour", "output_files_dir": "."})
    pictures = {Path(name).name: data for name, data in resources["outputs"].items()}
    text = re.sub(r"\]\((?:\./)?(?:\.\\)?([^)]*\.png)\)", lambda found: f"]({Path(found[1]).name})", text)
    return text.strip() + "\n", pictures


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
