"""A worker's part of a search over several machines: the search folder says everything but the chief's address."""

import dataclasses
import os
from pathlib import Path

from rich.console import Console

from keras_vit.checks import make
from keras_vit.recipes.parse import load_recipe
from keras_vit.search.axes import SpaceConfig
from keras_vit.search.distribute import ChiefClient, join
from keras_vit.search.folder import differences, read_search
from keras_vit.search.screen import Lines
from keras_vit.search.session import load_facts, make_tuner, worker_environments
from keras_vit.search.settings import COSTS, SearchConfig
from keras_vit.search.space import Limits, Space


def work(
    address: tuple[str, int],
    folder: str | os.PathLike,
    console: Console,
    *,
    workers: int = 1,
    data_dir: str | None = None,
    patience: float = 120.0,
) -> None:
    """Runs trials of a chief until its search has ended.

    Args:
        address: (host, port) of the chief.
        folder: The search folder, which chief and workers share.
        console: Shows the trials of this machine.
        workers: Trials at a time.
        data_dir: Folder of prepared data sets; None = the chief's.
        patience: Seconds to wait for a chief that does not answer.

    Raises:
        ValueError: If the folder holds no search, data or backend differ from the chief's, or the chief does not answer.
    """
    folder = Path(folder).absolute()
    search = read_search(folder)
    if search is None:
        raise ValueError(f"out: received {str(folder)!r}, which holds no search; allowed: the --out of the chief, on a shared disk")
    identity, recipe = search["identity"], load_recipe(folder / "recipe.yaml")
    if data_dir:
        recipe = dataclasses.replace(recipe, data_dir=data_dir)
    facts = load_facts(recipe)
    changed = differences(identity, {**identity, "data": facts["fingerprint"], "backend": facts["backend"]})
    if changed:
        raise ValueError(f"worker: received another search than that in {str(folder)!r}: {changed}; allowed: the same")
    try:
        config = config_of(search)
        axes, limits = make(SpaceConfig, identity["space"], "space"), make(Limits, identity["limits"], "limits")
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"out: received {str(folder)!r}, whose search.json is damaged ({error}); allowed: an intact one") from None
    space = Space(axes, recipe, limits)

    def connect(oracle):
        return lambda name: ChiefClient(oracle, address, name, patience)

    tuner = make_tuner(config, space, recipe.seed, folder, connect)
    tuner.events = Lines(console)
    console.print(f"{recipe.data}, {facts['backend']} on {facts['device']}; trials of {join(*address)}")
    tuner.search_with(workers, worker_environments(workers, facts["accelerators"]))
    console.print("the search has ended")


def config_of(search):
    """The settings of a search, as far as they concern its trials."""
    identity = search["identity"]
    names = {metric: name for name, (metric, _) in COSTS.items()}
    quality, *costs = identity["objectives"]
    objective = ",".join([quality.removeprefix("val_"), *(names[cost] for cost in costs)])
    budget = "{amount}{kind}".format(**identity["budget"]).replace("seconds", "s")
    return SearchConfig(identity["method"], objective, budget, time_limit=search["time_limit"], stall_limit=search["stall_limit"])
