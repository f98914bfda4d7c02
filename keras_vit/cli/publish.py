"""Publishes a run on the Hugging Face hub: its model card, its weights, its recipe.

  keras-vit publish RUN you/name --dry-run             writes RUN/README.md, the card, and lists what would be uploaded
  keras-vit publish RUN you/name --license apache-2.0  uploads it; --private: only you see it
  keras-vit publish RUN you/name --weights timm        or huggingface, none: whose names the weights get

Edit RUN/README.md between the two: it is published as it is. The weights go in a format that transformers or timm loads, where one
of them can hold the model, and as a .keras file. The token is that of `hf auth login`, or of HF_TOKEN.
"""

import importlib.util
import re
import tempfile
from pathlib import Path

from rich.table import Table

from keras_vit.checks import check_choice
from keras_vit.cli.command import Parser
from keras_vit.runs.folder import CARD, RunFolder
from keras_vit.terminal import Terminal

NEEDED = "huggingface_hub"
WEIGHTS = ("auto", "huggingface", "timm", "none")


def parse_options(arguments):
    parser = Parser("publish", __doc__, "RUN USER/NAME")
    parser.add_argument("run", metavar="RUN", help="A run folder.")
    parser.add_argument("repo", metavar="USER/NAME", help="The repository on the hub; it is made unless it is there.")
    parser.add_argument("--dry-run", action="store_true", help="List the files with their sizes; upload nothing.")
    parser.add_argument("--private", action="store_true", help="Make a repository that only you see.")
    parser.add_argument("--license", metavar="NAME", help="Such as apache-2.0, for a card that is written. Default: unknown.")
    parser.add_argument("--weights", metavar="NAME", default="auto", help=f"{', '.join(WEIGHTS)}. Default: auto.")
    parser.add_argument("--new-card", action="store_true", help="Write README.md anew, over one that is there.")
    options = parser.parse_args(arguments)
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", options.repo, re.ASCII):
        raise ValueError(f"USER/NAME: received {options.repo!r}; allowed: a name on the hub, such as you/flowers")
    check_choice("--weights", options.weights, WEIGHTS)
    if options.license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,50}", options.license):
        raise ValueError(
            f"--license: received {options.license!r}; allowed: a name of the hub, such as apache-2.0, cc-by-4.0, other"
        )
    return options


def main(arguments):
    options = parse_options(arguments)
    if not importlib.util.find_spec(NEEDED):
        raise ImportError(f"publish: needs {NEEDED}: pip install 'keras-vision-transformer[hub]'")
    from keras_vit.hub.contents import gather
    from keras_vit.hub.publish import upload

    run = RunFolder(options.run)
    if options.new_card:
        (run.path / CARD).unlink(missing_ok=True)
    console = Terminal(highlight=False, markup=False, emoji=False)
    with tempfile.TemporaryDirectory() as place:
        settings = {"license": options.license, "weights": options.weights}
        contents = gather(run, options.repo, Path(place, "files"), **settings)
        table = Table("file")
        table.add_column("bytes", justify="right")
        for name, size in contents.files.items():
            table.add_row(name, f"{size:,}")
        console.print(table)
        for note in contents.notes:
            console.print(note, soft_wrap=True)
        if options.dry_run:
            console.print(f"a dry run: nothing was uploaded to {options.repo}", soft_wrap=True)
            return
        console.print(f"published: {upload(contents.folder, options.repo, private=options.private)}", soft_wrap=True)
