"""`small-cnn`: a small convolutional net that is trained first, in the same process, and teaches the Vision Transformer.

Convolutions have what a Vision Transformer must learn: neighbours belong together, and a thing is the same wherever it lies. The
net is a small ResNet-9 (as in 'How to train your ResNet', D. Page, 2018, and airbench, arXiv 2404.00498).
"""

import dataclasses
import time
import warnings
from pathlib import Path

import keras

from keras_vit.data.batches import training_batches
from keras_vit.data.dataset import DataSet
from keras_vit.files import Damaged, atomic_path, read_sealed_json, write_sealed_json
from keras_vit.model.saved import load_any_keras
from keras_vit.recipes.distill import MOST, DistillConfig
from keras_vit.recipes.schema import Recipe
from keras_vit.runs.folder import TEACHER, TEACHER_FACTS
from keras_vit.training.distill.sources import FIELD, digest_of_file
from keras_vit.training.losses import make_loss
from keras_vit.training.models import POLICIES, compile_model
from keras_vit.training.schedule import WarmupSchedule
from keras_vit.training.speed import stream_settings, training_rates

STEM, WIDTHS, SIDE = 32, (64, 128), 16  # of `build`
MOST_STRIDE = 4  # of the stem
SMALLEST = 4  # pixels of a side that is not halved any more
BATCH, RATE, WARMUP, DECAY, SMOOTHING = 128, 0.2, 0.2, 5e-3, 0.1  # warmup: share of the steps
PLAIN = {"randaugment_layers": 0, "three_augment": False, "color_jitter": 0.0, "erasing": 0.0, "mixup": 0.0, "cutmix": 0.0}
FEWEST = 0.1  # passes that are trained, however little time there is


@dataclasses.dataclass(frozen=True)
class SmallCNN:
    """A trained net.

    Attributes:
        model: The `keras.Model`, in float32.
        epochs: Passes over the training images.
        seconds: Of its training, whichever process has trained it.
        kept: Whether it comes from the run folder.
    """

    model: keras.Model
    epochs: float
    seconds: float
    kept: bool = False

    def save(self, folder: Path) -> None:
        """Puts it into a run folder, so that the run goes on without training it again."""
        if self.kept:
            return
        with atomic_path(folder / TEACHER) as temporary:
            self.model.save(temporary)
        facts = {"file": digest_of_file(folder / TEACHER), "epochs": self.epochs, "seconds": self.seconds}
        write_sealed_json(folder / TEACHER_FACTS, facts)


def build(
    image_shape: tuple[int, int, int],
    num_classes: int,
    dtype: str = "float32",
    stem: int = STEM,
    widths: tuple[int, ...] = WIDTHS,
    side: int = SIDE,
) -> keras.Model:
    """The net for images (H, W, C) of any size: a model with logits (B, num_classes).

    A stem to about 16 pixels a side, of large images to a quarter, then groups of two convolutions. The stem has no norm, and the
    first norm of a group follows the pooling: norms take time on a processor. Names are given: those
    that Keras gives count the layers of a process, and the weights' names tell one teacher from another.

    Args:
        image_shape: (H, W, C).
        num_classes: K.
        dtype: Keras's dtype policy of the layers but the last.
        stem: Channels of the stem.
        widths: Channels of each group; further groups have the last.
        side: Pixels of a side of the stem's output, about, unless its stride is at its most.
    """

    def convolution(x, name, width, pool=False):
        x = keras.layers.Conv2D(width, 3, padding="same", use_bias=False, name=f"{name}_convolution", dtype=dtype)(x)
        x = keras.layers.MaxPooling2D(name=f"{name}_pool", dtype=dtype)(x) if pool else x
        x = keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-5, name=f"{name}_norm", dtype=dtype)(x)
        return keras.layers.Activation("relu", name=f"{name}_relu", dtype=dtype)(x)

    images, stride = keras.Input(image_shape, name="images"), round(min(max(1, min(image_shape[:2]) / side), MOST_STRIDE))
    settings = {"strides": stride, "padding": "same", "activation": "relu", "name": "stem", "dtype": dtype}
    x, group = keras.layers.Conv2D(stem, max(3, 2 * stride), **settings)(images), 0  # (B, H / stride, W / stride, stem)
    while group < len(widths) or min(x.shape[1:3]) > 2 * SMALLEST:
        width = widths[min(group, len(widths) - 1)]
        x = convolution(x, f"group_{group}_first", width, pool=min(x.shape[1:3]) > SMALLEST)
        x, group = convolution(x, f"group_{group}_second", width), group + 1
    x = keras.layers.GlobalMaxPooling2D(name="pool", dtype=dtype)(x)  # (B, width)
    return keras.Model(images, keras.layers.Dense(num_classes, name="head", dtype="float32")(x), name="small_cnn")


