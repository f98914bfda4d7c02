"""How a search goes: its settings, and the quantities in them."""

import dataclasses
import math
import re
import typing

from keras_vit.checks import check_int, check_number, make_plain

METHODS = ("bayesian", "random", "grid", "hyperband")
OBJECTIVES = {
    "accuracy": ("val_accuracy", "max"),
    "latency": ("latency_ms", "min"),
    "batch_latency": ("batch_latency_ms", "min"),
    "params": ("params", "min"),
    "flops": ("flops", "min"),
}
UNITS, DAY = {"s": 1, "m": 60, "h": 3600}, 86400
TRIALS_IN_TIME = 15  # trials that fit max_time with the default budget
START_SECONDS = 20  # approximate overhead of a trial: start, compilation, validation
HYPERBAND_EPOCHS = 3  # the shortest training that Hyperband can halve

Budget = dict[str, typing.Any]  # {"kind": "epochs", "seconds" or "flops", "amount": number}


@dataclasses.dataclass(frozen=True)
class SearchConfig:
    """How the search goes.

    Attributes:
        method: `bayesian` (a Gaussian process; with several objectives ParEGO), `random`, `grid` or `hyperband`.
        objective: One or more of accuracy, latency, batch_latency (of 64 images), params and flops; accuracy comes first.
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
        names = self.objective.split(",")
        if names[0] != "accuracy" or len(set(names)) != len(names) or not set(names) <= set(OBJECTIVES):
            allowed = f"accuracy alone, or accuracy and after it any of {', '.join(list(OBJECTIVES)[1:])}"
            raise ValueError(f"objective: received {self.objective!r}; allowed: {allowed}")
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
        return dict(OBJECTIVES[name] for name in self.objective.split(","))

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


def read_seconds(name, text):
    amount, unit = read_quantity(name, text, "|[smh]", "a time above 0 such as 90s, 15m or 2h")
    return amount * UNITS[unit or "s"]


def read_budget(name, text):
    amount, unit = read_quantity(name, text, "epochs?|flops|[smh]", "9epochs, 90s, 2m, 1h or 1e15flops, above 0")
    if unit in UNITS:
        return {"kind": "seconds", "amount": amount * UNITS[unit]}
    return {"kind": "flops" if unit == "flops" else "epochs", "amount": amount}


def read_quantity(name, text, units, allowed):
    match = re.fullmatch(rf"(\d+\.?\d*(?:e[+-]?\d+)?)\s*({units})", str(text).strip().lower())
    if not match or not 0 < float(match[1]) < math.inf:
        raise ValueError(f"{name}: received {text!r}; allowed: {allowed}")
    return float(match[1]), match[2]


def show_budget(budget: Budget) -> str:
    return f"{budget['amount']:g} {budget['kind']}"
