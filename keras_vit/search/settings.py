"""How a search goes: its settings, and the quantities in them."""

import dataclasses
import typing

from keras_vit.checks import UNITS, check_int, check_number, check_types, make_plain, read_quantity, read_seconds, shown, unknown
from keras_vit.recipes.schema import RECALL

METHODS = ("bayesian", "random", "grid", "hyperband")
SINGLE_QUALITIES, MULTI_QUALITIES = ("accuracy", "balanced_accuracy"), ("map", "f1")  # with one label an image, with several
COSTS = {
    "latency": ("latency_ms", "min"),
    "batch_latency": ("batch_latency_ms", "min"),
    "params": ("params", "min"),
    "flops": ("flops", "min"),
}
DAY = 86400
TRIALS_IN_TIME = 15  # trials that fit max_time with the default budget
START_SECONDS = 20  # approximate overhead of a trial: start, compilation, validation
HYPERBAND_EPOCHS = 3  # the shortest training that Hyperband can halve

Budget = dict[str, typing.Any]  # {"kind": "epochs", "seconds" or "flops", "amount": number}


@dataclasses.dataclass(frozen=True)
class SearchConfig:
    """How the search goes.

    Attributes:
        method: `bayesian` (a Gaussian process; with several objectives ParEGO), `random`, `grid` or `hyperband`.
        objective: What is best on the validation images: accuracy, balanced_accuracy or recall:CLASS; with several labels an image
            map, f1 or recall:CLASS. After it, separated by commas, any of latency, batch_latency (of 64 images), params and flops.
        budget: Length of one trial's training: `9epochs`, `90s`, `2m` or `1e15flops`. Seconds and FLOPs give every patch size
            the same compute. Null = about 15 trials fit max_time.
        trials: Largest number of trials; null = as many as max_time allows.
        max_time: Time of the search, such as `15m` or `2h`, its earlier parts included; null = no limit.
        workers: Trials at a time: one on each GPU, or with a share of the cores each.
        time_limit: Seconds after which a trial is ended as failed; null = ten times its budget in seconds, or a day.
        stall_limit: Seconds without a step after which a trial counts as hung.
        retrain: Number of best trials to train again on train and validation images and to test on the test images.
        seeds: Number of seeds for each trial of `retrain`.
        retrain_budget: Length of the training in `retrain`, as in `budget`; null = a trial's.
    """

    method: typing.Literal[METHODS] = "bayesian"
    objective: str = "accuracy"
    budget: str | None = None
    trials: int | None = None
    max_time: str | None = "15m"
    workers: int = 1
    time_limit: float | None = None
    stall_limit: float = 600.0
    retrain: int = 0
    seeds: int = 1
    retrain_budget: str | None = None

    def __post_init__(self):
        make_plain(self)
        check_types(self)
        names = self.objective.split(",")
        if not is_quality(names[0]) or len(set(names)) != len(names) or not set(names[1:]) <= set(COSTS):
            qualities = ", ".join((*SINGLE_QUALITIES, *MULTI_QUALITIES))
            allowed = f"one of {qualities}, {RECALL}CLASS, and after it any of {', '.join(COSTS)}"
            raise ValueError(f"objective: received {shown(self.objective)}; allowed: {allowed}")
        for name in ("workers", "seeds"):
            check_int(name, getattr(self, name), at_least=1)
        check_int("retrain", self.retrain, at_least=0)
        check_number("stall_limit", self.stall_limit, above=0)
        if self.trials is not None:
            check_int("trials", self.trials, at_least=1)
        if self.time_limit is not None:
            check_number("time_limit", self.time_limit, above=0)
        if self.max_time is not None:
            read_seconds("max_time", self.max_time)
        for name in ("budget", "retrain_budget"):
            if getattr(self, name) is not None:
                read_budget(name, getattr(self, name))
        if self.max_time is None and self.trials is None and self.method in ("bayesian", "random"):
            raise ValueError("trials: received null, and max_time null; allowed: at least one of them, which ends the search")
        if self.method == "hyperband" and self.trial_budget["kind"] == "epochs" and self.trial_budget["amount"] < HYPERBAND_EPOCHS:
            raise ValueError(f"budget: received {self.budget!r}; with method hyperband allowed: at least {HYPERBAND_EPOCHS}epochs")

    @property
    def objectives(self) -> dict[str, str]:
        """Metrics with their directions, {"val_accuracy": "max", ...}."""
        quality, *costs = self.objective.split(",")
        return {f"val_{quality}": "max", **dict(COSTS[name] for name in costs)}

    @property
    def quality(self) -> str:
        """The validation metric that decides, as `TrainConfig.monitor`."""
        return self.objective.split(",")[0]

    def check_labels(self, multi_label: bool, class_names: list[str]) -> None:
        """Raises a ValueError for a quality that the data's labels do not have."""
        if self.quality.startswith(RECALL):
            if self.quality.removeprefix(RECALL) not in class_names:
                raise ValueError(unknown("objective", self.quality, [f"{RECALL}{name}" for name in class_names]))
            return
        qualities = MULTI_QUALITIES if multi_label else SINGLE_QUALITIES
        if self.quality not in qualities:
            kind = "several labels" if multi_label else "one label"
            raise ValueError(
                f"objective: received {self.quality!r}; allowed with {kind} an image: {', '.join(qualities)}, {RECALL}CLASS"
            )

    @property
    def seconds(self) -> float | None:
        """Seconds of the search; None = no limit."""
        return None if self.max_time is None else read_seconds("max_time", self.max_time)

    @property
    def trial_budget(self) -> Budget:
        """Length of one trial's training."""
        if self.budget is not None:
            return read_budget("budget", self.budget)
        return {"kind": "seconds", "amount": max(10.0, (self.seconds or 3600) / TRIALS_IN_TIME - START_SECONDS)}

    @property
    def final_budget(self) -> Budget:
        """Length of the training of the best trials."""
        return read_budget("retrain_budget", self.retrain_budget) if self.retrain_budget else self.trial_budget

    def limit(self, budget: Budget) -> float:
        """Seconds after which a training with this budget is ended."""
        return self.time_limit or (10 * budget["amount"] + 60 if budget["kind"] == "seconds" else DAY)


def is_quality(name):
    return name in (*SINGLE_QUALITIES, *MULTI_QUALITIES) or (name.startswith(RECALL) and name != RECALL)


def read_budget(name, text):
    amount, unit = read_quantity(name, text, "epochs?|flops|[smh]", "9epochs, 90s, 2m, 1h or 1e15flops, above 0")
    if unit in UNITS:
        return {"kind": "seconds", "amount": amount * UNITS[unit]}
    return {"kind": "flops" if unit == "flops" else "epochs", "amount": amount}


def show_budget(budget: Budget) -> str:
    return f"{budget['amount']:g} {budget['kind']}"