def small_cnn(recipe: Recipe, data: DataSet, kept: Path | None, say, seconds: float | None = None) -> SmallCNN:
    """Trains the net of a recipe, or takes the one that is kept in a run folder.

    Args:
        recipe: The `Recipe`, with a precision: its images, seed, flips and crops. What else it does to images is left out.
        data: Its `DataSet`.
        kept: A run folder that may have the net; None = train it.
        say: Takes lines for the user.
        seconds: About how long to train; None = `distill.epochs`.
    """
    if kept is not None and (found := read(kept)):
        return found
    started = time.perf_counter()
    size = min(BATCH, len(data.train))
    epochs, recipe = recipe.distill.epochs, own_recipe(recipe, size)
    keras.utils.set_random_seed(recipe.seed)
    model = build((*recipe.model.image_size, recipe.model.channels), recipe.model.num_classes, POLICIES[recipe.train.precision])
    if seconds is not None:
        compiled(model, recipe, 1)
        rate = training_rates([model], data, recipe)[0]
        left = seconds - (time.perf_counter() - started)
        epochs = round(min(max(left * rate / len(data.train), FEWEST), MOST), 2)
    say(f"teacher: small-cnn, {model.count_params():,} parameters, {epochs:g} passes over {len(data.train):,} images")
    fit(model, recipe, data, epochs)
    trained = build(model.input_shape[1:], recipe.model.num_classes)
    trained.set_weights(model.get_weights())
    seconds = time.perf_counter() - started
    say(f"teacher: trained in {seconds:.0f} s")
    return SmallCNN(trained, epochs, seconds)


def own_recipe(recipe: Recipe, batch_size: int) -> Recipe:
    """A student's recipe with the augmentation of the net."""
    augment = dataclasses.replace(recipe.augment, **PLAIN, label_smoothing=SMOOTHING)
    return dataclasses.replace(recipe, augment=augment, distill=DistillConfig()).with_train(batch_size=batch_size, stages=[])


def fit(model: keras.Model, recipe: Recipe, data: DataSet, epochs: float, verbose: int = 0) -> None:
    """Trains a net of `build` for so many passes, by its `own_recipe`."""
    steps = max(1, round(epochs * len(data.train) / recipe.train.batch_size))
    compiled(model, recipe, steps)
    batches = training_batches(data.train, recipe.augment, **stream_settings(recipe, data))
    model.fit(batches, steps_per_epoch=steps, shuffle=False, verbose=verbose)


def compiled(model, recipe, steps):
    """Gives the net an optimizer for so many steps."""
    schedule = WarmupSchedule(RATE, round(WARMUP * steps), steps)
    optimizer = keras.optimizers.SGD(schedule, momentum=0.9, nesterov=True, weight_decay=DECAY)
    compile_model(model, optimizer, recipe.train.jit, make_loss(recipe), [])


def read(folder: Path) -> SmallCNN | None:
    """The net in a run folder; None if there is none, or it is damaged, with a warning."""
    try:
        facts = read_sealed_json(folder / TEACHER_FACTS)
        if facts["file"] != digest_of_file(folder / TEACHER):
            raise Damaged("it does not fit its digest")
        return SmallCNN(load_any_keras(folder / TEACHER, FIELD), facts["epochs"], facts["seconds"], kept=True)
    except (OSError, ValueError) as error:
        if (folder / TEACHER).exists():
            warnings.warn(f"run: {str(folder / TEACHER)!r} is damaged ({error}); it is trained anew", stacklevel=4)
        return None
