"""Shows what this process sees of devices and other processes, and trains three steps with them.

  keras-vit doctor                                                 one device
  keras-vit doctor --distribute data                               every device of this process
  torchrun --nproc-per-node 8 -m keras_vit.cli doctor --distribute data

In several processes: start it in each, as the training will be; the first one speaks for all.
"""

import json
import os
import platform
import time

import keras
import numpy as np
from rich.table import Table

from keras_vit.checks import check_choice
from keras_vit.cli.command import Parser
from keras_vit.data.stream import stream
from keras_vit.machine import machine
from keras_vit.model.config import ViTConfig
from keras_vit.recipes.schema import DISTRIBUTIONS, Recipe, TrainConfig
from keras_vit.terminal import Terminal
from keras_vit.training.distribution.base import check_agreement, gather_texts
from keras_vit.training.distribution.join import join
from keras_vit.training.models import compiled_model

STEPS, IMAGES = 3, 8  # images of a step for each device


def main(arguments):
    parser = Parser("doctor", __doc__)
    parser.add_argument("--distribute", metavar="KIND", default="none", help="none, data or model. Default: none.")
    text = "How long to wait for other processes. Default: %(default)s."
    parser.add_argument("--seconds", metavar="N", type=int, default=TrainConfig.peer_timeout, help=text)
    options = parser.parse_args(arguments)
    check_choice("--distribute", options.distribute, DISTRIBUTIONS)
    distribution = join(options.distribute, options.seconds)
    with distribution.watch():
        return examine(distribution)


def examine(distribution):
    """Prints what each process sees and how three steps go; the exit code."""
    console = Terminal(highlight=False, quiet=not distribution.is_first)
    where = machine()
    ours = {"host": platform.node(), "process": str(os.getpid()), "devices": ", ".join(devices()), **where["versions"]}
    table = Table("", *(f"process {rank}" for rank in range(distribution.processes)), title=f"backend {where['backend']}")
    everyone = [json.loads(text) for text in gather_texts(distribution, json.dumps(ours))]
    for name in ours:
        table.add_row(name, *(each.get(name, "") for each in everyone))
    console.print(table)
    check_agreement(distribution, {f"version of {name}": text for name, text in where["versions"].items() if name != "python"})
    losses, seconds, equal = steps(distribution)
    console.print(f"distribute: {distribution.kind}; devices: {distribution.devices}, processes: {distribution.processes}")
    console.print(f"losses of {STEPS} steps: {', '.join(f'{loss:.6f}' for loss in losses)}; the last took {1000 * seconds:.0f} ms")
    console.print(f"weights after them are {'the same in all processes' if equal else 'NOT the same in all processes'}")
    return 0 if equal else 1


def devices():
    """The devices that the backend sees in this process."""
    if keras.backend.backend() == "jax":
        import jax

        return [f"{device.device_kind} {device.id}" for device in jax.local_devices()]
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return [device.name.rpartition("device:")[2] for device in tf.config.list_logical_devices()]
    import torch

    found = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return found or [str(keras.ops.convert_to_tensor(0.0).device)]


def steps(distribution):
    """The losses of some steps on one made batch, the last one's seconds, and whether all processes end with the same weights."""
    config = ViTConfig(image_size=16, patch_size=4, width=64, depth=2, num_heads=4, mlp_dim=128, num_classes=10)
    train = {"batch_size": IMAGES * distribution.replicas, "distribute": distribution.kind}
    model, _ = compiled_model(Recipe(model=config, train=TrainConfig(**train)), STEPS, distribution=distribution)
    rng, losses = np.random.default_rng(0), Losses()
    index, parts = distribution.part
    count = train["batch_size"]
    images = rng.normal(size=(count, 16, 16, 3)).astype("float32").reshape(parts, -1, 16, 16, 3)[index]
    targets = np.eye(10, dtype="float32")[rng.integers(10, size=count)].reshape(parts, -1, 10)[index]
    with distribution.training():
        shapes = (count // parts, 16, 16, 3), (count // parts, 10)
        batches = distribution.batches(stream(lambda step: (images, targets), 0, None, *shapes))
        model.fit(batches, steps_per_epoch=1, epochs=STEPS, callbacks=[losses], shuffle=False, verbose=0)
    weights = sum(float(np.abs(distribution.array(weight)).sum(dtype=np.float64)) for weight in model.trainable_variables)
    sums = gather_texts(distribution, repr(weights))
    means = [distribution.means({"loss": loss})["loss"] for loss in losses.losses]
    return means, losses.seconds, len(set(sums)) == 1


class Losses(keras.callbacks.Callback):
    """The loss of each step, and the seconds of the last."""

    def __init__(self):
        super().__init__()
        self.losses = []

    def on_epoch_begin(self, epoch, logs=None):
        self.begin = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        self.losses.append(float(logs["loss"]))
        self.seconds = time.perf_counter() - self.begin
