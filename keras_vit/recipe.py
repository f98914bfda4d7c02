"""A recipe: model, data, augmentation and training in one object; from strict YAML or JSON, and from a command line."""

import argparse
import dataclasses
import difflib
import itertools
import os
import re
import typing
from pathlib import Path

import jsonargparse
import yaml

from keras_vit.augment import AugmentConfig
from keras_vit.config import ViTConfig, check_choice, check_fields, check_int, check_number, decode_variant
from keras_vit.finetune import LEARNING_RATES, FinetuneConfig, check_architecture, checkpoint_settings, open_finetune
from keras_vit.run import read_yaml

RECIPES = Path(__file__).resolve().parents[1] / "experiments" / "recipes"
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


def recipe_names() -> list[str]:
    """The recipes in experiments/recipes."""
    return sorted(file.stem for file in RECIPES.glob("*.yaml"))


def recipe_path(name: str | os.PathLike) -> Path:
    """The file of a recipe: a path, or the name of one in experiments/recipes."""
    path = Path(name)
    if path.suffix in (".yaml", ".yml", ".json"):
        if not path.is_file():
            raise ValueError(f"recipe: no file {str(name)!r}")
        return path
    names = recipe_names()
    if str(name) not in names:
        near = difflib.get_close_matches(str(name), names, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"recipe: received {str(name)!r}{hint} Allowed: {', '.join(names)}, or a .yaml or .json file")
    return RECIPES / f"{name}.yaml"


def read_settings(name: str | os.PathLike, variant: str | None = None, sections: dict | None = None) -> dict:
    """The settings in a recipe file as {"model.depth": 4, ...}, its names checked and its variant expanded.

    Args:
        name: A name in experiments/recipes or a YAML or JSON file.
        variant: Replaces the model's shape by that of a variant such as "Ti/4".
        sections: Further sections that the file may have, {name: data class}.
    """
    path = recipe_path(name)
    tree = read_yaml(path) or {}
    if not isinstance(tree, dict):
        raise ValueError(f"{path}: received a {type(tree).__name__}; allowed: a mapping of settings")
    further = {}
    for section, cls in (sections or {}).items():
        values = tree.pop(section, None) or {}
        check_fields(cls, values, f"{path}: {section}.")
        further.update({f"{section}.{name}": value for name, value in values.items()})
    settings = {**flatten(tree, where=f"{path}: "), **further}
    if variant:
        settings.update({f"model.{name}": item for name, item in decode_variant(variant).items()})
    return settings


def flatten(tree: dict, where: str) -> dict:
    """Settings {"model": {"depth": 4}} as {"model.depth": 4}, names checked; a `variant` in `model` is expanded."""
    check_fields(Recipe, tree, where)
    settings = {}
    for key, value in tree.items():
        if key not in SECTIONS:
            settings[key] = value
            continue
        if not isinstance(value, dict):
            raise ValueError(f"{where}{key}: received {value!r}; allowed: a mapping of settings")
        if key == "model" and "variant" in value:
            value = {**decode_variant(value["variant"]), **{k: v for k, v in value.items() if k != "variant"}}
        check_fields(SECTIONS[key], value, f"{where}{key}.")
        settings.update({f"{key}.{name}": item for name, item in value.items()})
    return settings


def recipe_parser(parser: jsonargparse.ArgumentParser | None = None) -> jsonargparse.ArgumentParser:
    """A parser with an option for every setting of a recipe, `--train.epochs` and so on, each explained by --help."""
    parser = parser or jsonargparse.ArgumentParser(exit_on_error=False, allow_abbrev=False)
    parser.add_argument(
        "--model.variant",
        help="Replaces the recipe's width, depth, num_heads, mlp_dim and patch_size by those of a variant such as Ti/4.",
    )
    parser.add_class_arguments(Recipe, as_group=False, skip={"model.num_classes"})
    return parser


