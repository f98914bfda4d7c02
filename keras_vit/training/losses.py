"""Losses of a training, the weights of the classes in them, and what is measured beside them.

Shapes: B images of a batch, K classes.
"""

from collections.abc import Sequence

import keras
import numpy as np
from keras import ops

from keras_vit.checks import unknown
from keras_vit.data.dataset import DataSet
from keras_vit.data.labels import class_counts
from keras_vit.recipes.schema import Recipe

SMALLEST = 1e-7  # of 1 - p in the focal loss, whose power has no slope at 0


@keras.saving.register_keras_serializable(package="keras_vit")
class ClassLoss(keras.losses.Loss):
    """The loss of logits (B, K) against targets (B, K), which may be soft: (B,).

    Softmax over the classes: -sum_k w_k t_k (1 - p_k)^gamma log p_k, with gamma = 0 the cross-entropy.
    Each class for itself, p_k a sigmoid: the mean over k of -w_k t_k (1 - p_k)^gamma log p_k - (1 - t_k) p_k^gamma log(1 - p_k),
    with gamma = 0 the binary cross-entropy (as DeiT III, arXiv 2204.07118). A weight w_k thus counts the images that have class k.

    Args:
        binary: Whether each class is a decision for itself.
        gamma: Of the focal loss (arXiv 1708.02002), equation 4; 0 = none.
        weights: w, numbers (K,); None = 1.
    """

    def __init__(self, binary: bool, gamma: float = 0.0, weights: Sequence[float] | None = None, name: str = "loss"):
        super().__init__(name=name)
        self.binary, self.gamma = binary, gamma
        self.weights = weights

    def get_config(self):
        weights = None if self.weights is None else [float(weight) for weight in self.weights]
        return {"binary": self.binary, "gamma": self.gamma, "weights": weights, "name": self.name}

    def call(self, targets, logits):
        counted = targets if self.weights is None else targets * ops.convert_to_tensor(self.weights, targets.dtype)
        if not self.binary:
            likelihood = ops.log_softmax(logits)
            part = counted * likelihood
            if self.gamma:
                part = part * ops.maximum(1 - ops.exp(likelihood), SMALLEST) ** self.gamma
            return -ops.sum(part, axis=-1)
        likelihood, rest = ops.log_sigmoid(logits), ops.log_sigmoid(-logits)  # log p, log(1 - p)
        present, absent = counted * likelihood, (1 - targets) * rest
        if self.gamma:
            present, absent = present * ops.exp(self.gamma * rest), absent * ops.exp(self.gamma * likelihood)
        return -ops.mean(present + absent, axis=-1)


@keras.saving.register_keras_serializable(package="keras_vit")
class DistillLoss(keras.losses.Loss):
    """The loss of logits against targets of labels and of a teacher, side by side (B, 2K): (B,).

    (1 - weight) label_loss(labels, z) + weight T^2 cross-entropy(teacher, z' / T), as arXiv 1503.02531, section 2; z and z' are the
    same logits (B, K), or those of a class token and of a distillation token side by side (B, 2K), as arXiv 2012.12877.

    Args:
        label_loss: The loss against the labels alone.
        num_classes: K.
        weight: Share of the teacher, 0 to 1.
        temperature: T.
        binary: Whether each class is a decision for itself.
    """

    def __init__(self, label_loss, num_classes, weight, temperature, binary, name="loss"):
        super().__init__(name=name)
        self.label_loss = label_loss
        self.num_classes, self.weight, self.temperature, self.binary = num_classes, weight, temperature, binary
        self.teacher_loss = ClassLoss(binary)

    def get_config(self):
        names = ("num_classes", "weight", "temperature", "binary", "name")
        return {"label_loss": keras.losses.serialize(self.label_loss), **{name: getattr(self, name) for name in names}}

    @classmethod
    def from_config(cls, config):
        return cls(**{**config, "label_loss": keras.losses.deserialize(config["label_loss"])})

    def call(self, targets, logits):
        labels, teacher = targets[:, : self.num_classes], targets[:, self.num_classes :]
        own = self.label_loss.call(labels, logits[:, : self.num_classes])
        taught = self.teacher_loss.call(teacher, logits[:, -self.num_classes :] / self.temperature)
        return (1 - self.weight) * own + self.weight * self.temperature**2 * taught


@keras.saving.register_keras_serializable(package="keras_vit")
class LabelAccuracy(keras.metrics.CategoricalAccuracy):
    """The accuracy by the labels, where targets or logits of K classes may stand beside others; of two heads that of their mean.

    Args:
        num_classes: K.
    """

    def __init__(self, num_classes, name="accuracy", dtype=None):
        super().__init__(name=name, dtype=dtype)
        self.num_classes = num_classes

    def get_config(self):
        return {"num_classes": self.num_classes, "name": self.name, "dtype": self.dtype}

    def update_state(self, y_true, y_pred, sample_weight=None):
        logits = y_pred[:, : self.num_classes] + y_pred[:, -self.num_classes :]  # twice the same, or both heads
        return super().update_state(y_true[:, : self.num_classes], logits, sample_weight)


def make_loss(recipe: Recipe, weights: np.ndarray | None = None) -> keras.losses.Loss:
    """The loss of a recipe against the labels.

    Args:
        recipe: A `Recipe`; `auto` is the cross-entropy, with several labels an image the binary one. Of a pre-training the mean
            squared error of the hidden patches.
        weights: As of `class_weights`.
    """
    if recipe.pretrain:
        return keras.losses.MeanSquaredError()  # over hidden patches alone: they are the model's output
    kind, multi = recipe.train.loss, recipe.labels == "multi"
    gamma = recipe.train.focal_gamma if kind == "focal" else 0.0
    binary = multi or kind == "binary_cross_entropy"
    if not binary and not gamma and weights is None:
        return keras.losses.CategoricalCrossentropy(from_logits=True)
    return ClassLoss(binary, gamma, weights)


def training_loss(recipe: Recipe, weights: np.ndarray | None = None) -> keras.losses.Loss:
    """The loss of a recipe's training batches: with a teacher a `DistillLoss`; arguments as of `make_loss`."""
    loss, config = make_loss(recipe, weights), recipe.distill
    if not config.teacher:
        return loss
    binary = recipe.labels == "multi" or recipe.train.loss == "binary_cross_entropy"
    return DistillLoss(loss, recipe.model.num_classes, config.weight, config.temperature, binary)


def make_metrics(recipe: Recipe) -> list[keras.metrics.Metric]:
    """What is measured on the training batches: the accuracy, where an image has one class."""
    return [] if recipe.labels == "multi" or recipe.pretrain else [LabelAccuracy(recipe.model.num_classes)]


def class_weights(config: str | dict[str, float], data: DataSet) -> np.ndarray | None:
    """The weight of each class (K,) in the loss; None if all weigh the same.

    Args:
        config: `TrainConfig.class_weights`. Balanced weights are N / (K * images of the class), as scikit-learn's; N counts an
            image for each of its classes.
        data: The `DataSet`.

    Raises:
        ValueError: For a name that is no class.
    """
    if config == "none":
        return None
    if config == "balanced":
        counts = class_counts(data.train.labels, len(data.class_names))
        return counts.sum() / (len(counts) * np.maximum(counts, 1))
    for name in config:
        if name not in data.class_names:
            raise ValueError(unknown("class_weights", name, data.class_names))
    return np.array([config.get(name, 1.0) for name in data.class_names])
