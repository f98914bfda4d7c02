"""A recipe: model, data, augmentation and training in one object."""

import dataclasses
import itertools
import typing

import yaml

from keras_vit.checks import (
    as_moments,
    check_choice,
    check_fields,
    check_int,
    check_number,
    check_seed,
    check_types,
    make,
    make_plain,
    read_seconds,
    refuse,
    shown,
    unknown,
)
from keras_vit.data.augment import AugmentConfig
from keras_vit.data.dataset import DataSet, load_data
from keras_vit.data.labels import KINDS
from keras_vit.data.masking import Masking
from keras_vit.model.config import ViTConfig
from keras_vit.recipes.distill import DistillConfig
from keras_vit.recipes.parts import Extension, Stage, save_interval
from keras_vit.recipes.pretrain import PretrainConfig

OPTIMIZERS = ("adamw", "adam", "sgd", "lion", "muon")
SCHEDULES = ("cosine", "constant")
PRECISIONS = ("auto", "float32", "bfloat16", "float16")
JITS = ("auto", "on", "off")
DISTRIBUTIONS = ("none", "data", "model")
CLASS_WEIGHTS = ("none", "balanced")
LOSSES = ("auto", "cross_entropy", "binary_cross_entropy", "focal")
SAMPLING = ("uniform", "balanced")
INITS = ("glorot", "mimetic")
# Validation metrics that an epoch or a search can be judged by, where an image has one class, and where it may have several.
SINGLE_MONITORS = ("accuracy", "balanced_accuracy", "loss")
MULTI_MONITORS = ("map", "f1", "loss")
RECALL = "recall:"  # and the name of a class
METHODS = ("full", "probe", "lora")
RESTART = 0.5  # share of the peak learning rate at which an extension of a cosine begins by default
SOURCES = ("auto", "keras", "timm", "huggingface", "jax")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How a model is trained.

    Attributes:
        epochs: Passes over the training images, at least 1, without extensions. The model is validated and saved after each.
        time: How long the whole training may take on this machine, such as `10m`: with start, validation and test. Some steps are
            measured first, and the `epochs` get as many steps as fit. After each quarter and before the last epoch the steps that
            are left are counted anew. `steps_per_epoch` in the run's recipe states them, and repeats the run. Null, or with
            `steps_per_epoch`: nothing is measured. Whoever changes `epochs` or `steps_per_epoch` of a recipe and not `time` gets no
            `time`.
        steps_per_epoch: Steps that count as an epoch, or a list, of the first epoch and so on, whose last number counts for all
            later ones; null = as many as one pass takes, or as fit into `time`.
        batch_size: Images a step.
        accumulate: Steps whose gradients are averaged for one update of the weights; 1 = every step updates.
        optimizer: `adamw`, `adam` (the same without decay), `sgd` (Nesterov momentum), `lion`, or `muon` (Muon for matrices
            and for convolutions, whose kernels are matrices to it; AdamW for biases, norms, tokens and positions).
        learning_rate: Peak learning rate.
        schedule: `cosine` (to zero at the last step) or `constant`, after the warmup.
        warmup_epochs: Epochs of linear warmup from zero, such as 0.5; at most half of the training.
        weight_decay: Decoupled weight decay; never on biases, norms, scales, tokens and positions. 0 = off.
        beta_1: Decay of the first moment; the momentum of `sgd`. With `muon` it applies to the AdamW part only; the matrices use
            0.95.
        beta_2: Decay of the second moment.
        clip_norm: Largest global norm of the gradient; 0 = no clipping.
        ema: Decay per update of the averaged weights, such as 0.999; the averages are then validated and saved. 0 = off. After u
            updates it is at most (1 + u) / (10 + u), so that a short run does not average its initial weights.
        average_last: Share of the epochs, the last ones, whose weights are averaged uniformly (arXiv 1803.05407), such as 0.2: each
            step of an epoch counts alike, and each epoch. The averages are then validated and saved. Before, the weights
            themselves are. In an extension the average begins anew, in its last epochs. Not together with `ema`. 0 = off.
        precision: `float32`, `bfloat16`, `float16` (with loss scaling) or `auto`: the faster of float32 and bfloat16 on this
            machine. The run measures first and records the answer in its recipe. The weights stay in float32.
        remat: Whether the backward pass recomputes the inside of each block instead of storing it (gradient checkpointing, arXiv
            1604.06174): same numbers, less memory, more time. Needs `dropout` and `attention_dropout` of 0.
        distribute: `none` (one device), `data` (each device has a part of every batch) or `model` (each device also has a part of
            the weights only; JAX, PyTorch). The batch, and so the outcome, is the same on any number of devices. See the guide on
            devices.
        peer_timeout: Seconds that a process of several waits for the others, at the start and in a step, before it ends.
        deterministic: Whether the backend uses only operations that repeat their numbers bit for bit, on GPUs too, where others are
            faster. On a processor all do, with the same number of cores.
        jit: `auto` (XLA under JAX, and under TensorFlow on an accelerator), `on` (XLA, torch.compile) or `off`.
        validate_every: Epochs between two validations; the last epoch is always validated.
        save_every: How often the training state is saved, for `--resume`: after each epoch (`1 epochs`), or also within an epoch,
            after `500 steps`, `90s`, `10m` or `2h`. It changes no number, and may change when a run is resumed.
        patience: Epochs without a better one after which the training ends; 0 = after all epochs. `monitor` says what is better.
        monitor: Validation metric of the best epoch, whose weights are kept; of equal ones the epoch with the lowest loss.
            `accuracy`, `balanced_accuracy` (mean of the classes' recalls), `loss`, `recall:CLASS`; with several labels an image
            `map` (mean average precision), `f1` (mean of the classes' F1), `loss`, `recall:CLASS`; `auto` = accuracy, or map.
        loss: `cross_entropy` (softmax over the classes), `binary_cross_entropy` (each class for itself, as DeiT III, arXiv
            2204.07118) or `focal` (arXiv 1708.02002: what the model is sure of counts less; with several labels an image from the
            binary cross-entropy, else from the cross-entropy); `auto` = cross_entropy, with several labels binary_cross_entropy.
        focal_gamma: The focal loss's gamma, 0 or more; 0 = as without `focal`.
        class_weights: Weights of the classes in the loss: `none`, `balanced` (each class counts as much as any other, however few
            its images) or {name: weight}, 1 for a class without one. A weight is a factor on the loss for the images of its class.
        sampling: `uniform` (each training image once an epoch) or `balanced` (each class equally often: images of small classes
            come repeatedly, of large ones not all).
        init: Initial weights of a new model's attention: `glorot` (uniform, as Keras's) or `mimetic` (as in trained models, arXiv
            2305.09828).
        whiten: Whether a new model's first layer starts on decorrelated pixels, by the covariance of training images (as
            airbench's, arXiv 2404.00498).
        stages: Cheaper early parts of the training, in order: smaller images and less augmentation (arXiv 2104.00298), larger or
            fewer patches (arXiv 2208.07220), more frozen blocks. The remaining epochs train as the recipe says. Positions and
            patch projection are resampled between stages. The model is always validated and saved in its own size.
        extensions: Epochs that were added after `epochs`, in order, each with a schedule of the learning rate of its own.
    """

    # `precision` is float32 by default, so that a configuration made in Python gives the same numbers on every machine.
    epochs: int = 100
    time: str | None = None
    steps_per_epoch: int | list[int] | None = None
    batch_size: int = 128
    accumulate: int = 1
    optimizer: typing.Literal[OPTIMIZERS] = "adamw"
    learning_rate: float = 1e-3
    schedule: typing.Literal[SCHEDULES] = "cosine"
    warmup_epochs: float = 5.0
    weight_decay: float = 0.05
    beta_1: float = 0.9
    beta_2: float = 0.999
    clip_norm: float = 1.0
    ema: float = 0.0
    average_last: float = 0.0
    precision: typing.Literal[PRECISIONS] = "float32"
    remat: bool = False
    distribute: typing.Literal[DISTRIBUTIONS] = "none"
    peer_timeout: int = 120
    deterministic: bool = False
    jit: typing.Literal[JITS] = "auto"
    validate_every: int = 1
    save_every: str = "1 epochs"
    patience: int = 0
    monitor: str = "auto"
    loss: typing.Literal[LOSSES] = "auto"
    focal_gamma: float = 2.0
    class_weights: typing.Literal[CLASS_WEIGHTS] | dict[str, float] = "none"
    sampling: typing.Literal[SAMPLING] = "uniform"
    init: typing.Literal[INITS] = "glorot"
    whiten: bool = False
    stages: list[Stage] = dataclasses.field(default_factory=list)
    extensions: list[Extension] = dataclasses.field(default_factory=list)

    def __post_init__(self):
        make_plain(self)
        check_types(self, "monitor")
        for name in ("epochs", "batch_size", "accumulate", "validate_every", "peer_timeout"):
            check_int(name, getattr(self, name), at_least=1)
        if self.time is not None:
            read_seconds("time", self.time)
        if self.steps_per_epoch is not None:
            steps = self.steps_per_epoch if isinstance(self.steps_per_epoch, list) else [self.steps_per_epoch]
            if not steps:
                raise ValueError("steps_per_epoch: received []; allowed: a number, one for each epoch, or null")
            for number in steps:
                check_int("steps_per_epoch", number, at_least=1)
        check_int("patience", self.patience, at_least=0)
        save_interval(self.save_every)
        if isinstance(self.class_weights, dict):
            for name, weight in self.class_weights.items():
                check_number(f"class_weights: {shown(name)}", weight, at_least=0)
            check_types(self, "class_weights")
        else:
            check_choice("class_weights", self.class_weights, CLASS_WEIGHTS)
        check_choice("loss", self.loss, LOSSES)
        check_number("focal_gamma", self.focal_gamma, at_least=0)
        check_choice("sampling", self.sampling, SAMPLING)
        check_choice("init", self.init, INITS)
        if self.sampling == self.class_weights == "balanced":
            raise ValueError("class_weights: received 'balanced'; allowed: none with sampling=balanced, which balances the classes")
        if not self.monitor.startswith(RECALL):
            check_choice("monitor", self.monitor, tuple(dict.fromkeys(("auto", *SINGLE_MONITORS, *MULTI_MONITORS))))
        check_number("learning_rate", self.learning_rate, above=0)
        check_number("warmup_epochs", self.warmup_epochs, at_least=0)
        check_number("weight_decay", self.weight_decay, at_least=0)
        check_number("clip_norm", self.clip_norm, at_least=0)
        for name in ("beta_1", "beta_2", "ema"):
            check_number(name, getattr(self, name), at_least=0, below=1)
        check_number("average_last", self.average_last, at_least=0, at_most=1)
        if self.ema and self.average_last:
            raise ValueError(f"average_last: received {self.average_last:g}; allowed: 0 with ema, which averages the weights too")
        check_choice("optimizer", self.optimizer, OPTIMIZERS)
        check_choice("schedule", self.schedule, SCHEDULES)
        check_choice("precision", self.precision, PRECISIONS)
        for name in ("remat", "deterministic", "whiten"):
            check_choice(name, getattr(self, name), (True, False))
        check_choice("distribute", self.distribute, DISTRIBUTIONS)
        check_choice("jit", self.jit, JITS)
        for name, kind in (("stages", Stage), ("extensions", Extension)):
            check_types(self, name)
            parts = [part if isinstance(part, kind) else make(kind, part, name) for part in getattr(self, name)]
            object.__setattr__(self, name, parts)
        for before, stage in itertools.pairwise(self.stages):
            if stage.until <= before.until:
                raise ValueError(f"stages: received until {stage.until} after {before.until}; allowed: each later than the last")
        first, last = 1, self.epochs
        for part in self.extensions:
            if not first <= part.after <= last:
                raise ValueError(
                    f"extensions: received after {part.after}; allowed: {first} to {last}, where the epochs before end"
                )
            first, last = part.after + 1, part.after + part.epochs

    @property
    def averages(self) -> bool:
        """Whether averaged weights are validated and saved."""
        return self.ema > 0 or self.average_last > 0

    @property
    def save_interval(self) -> tuple[float, float]:
        """Steps and seconds between two states that are saved within an epoch; inf = none."""
        return save_interval(self.save_every)

    @property
    def measured_seconds(self) -> float | None:
        """Seconds that the training may take in all, from which its steps are still to be found; None = they are known."""
        return None if self.time is None or self.steps_per_epoch else read_seconds("time", self.time)

    @property
    def total_epochs(self) -> int:
        """The number of the last epoch, with extensions."""
        return self.extensions[-1].after + self.extensions[-1].epochs if self.extensions else self.epochs

    def schedule_start(self, epoch: int) -> int:
        """The number of epochs before the schedule that decides the learning rate after `epoch` epochs: 0 or an extension's."""
        return max((part.after for part in self.extensions if part.after <= epoch), default=0)

    def schedule_end(self, epoch: int) -> int:
        """The number of epochs after which the schedule of `schedule_start` is over: that of `epochs` or of an extension."""
        return next((p.after + p.epochs for p in reversed(self.extensions) if p.after <= epoch), self.epochs)

    def extended(self, after: int, epochs: int, learning_rate: float | None = None) -> typing.Self:
        """This with more epochs after the first `after`; None = the same learning rate, of a cosine `RESTART` times it."""
        if learning_rate is None:
            learning_rate = self.learning_rate * (RESTART if self.schedule == "cosine" else 1)
        return dataclasses.replace(self, extensions=[*self.extensions, Extension(after, epochs, learning_rate)])

    def for_labels(self, multi_label: bool, class_names: list[str]) -> typing.Self:
        """The settings with loss and metric in place of `auto`; a ValueError for those that do not fit the labels."""
        loss, monitor = self.loss, self.monitor
        if loss == "auto":
            loss = "binary_cross_entropy" if multi_label else "cross_entropy"
        if multi_label and loss == "cross_entropy":
            raise ValueError("loss: received 'cross_entropy'; allowed with several labels an image: binary_cross_entropy, focal")
        monitors = MULTI_MONITORS if multi_label else SINGLE_MONITORS
        if monitor == "auto":
            monitor = monitors[0]
        if monitor.startswith(RECALL):
            if monitor.removeprefix(RECALL) not in class_names:
                raise ValueError(unknown("monitor", monitor, [f"{RECALL}{name}" for name in class_names]))
        elif monitor not in monitors:
            kind = "several labels" if multi_label else "one label"
            raise ValueError(f"monitor: received {monitor!r}; allowed with {kind} an image: {', '.join(monitors)}, {RECALL}CLASS")
        return dataclasses.replace(self, loss=loss, monitor=monitor)


@dataclasses.dataclass(frozen=True)
class FinetuneConfig:
    """Where a training starts, and which weights it trains.

    Attributes:
        checkpoint: A run folder, a `.keras` file, a checkpoint of timm, transformers or JAX, or a name on the Hugging Face hub;
            empty = from scratch.
        source: Format of the checkpoint: `auto` (its files tell), `keras`, `timm`, `huggingface` or `jax`.
        architecture: Name of the architecture, such as vit_base_patch16_224, for a checkpoint that does not state it; empty = it
            does.
        method: `full` (every weight), `probe` (the head alone) or `lora` (the head, and low-rank adapters beside the kernels of
            attention and MLP, arXiv 2106.09685).
        keep_head: Whether to keep the checkpoint's head, for data of the same classes; otherwise a new head starts at zero.
        freeze: Number of first blocks to freeze, together with the embedding; 0 = nothing is frozen, one more than there are
            blocks = all but the head.
        layer_decay: Factor on the learning rate for each block further from the head (arXiv 2106.08254): 1 after the last
            block, layer_decay^1 for the last block, layer_decay^depth for the first and layer_decay^(depth + 1) for the
            embedding; 1 = off.
        lora_rank: Rank r of the adapters A (D, r) and B (r, M); B starts at zero.
        lora_alpha: Scale of the adapters: a kernel becomes kernel + lora_alpha / lora_rank * A B.
    """

    checkpoint: str = ""
    source: typing.Literal[SOURCES] = "auto"
    architecture: str = ""
    method: typing.Literal[METHODS] = "full"
    keep_head: bool = False
    freeze: int = 0
    layer_decay: float = 1.0
    lora_rank: int = 8
    lora_alpha: float = 16.0

    def __post_init__(self):
        make_plain(self)
        check_types(self, "checkpoint", "architecture")
        check_choice("source", self.source, SOURCES)
        check_choice("method", self.method, METHODS)
        check_choice("keep_head", self.keep_head, (True, False))
        check_int("freeze", self.freeze, at_least=0)
        check_number("layer_decay", self.layer_decay, above=0, at_most=1)
        check_int("lora_rank", self.lora_rank, at_least=1)
        check_number("lora_alpha", self.lora_alpha, above=0)
        if not self.checkpoint:
            refuse(self, [field.name for field in dataclasses.fields(self)], "without a checkpoint")
        if self.method == "probe":
            refuse(self, ("freeze", "layer_decay"), "with method=probe")
        if self.method != "lora":
            refuse(self, ("lora_rank", "lora_alpha"), f"with method={self.method}")

    def check_model(self, model: ViTConfig) -> None:
        """Raises a ValueError for settings that do not fit a model."""
        if self.freeze > model.depth + 1:
            allowed = f"0 to {model.depth}, the blocks of the model, or {model.depth + 1} for all but the head"
            raise ValueError(f"freeze: received {self.freeze}; allowed: {allowed}")
        largest = min(model.width, model.mlp_dim)
        if self.method == "lora" and self.lora_rank > largest:
            raise ValueError(f"lora_rank: received {self.lora_rank}; allowed: 1 to {largest}, the smaller side of the kernels")
        if self.method == "probe":
            refuse_dropout(model, ("dropout", "attention_dropout", "drop_path"), "with method=probe, whose blocks are frozen")


def refuse_dropout(model: ViTConfig, names: tuple[str, ...], where: str) -> None:
    for name in names:
        if getattr(model, name):
            raise ValueError(f"{name}: received {getattr(model, name)}; allowed: 0 {where}")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything that decides the outcome of a training run.

    Attributes:
        model: The architecture. The number of classes is the data set's.
        data: `auto` (CIFAR-10 if it is at hand or can be downloaded, else digits), `cifar10`, `cifar100`, `mnist`,
            `fashion_mnist`, another TensorFlow Datasets name, `folder:PATH`, `csv:FILE`, `arrays:FILE.npz` or `digits`.
        labels: `single` (each image has one class), `multi` (any number; `|` separates them in a CSV file) or `auto`: the data
            decides.
        data_dir: Folder of prepared TensorFlow Datasets; null = TFDS_DATA_DIR or the default of that library.
        validation: Training images to hold out for validation: a share below 1, a number of images, or null = a tenth, at most
            5000; 0 = none.
        subset: Training images to train on: a share below 1, a number of images, or null = all. Each class in proportion, chosen
            by the seed after validation and test images, which stay the same.
        mean: Subtracted from images scaled to 0..1: a number, or one for each channel.
        std: Divides the result: a number, or one for each channel.
        center_crop: Share of a picture's height and width that the model sees in validation, test and predictions, from the middle,
            above 0 to 1, such as 0.875 (timm's `crop_pct`). For data that is decoded as it is needed; 1 = all.
        augment: Augmentation of the training images.
        train: Optimisation.
        finetune: The checkpoint to start from, if any, and which weights to train.
        pretrain: Whether this is a pre-training on images without labels, and how.
        distill: The teacher, if any, and how its answers are used.
        seed: Decides initial weights, split, order, augmentation and dropout.
    """

    model: ViTConfig = dataclasses.field(default_factory=ViTConfig)
    data: str = "auto"
    labels: typing.Literal[KINDS] = "auto"
    data_dir: str | None = None
    validation: int | float | None = None
    subset: int | float | None = None
    mean: float | list[float] = 0.5
    std: float | list[float] = 0.5
    center_crop: float = 1.0
    augment: AugmentConfig = dataclasses.field(default_factory=AugmentConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    finetune: FinetuneConfig = dataclasses.field(default_factory=FinetuneConfig)
    pretrain: PretrainConfig = dataclasses.field(default_factory=PretrainConfig)
    distill: DistillConfig = dataclasses.field(default_factory=DistillConfig)
    seed: int = 0

    def __post_init__(self):
        make_plain(self)
        check_seed(self.seed)
        check_types(self, "model", "data_dir", "augment", "train", "finetune", "pretrain", "distill")
        if not isinstance(self.data, str) or not self.data:
            raise ValueError(
                f"data: received {shown(self.data)}; allowed: auto, digits, folder:PATH, csv:FILE, arrays:FILE.npz or a TFDS name"
            )
        check_choice("labels", self.labels, KINDS)
        if self.model.data_format != "channels_last":
            raise ValueError("data_format: received channels_first; allowed: channels_last in training (the weights are the same)")
        self.finetune.check_model(self.model)
        self.augment.check_channels(self.model.channels)
        if self.finetune.checkpoint:
            for name in ("init", "whiten"):
                if getattr(self.train, name) != getattr(TrainConfig, name):
                    allowed = getattr(TrainConfig, name)
                    raise ValueError(f"{name}: received {getattr(self.train, name)}; allowed: {allowed} with a checkpoint")
        if self.train.remat:
            refuse_dropout(self.model, ("dropout", "attention_dropout"), "with remat=true (drop_path may have any value)")
        if self.pretrain:
            self.pretrain.check_recipe(self)
        if self.validation is not None:
            check_number("validation", self.validation, at_least=0)
        if self.subset is not None:
            check_number("subset", self.subset, above=0)
        check_number("center_crop", self.center_crop, above=0, at_most=1)
        for name, values in zip(("mean", "std"), as_moments(self.mean, self.std, self.model.channels), strict=True):
            object.__setattr__(self, name, values)
        stages = self.stages()
        self.distill.check_recipe(self, [stage for _, _, stage in stages])
        averaged, epochs = self.train.average_last, self.train.epochs
        thawed = max((last for _, last, stage in stages if stage.finetune != self.finetune), default=0)
        if averaged and averaged * epochs > epochs - thawed + 1e-6:
            allowed = f"at most {1 - thawed / epochs:g}, as freeze changes until epoch {thawed} of {epochs}"
            raise ValueError(f"average_last: received {averaged:g}; allowed: {allowed}")

    def stages(self) -> list[tuple[int, int, typing.Self]]:
        """(first epoch, epoch after the last one, recipe) of each stage of the training.

        After `train.stages` comes the recipe itself, then each extension, whose recipe has its epochs and its learning rate.
        """
        config = self.train
        ends = [*(part.after for part in config.extensions), config.total_epochs]
        rest = self.with_train(stages=[], extensions=[]) if config.stages or config.extensions else self
        stages, first = [], 0
        for stage in config.stages:
            try:
                changes = {"model": self.stage_model(stage), "augment": self.stage_augment(stage)}
                if stage.freeze is not None:
                    changes["finetune"] = dataclasses.replace(self.finetune, freeze=stage.freeze)
                recipe = dataclasses.replace(rest, **changes)
            except ValueError as error:
                raise ValueError(f"stages: {error}") from None
            last = min(round(stage.until * config.epochs), config.epochs - 1, ends[0])
            if last > first:
                stages.append((first, last, recipe))
                first = last
        if ends[0] > first:
            stages.append((first, ends[0], rest))
        for part, end in zip(config.extensions, ends[1:], strict=True):
            # `train` counts the steps from the first epoch on.
            mix_until = (part.after + rest.augment.mix_until * part.epochs) / (part.after + part.epochs)
            augment = dataclasses.replace(rest.augment, mix_until=mix_until)
            recipe = rest.with_train(epochs=part.epochs, learning_rate=part.learning_rate, warmup_epochs=0.0)
            stages.append((part.after, end, dataclasses.replace(recipe, augment=augment)))
        return stages

    def with_train(self, **changes) -> typing.Self:
        """The recipe with other settings of `train`."""
        return dataclasses.replace(self, train=dataclasses.replace(self.train, **changes))

    def stage_model(self, stage: Stage) -> ViTConfig:
        if stage.patch_scale != 1 and self.model.stem != "patch":
            raise ValueError(f"patch_scale: received {stage.patch_scale:g}; allowed: 1 with stem={self.model.stem}")
        changes = {} if stage.patch_dropout is None else {"patch_dropout": stage.patch_dropout}
        for name, scale in (("image_size", stage.image_scale), ("patch_size", stage.patch_scale)):
            changes[name] = tuple(round(side * scale) for side in getattr(self.model, name))
        return dataclasses.replace(self.model, **changes)

    def stage_augment(self, stage: Stage) -> AugmentConfig:
        check_fields(AugmentConfig, stage.augment, "augment")
        return dataclasses.replace(self.augment, **stage.augment)

    def load_data(self) -> DataSet:
        """The `DataSet` of the recipe: its images in the size and with the channels of the recipe's model."""
        return load_data(
            self.data,
            data_dir=self.data_dir,
            image_size=self.model.image_size,
            channels=self.model.channels,
            validation=self.validation,
            subset=self.subset,
            seed=self.seed,
            labels="none" if self.pretrain else self.labels,
            center_crop=self.center_crop,
        )

    def for_data(self, data: DataSet) -> typing.Self:
        """The recipe with the settings that its data decides: in place of `auto` what was found, and the number of classes.

        Raises:
            ValueError: For a loss or a metric that does not fit the labels.
        """
        if self.pretrain:
            recipe = dataclasses.replace(self, data=data.name, model=dataclasses.replace(self.model, num_classes=0))
            return recipe.with_train(monitor="loss")
        return dataclasses.replace(
            self,
            data=data.name,
            labels="multi" if data.multi_label else "single",
            model=dataclasses.replace(self.model, num_classes=len(data.class_names)),
            train=self.train.for_labels(data.multi_label, data.class_names),
        )

    @property
    def masking(self) -> Masking | None:
        """What a pre-training hides of the images; None for a classifier."""
        return Masking(self.model.patch_size, self.pretrain.mask_ratio, self.pretrain.normalize) if self.pretrain else None

    def to_dict(self) -> dict:
        """The recipe as plain values, in the order of the fields."""
        return {**dataclasses.asdict(self), "model": self.model.to_dict()}

    def to_yaml(self) -> str:
        """The recipe as YAML; `load_recipe` reads it back as an equal recipe."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)


SECTIONS = {"model": ViTConfig, "augment": AugmentConfig, "train": TrainConfig}
SECTIONS |= {"finetune": FinetuneConfig, "pretrain": PretrainConfig, "distill": DistillConfig}