def parse_recipe(
    name: str | os.PathLike,
    arguments: list[str],
    parser: jsonargparse.ArgumentParser | None = None,
    sections: dict | None = None,
    *,
    from_checkpoint: bool = False,
) -> tuple[Recipe, jsonargparse.Namespace]:
    """A recipe file with settings from a command line on top.

    Args:
        name: A name in experiments/recipes or a YAML or JSON file.
        arguments: Options such as ["--train.epochs", "3"].
        parser: A parser of `recipe_parser` that may have further options.
        sections: Further sections that the file may have, {name: data class}, which are options of `parser`.
        from_checkpoint: What neither file nor command line says comes from `finetune.checkpoint`, as in `finetune_recipe`.

    Returns:
        The `Recipe` and a namespace with the values of the further options.

    Raises:
        ValueError: Naming the setting, what was received and what is allowed.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    first.add_argument("--model.variant", dest="variant")
    try:
        variant = first.parse_known_args(arguments)[0].variant
    except argparse.ArgumentError as error:
        raise ValueError(str(error)) from None
    return _parse(read_settings(name, variant, sections), arguments, parser or recipe_parser(), from_checkpoint)


def load_recipe(name: str | os.PathLike, **overrides) -> Recipe:
    """A `Recipe` from a file, with settings on top.

    Args:
        name: A name in experiments/recipes ("quick") or a YAML or JSON file.
        **overrides: Sections as dictionaries and other fields as values: `train={"epochs": 3}, seed=1`.

    Raises:
        ValueError: Naming the setting, what was received and what is allowed.
    """
    return _parse({**read_settings(name), **flatten(overrides, "")}, [], recipe_parser())[0]


def finetune_recipe(checkpoint: str | os.PathLike, name: str | os.PathLike = "finetune", **overrides) -> Recipe:
    """A `Recipe` that fine-tunes a checkpoint; `train` does it.

    Architecture, image and patch size, mean and std are the checkpoint's where neither file nor overrides say otherwise; of
    those, the architecture must not. The peak learning rate is that of `keras_vit.finetune.LEARNING_RATES` for the method.

    Args:
        checkpoint: As `FinetuneConfig.checkpoint`.
        name: A name in experiments/recipes or a YAML or JSON file.
        **overrides: As in `load_recipe`: `data="folder:photos", finetune={"method": "lora"}, model={"image_size": 384}`.

    Raises:
        ValueError: Naming the setting, what was received and what is allowed, or what is wrong with the checkpoint.
    """
    settings = {**read_settings(name), **flatten(overrides, ""), "finetune.checkpoint": str(checkpoint)}
    return _parse(settings, [], recipe_parser(), from_checkpoint=True)[0]


def _parse(settings, arguments, parser, from_checkpoint=False):
    num_classes = settings.pop("model.num_classes", ViTConfig.num_classes)
    arguments = [re.sub(r"^--[\w.-]+", lambda name: "--" + name[0][2:].replace("-", "_"), option) for option in arguments]
    try:
        parser.set_defaults(settings)
        namespace = parser.parse_args(arguments)
        if from_checkpoint:
            finetune = FinetuneConfig(**namespace.finetune.as_dict())
            checkpoint = open_finetune(finetune)
            rate = {"train.learning_rate": LEARNING_RATES[finetune.method]}
            parser.set_defaults({**rate, **checkpoint_settings(checkpoint), **settings})
            namespace = parser.parse_args(arguments)
    except (jsonargparse.ArgumentError, argparse.ArgumentError) as error:
        raise ValueError(" ".join(str(error).replace("Parser key ", "").split())) from None
    namespace.model.pop("variant", None)
    namespace = parser.instantiate(namespace)
    fields = {field.name: namespace.pop(field.name) for field in dataclasses.fields(Recipe)}
    fields["model"] = dataclasses.replace(fields["model"], num_classes=num_classes)
    if from_checkpoint:
        check_architecture(fields["model"], checkpoint.config)
    return Recipe(**fields), namespace
