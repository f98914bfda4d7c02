"""A recipe: model, data, augmentation and training in one object."""

import dataclasses
import itertools
import typing

import yaml

from keras_vit.checks import check_choice, check_fields, check_int, check_number
from keras_vit.data.augment import AugmentConfig
from keras_vit.data.dataset import DataSet, load_data
from keras_vit.model.config import ViTConfig

OPTIMIZERS = ("adamw", "adam", "sgd", "lion", "muon")


SCHEDULES = ("cosine", "constant")


PRECISIONS = ("float32", "bfloat16", "float16")


JITS = ("auto", "on", "off")


@dataclasses.dataclass(frozen=True)
class Stage:
    """An early part of the training that costs less: smaller images, larger patches, patches left out, less augmentation.

    Attributes:
        until: Share of the epochs at which the next stage begins, above 0 and below 1.
        image_scale: What the model's image size is multiplied by, above 0 and at most 1.
        patch_scale: What its patch size is multiplied by, 1 or more; not with a convolutional stem.
        patch_dropout: Share of the patch tokens that are left out, 0 to below 1, instead of the model's; null = the model's.
        augment: Settings of the augmentation that are others in this stage, such as {randaugment_layers: 0}.
    """

    until: float
    image_scale: float = 1.0
    patch_scale: float = 1.0
    patch_dropout: float | None = None
    augment: dict[str, typing.Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        check_number("until", self.until, above=0, below=1)
        check_number("image_scale", self.image_scale, above=0, at_most=1)
        check_number("patch_scale", self.patch_scale, at_least=1)
        if self.patch_dropout is not None:
            check_number("patch_dropout", self.patch_dropout, at_least=0, below=1)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How a model is trained.

    Attributes:
        epochs: Passes over the training images, at least 1; behind each the model is validated and saved.
        steps_per_epoch: Steps that count as an epoch; null = as many as the training images fill.
        batch_size: Images a step.
        accumulate: Steps whose gradients are averaged for one update of the weights; 1 = every step updates.
        optimizer: `adamw`, `adam` (the same without decay), `sgd` (Nesterov momentum), `lion`, or `muon` (Muon on every
            matrix, AdamW on the rest: biases, norms, tokens, positions and convolutions).
        learning_rate: Peak learning rate.
        schedule: `cosine` (to zero at the last step) or `constant`, both behind the warmup.
        warmup_epochs: Epochs of linear warmup from zero; fractions count. At most half of the training.
        weight_decay: Decoupled weight decay; never on biases, norms, scales, tokens and positions. 0 = off.
        beta_1: Decay of the first moment; the momentum of `sgd`. Of `muon` the AdamW part alone: its matrices have 0.95.
        beta_2: Decay of the second moment.
        clip_norm: Largest global norm of the gradient; 0 = no clipping.
        ema: Decay per update of the averaged weights that are then evaluated and saved, such as 0.999; 0 = off.
        precision: `float32`, `bfloat16` or `float16` (with loss scaling); the weights stay in float32.
        remat: Whether the backward pass computes the inside of each block again instead of keeping it (gradient checkpointing,
            arXiv 1604.06174): less memory, more time, the same numbers. Needs `dropout` and `attention_dropout` of 0.
        jit: `auto` (XLA under JAX, and under TensorFlow on an accelerator), `on` (XLA, torch.compile) or `off`.
        validate_every: Epochs between two validations; the last epoch is always validated.
        stages: Early parts of the training on smaller images and with less augmentation (arXiv 2104.00298), with larger patches or
            on some of the patches (arXiv 2208.07220), in order; the rest is trained as the recipe says. Between two of them
            positions and patch projection are resampled. Validated and saved is always the model in its own size.
    """

    epochs: int = 100
    steps_per_epoch: int | None = None
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
    precision: typing.Literal[PRECISIONS] = "float32"
    remat: bool = False
    jit: typing.Literal[JITS] = "auto"
    validate_every: int = 1
    stages: list[Stage] = dataclasses.field(default_factory=list)

    def __post_init__(self):
        for name in ("epochs", "batch_size", "accumulate", "validate_every"):
            check_int(name, getattr(self, name), at_least=1)
        if self.steps_per_epoch is not None:
            check_int("steps_per_epoch", self.steps_per_epoch, at_least=1)
        check_number("learning_rate", self.learning_rate, above=0)
        check_number("warmup_epochs", self.warmup_epochs, at_least=0)
        check_number("weight_decay", self.weight_decay, at_least=0)
        check_number("clip_norm", self.clip_norm, at_least=0)
        for name in ("beta_1", "beta_2", "ema"):
            check_number(name, getattr(self, name), at_least=0, below=1)
        check_choice("optimizer", self.optimizer, OPTIMIZERS)
        check_choice("schedule", self.schedule, SCHEDULES)
        check_choice("precision", self.precision, PRECISIONS)
        check_choice("remat", self.remat, (True, False))
        check_choice("jit", self.jit, JITS)
        stages = [Stage(**stage) if isinstance(stage, dict) else stage for stage in self.stages]
        object.__setattr__(self, "stages", stages)
        for before, stage in itertools.pairwise(stages):
            if stage.until <= before.until:
                raise ValueError(f"stages: received one until {stage.until} behind one until {before.until}; allowed: in order")


METHODS = ("full", "probe", "lora")


SOURCES = ("auto", "keras", "timm", "huggingface", "jax")


@dataclasses.dataclass(frozen=True)
class FinetuneConfig:
    """What a training starts from, and what of it is trained.

    Attributes:
        checkpoint: A run folder, a `.keras` file, a checkpoint of timm, transformers or JAX, or a name on the Hugging Face hub;
            empty = from scratch.
        source: Whose checkpoint it is: `auto` (told by its files), `keras`, `timm`, `huggingface` or `jax`.
        architecture: Name of the architecture, such as vit_base_patch16_224, where the checkpoint does not say; empty = it does.
        method: `full` (every weight), `probe` (the head alone) or `lora` (the head, and adapters of low rank beside the kernels of
            attention and MLP, arXiv 2106.09685).
        keep_head: Whether the checkpoint's head is kept, for data of the same classes; else a new one starts at zero.
        freeze: Number of blocks, from the first on, that are not trained, nor then is the embedding; 0 = all are trained.
        layer_decay: Factor on the learning rate for every block down from the head (arXiv 2106.08254): 1 for all behind the last
            block, layer_decay^1 for the last block, layer_decay^depth for the first and layer_decay^(depth + 1) for the
            embedding; 1 = off.
        lora_rank: Rank r of the adapters A (D, r) and B (r, M), of which B starts at zero.
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
        for name in ("checkpoint", "architecture"):
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"{name}: received {getattr(self, name)!r}; allowed: a string")
        check_choice("source", self.source, SOURCES)
        check_choice("method", self.method, METHODS)
        check_choice("keep_head", self.keep_head, (True, False))
        check_int("freeze", self.freeze, at_least=0)
        check_number("layer_decay", self.layer_decay, above=0, at_most=1)
        check_int("lora_rank", self.lora_rank, at_least=1)
        check_number("lora_alpha", self.lora_alpha, above=0)
        if not self.checkpoint:
            self.refuse([field.name for field in dataclasses.fields(self)], "without a checkpoint")
        if self.method == "probe":
            self.refuse(("freeze", "layer_decay"), "of a linear probe, which trains the head alone,")
        if self.method != "lora":
            self.refuse(("lora_rank", "lora_alpha"), f"with method {self.method}, which has no adapters,")

    def refuse(self, names, where):
        """Raises a ValueError unless the named fields have their defaults: elsewhere they would do nothing."""
        for name in names:
            value, default = getattr(self, name), type(self).__dataclass_fields__[name].default
            if value != default:
                raise ValueError(f"{name}: received {value!r}; {where} allowed: {default!r}")

    def check_model(self, model: ViTConfig) -> None:
        """Raises a ValueError unless this can be done with a model."""
        if self.freeze > model.depth:
            raise ValueError(f"freeze: received {self.freeze}; the model has {model.depth} blocks; allowed: 0 to {model.depth}")
        largest = min(model.width, model.mlp_dim)
        if self.method == "lora" and self.lora_rank > largest:
            raise ValueError(f"lora_rank: received {self.lora_rank}; allowed: 1 to {largest}, the smaller side of the kernels")
        if self.method == "probe":
            for name in ("dropout", "attention_dropout", "drop_path"):
                if getattr(model, name):
                    raise ValueError(
                        f"{name}: received {getattr(model, name)}; of a linear probe, whose blocks are frozen, allowed: 0"
                    )


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything that decides the outcome of a training run.

    Attributes:
        model: The architecture. The number of classes is the data set's.
        data: `auto` (CIFAR-10 if it is at hand or can be downloaded, else digits), `cifar10`, `cifar100`, `mnist`,
            `fashion_mnist`, another TensorFlow Datasets name, `folder:PATH`, `arrays:FILE.npz` or `digits`.
        data_dir: Folder of prepared TensorFlow Datasets; null = TFDS_DATA_DIR or the default of that library.
        validation: Part of the training images held out for validation: a share below 1, a number of images, or null
            for a tenth and 5000 at most; 0 = none.
        mean: Subtracted from images scaled to 0..1, one number or one a channel.
        std: What is then divided by, one number or one a channel.
        augment: What happens to the training images.
        train: Optimisation.
        finetune: The checkpoint that it starts from, if any, and what of it is trained.
        seed: Decides initial weights, split, order, augmentation and dropout.
    """

    model: ViTConfig = dataclasses.field(default_factory=ViTConfig)
    data: str = "auto"
    data_dir: str | None = None
    validation: int | float | None = None
    mean: float | list[float] = 0.5
    std: float | list[float] = 0.5
    augment: AugmentConfig = dataclasses.field(default_factory=AugmentConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    finetune: FinetuneConfig = dataclasses.field(default_factory=FinetuneConfig)
    seed: int = 0

    def __post_init__(self):
        check_int("seed", self.seed, at_least=0)
        if self.seed >= 2**32:
            raise ValueError(f"seed: received {self.seed}; allowed: an integer from 0 to 2^32 - 1")
        if not isinstance(self.data, str) or not self.data:
            raise ValueError(f"data: received {self.data!r}; allowed: auto, digits, folder:PATH, arrays:FILE.npz or a TFDS name")
        if self.model.data_format != "channels_last":
            raise ValueError("data_format: received channels_first; training takes channels_last (the weights are the same)")
        self.finetune.check_model(self.model)
        for name in ("dropout", "attention_dropout") if self.train.remat else ():
            if getattr(self.model, name):
                raise ValueError(f"{name}: received {getattr(self.model, name)}; with remat allowed: 0 (drop_path may be any)")
        if self.validation is not None:
            check_number("validation", self.validation, at_least=0)
        for name in ("mean", "std"):
            values = getattr(self, name)
            values = list(values) if isinstance(values, (list, tuple)) else [values]
            object.__setattr__(self, name, values)
            if len(values) not in (1, self.model.channels):
                allowed = "1" if self.model.channels == 1 else f"1 or {self.model.channels}"
                raise ValueError(f"{name}: received {len(values)} numbers; allowed: {allowed}, as the images have channels")
            for value in values:
                check_number(name, value, **({"above": 0} if name == "std" else {}))
        self.stages()

    def stages(self) -> list[tuple[int, int, typing.Self]]:
        """First epoch, epoch behind the last and recipe of each stage of the training, the recipe's own at the end."""
        stages, first = [], 0
        rest = dataclasses.replace(self, train=dataclasses.replace(self.train, stages=[])) if self.train.stages else self
        for stage in self.train.stages:
            try:
                recipe = dataclasses.replace(rest, model=self.stage_model(stage), augment=self.stage_augment(stage))
            except ValueError as error:
                raise ValueError(f"stages: {error}") from None
            last = min(round(stage.until * self.train.epochs), self.train.epochs - 1)
            if last > first:
                stages.append((first, last, recipe))
                first = last
        return [*stages, (first, self.train.epochs, rest)]

    def stage_model(self, stage: Stage) -> ViTConfig:
        if stage.patch_scale != 1 and self.model.stem != "patch":
            raise ValueError(f"patch_scale: received {stage.patch_scale:g}; with stem {self.model.stem!r} allowed: 1")
        changes = {} if stage.patch_dropout is None else {"patch_dropout": stage.patch_dropout}
        for name, scale in (("image_size", stage.image_scale), ("patch_size", stage.patch_scale)):
            changes[name] = tuple(round(side * scale) for side in getattr(self.model, name))
        return dataclasses.replace(self.model, **changes)

    def stage_augment(self, stage: Stage) -> AugmentConfig:
        check_fields(AugmentConfig, stage.augment, "augment.")
        return dataclasses.replace(self.augment, **stage.augment)

    def to_dict(self) -> dict:
        """The recipe as plain values, in the order of the fields."""
        return {**dataclasses.asdict(self), "model": self.model.to_dict()}

    def to_yaml(self) -> str:
        """The recipe as YAML that `load_recipe` reads back as an equal one."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)


SECTIONS = {"model": ViTConfig, "augment": AugmentConfig, "train": TrainConfig, "finetune": FinetuneConfig}


def load_recipe_data(recipe: Recipe) -> DataSet:
    """The `DataSet` of a recipe: its images in the size and with the channels of the recipe's model."""
    return load_data(
        recipe.data,
        data_dir=recipe.data_dir,
        image_size=recipe.model.image_size,
        channels=recipe.model.channels,
        validation=recipe.validation,
        seed=recipe.seed,
    )
