"""The search folder: it belongs to one search, and one process at a time holds it.

search.json            the search that the folder holds
recipe.yaml            everything that is not searched
oracle.json            the state of the search, and oracle.previous.json the state before it
trial-0/ ...           recipe.yaml, run/ (a run folder), result.json or failure.txt, log.txt
report.html            the whole search on a page
front.png              what accuracy costs, once the search has ended
best.yaml  front/      the recipe of the best trial, and of each trial on the Pareto front
retrain.json retrain/  the best trials, trained again
.lock                  the process that searches
"""

import json
import shutil
from pathlib import Path

from keras_vit.checks import visible
from keras_vit.files import read_json_or_none, remove_abandoned, write_text
from keras_vit.locks import LOCK, Lock

DATA, JAX_CACHE = ".images", ".jax-cache"  # while the search runs: the images as the trials read them, compiled code
FILES = ("oracle.json", "oracle.previous.json", "report.html", "front.png", "best.yaml", "retrain.json")
FOLDERS = ("front", "retrain", DATA, JAX_CACHE)


def locked(folder: Path) -> Lock:
    """Holds the folder while it is open; a ValueError if another process does."""
    folder.mkdir(parents=True, exist_ok=True)
    return Lock(folder, "out")


def read_search(folder: Path) -> dict | None:
    """The description of the search in a folder; None if the folder holds none."""
    found = read_json_or_none(folder / "search.json")
    return found if isinstance(found, dict) and isinstance(found.get("identity"), dict) else None


def claim(folder: Path, search: dict, overwrite: bool) -> None:
    """Records which search a folder holds; refuses another search, and says how it differs.

    Args:
        folder: The search folder, which this process holds.
        search: Plain values; those in `identity` decide the results of the search.
        overwrite: Whether another search may be deleted.

    Raises:
        ValueError: If the folder holds another search, or other files.
    """
    remove_abandoned(folder)
    theirs, search = read_search(folder), json.loads(json.dumps(search))
    if theirs is None and (others := sorted(file.name for file in folder.iterdir() if file.name != LOCK)):
        raise ValueError(f"out: received {str(folder)!r}, which holds {', '.join(others[:3])}; allowed: a new or a search folder")
    if theirs is not None:
        changed = differences(theirs["identity"], search["identity"])
        if changed and not overwrite:
            raise ValueError(f"out: received {str(folder)!r}, another search: {changed}; allowed: another folder, or --overwrite")
        if overwrite:
            clear(folder)
    write_text(folder / "search.json", json.dumps(search, indent=2) + "\n")


def clear(folder):
    """Deletes everything that a search has written."""
    for trial in folder.glob("trial-*"):
        shutil.rmtree(trial)
    for name in FILES:
        (folder / name).unlink(missing_ok=True)
    for name in FOLDERS:
        shutil.rmtree(folder / name, ignore_errors=True)


def clear_caches(folder: Path) -> None:
    """Deletes the images and the compiled code, which only a running search needs."""
    for name in (DATA, JAX_CACHE):
        shutil.rmtree(folder / name, ignore_errors=True)


def differences(theirs: dict, ours: dict) -> str:
    """The first five settings in which two searches differ, in one line; empty if none."""
    theirs, ours = flat(theirs), flat(ours)
    names = [name for name in {**theirs, **ours} if theirs.get(name) != ours.get(name)]
    return visible("; ".join(f"{name} {theirs.get(name)} there and {ours.get(name)} here" for name in names[:5]))


def flat(tree, where=""):
    if not isinstance(tree, dict):
        return {where: tree}
    return {key: value for name, part in tree.items() for key, value in flat(part, f"{where}.{name}" if where else name).items()}
