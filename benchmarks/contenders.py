"""Vision Transformers of this and other projects, each in a process of its own. `throughput.py` lets them take turns.

    python benchmarks/contenders.py timm '{"image_size": 32, ...}'      # then {"do": "train", "steps": 3} and so on, a line each

Each is built, trained (AdamW, learning rate 1e-3, weight decay 0.05, cross-entropy) and asked as its own documentation shows.
Every step takes its batch from NumPy arrays in memory, as from any input pipeline.
"""

import contextlib
import importlib.util
import json
import resource
import runpy
import sys
import time
from pathlib import Path

import numpy as np

from keras_vit.export.runtimes import serve

ROOT = Path(__file__).resolve().parents[1]
LEARNING_RATE, WEIGHT_DECAY, CLASSES = 1e-3, 0.05, 10
BACKENDS = ("torch", "tensorflow", "jax")
PRODUCT = 2048  # rows and columns of the matrix product whose rate counts as the machine's peak
WARM_STEPS = 2
MERGED = {32: 4, 224: 12}  # tokens that each block merges, of 64 and 196 patches, by image size


class Contender:
    """A model that trains and predicts.

    Args:
        task: `image_size`, `patch_size`, `width`, `depth`, `num_heads`, `batch_size`, `precision` (float32 or bfloat16),
            `training` (whether it is to be trained), `folder` (where an export may be written).

    Attributes:
        modes: The comparisons in which it takes part.
    """

    modes = ("train", "infer")

    def __init__(self, task):
        self.__dict__.update(task)
        rng = np.random.default_rng(0)
        self.images = rng.standard_normal((self.batch_size, self.image_size, self.image_size, 3)).astype("float32")
        self.labels = rng.integers(0, CLASSES, self.batch_size)
        self.build()

    def train(self, steps):
        """Seconds that the steps took, and the peak memory of the process."""
        return {"seconds": self.train_steps(steps), **memory()}

    def infer(self, batches, batch_size):
        """Seconds that the batches took, and the peak memory of the process."""
        images = np.resize(self.images, (batch_size, *self.images.shape[1:]))
        self.predict(images)
        before = time.perf_counter()
        for _ in range(batches):
            self.predict(images)
        return {"seconds": time.perf_counter() - before, **memory()}

    def train_steps(self, steps):
        before = time.perf_counter()
        for _ in range(steps):
            self.step()
        self.wait()
        return time.perf_counter() - before

    def first_step(self):
        self.train_steps(1)

    def wait(self):
        """Waits until the steps that were started are done."""


class Torch(Contender):
    """A module and a loop as PyTorch's tutorials have it."""

    compiled = False

    def build(self):
        import torch

        self.torch = torch
        torch.set_float32_matmul_precision("highest")
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.module = self.make().to(self.device)
        self.run = torch.compile(self.module) if self.compiled else self.module
        self.optimizer = torch.optim.AdamW(self.module.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)

    def put(self, images):
        images = self.torch.from_numpy(images).to(self.device, non_blocking=True)
        return images.permute(0, 3, 1, 2)

    def cast(self):
        on = self.precision == "bfloat16"
        return self.torch.autocast(self.device, self.torch.bfloat16) if on else contextlib.nullcontext()

    def step(self):
        labels = self.torch.from_numpy(self.labels).to(self.device)
        self.optimizer.zero_grad(set_to_none=True)
        with self.cast():
            logits = self.logits(self.put(self.images))
            loss = self.torch.nn.functional.cross_entropy(logits, labels)
        loss.backward()
        self.optimizer.step()

    def logits(self, images):
        return self.run(images)

    def predict(self, images):
        self.module.eval()
        with self.torch.inference_mode(), self.cast():
            logits = self.logits(self.put(images)).float().cpu().numpy()
        self.module.train()
        return logits

    def wait(self):
        if self.device == "cuda":
            self.torch.cuda.synchronize()

    def product(self):
        """FLOP/s of a matrix product in the task's precision: PyTorch's own, or oneDNN's where that is faster."""
        kind = getattr(self.torch, self.precision)
        a = self.torch.randn(PRODUCT, PRODUCT, device=self.device, dtype=kind)
        products = [lambda: a @ a]
        if self.device == "cpu" and self.torch.backends.mkldnn.is_available():
            products.append(lambda: self.torch.ops.mkldnn._linear_pointwise(a, a, None, "none", [], ""))
        count, best = 4 if self.device == "cpu" else 100, 1e9
        for product in 4 * products:
            self.wait()
            before = time.perf_counter()
            for _ in range(count):
                product()
            self.wait()
            best = min(best, (time.perf_counter() - before) / count)
        return {"flops": 2 * PRODUCT**3 / best}


class Timm(Torch):
    def make(self):
        from timm.models.vision_transformer import VisionTransformer

        return VisionTransformer(
            img_size=self.image_size,
            patch_size=self.patch_size,
            embed_dim=self.width,
            depth=self.depth,
            num_heads=self.num_heads,
            num_classes=CLASSES,
        )


class TimmCompiled(Timm):
    compiled = True


class Transformers(Torch):
    def make(self):
        from transformers import ViTConfig, ViTForImageClassification

        config = ViTConfig(
            image_size=self.image_size,
            patch_size=self.patch_size,
            hidden_size=self.width,
            num_hidden_layers=self.depth,
            num_attention_heads=self.num_heads,
            intermediate_size=4 * self.width,
            num_labels=CLASSES,
        )
        return ViTForImageClassification(config)

    def logits(self, images):
        return self.run(images).logits


class VitPytorch(Torch):
    def make(self):
        from vit_pytorch import ViT

        return ViT(
            image_size=self.image_size,
            patch_size=self.patch_size,
            num_classes=CLASSES,
            dim=self.width,
            depth=self.depth,
            heads=self.num_heads,
            dim_head=self.width // self.num_heads,
            mlp_dim=4 * self.width,
        )


class Keras(Contender):
    """A Keras model in `model.fit`."""

    def build(self):
        import keras

        self.keras = keras
        self.targets = np.eye(CLASSES, dtype="float32")[self.labels]
        self.make()

    def dataset(self):
        import tensorflow as tf  # keras-hub makes tf.data of whatever it is given, under every backend

        return tf.data.Dataset.from_tensors((self.images, self.targets)).repeat()

    def first_step(self):
        self.model.train_on_batch(self.images, self.targets)

    def train_steps(self, steps):
        clock = make_clock(self.keras)()
        self.model.fit(self.dataset(), steps_per_epoch=WARM_STEPS + steps, callbacks=[clock], verbose=0, shuffle=False)
        return clock.seconds

    def predict(self, images):
        return np.asarray(self.model.predict_on_batch(images))


def make_clock(keras):
    class Clock(keras.callbacks.Callback):
        """Times the steps of an epoch after the first few, so that the start of `fit` does not count."""

        async_safe = True  # looks at two steps only, so that Keras need not wait for the others

        def on_train_batch_end(self, batch, logs=None):
            if batch == WARM_STEPS - 1:
                float(logs["loss"])
                self.started = time.perf_counter()

        def on_epoch_end(self, epoch, logs=None):
            self.seconds = time.perf_counter() - self.started  # with the logs, all steps are done

    return Clock


def keras_vit_config(task, **settings):
    from keras_vit import ViTConfig

    names = ("image_size", "patch_size", "width", "depth", "num_heads")
    return ViTConfig(**{name: task[name] for name in names}, mlp_dim=4 * task["width"], num_classes=CLASSES, **settings)


class KerasVit(Keras):
    merging = remat = False

    def make(self):
        import keras_vit
        from keras_vit.machine import tune
        from keras_vit.recipes.schema import TrainConfig
        from keras_vit.training.models import POLICIES, compile_model
        from keras_vit.training.optimizer import make_optimizer

        tune()
        config = keras_vit_config(vars(self), merge_tokens=self.merging * MERGED[self.image_size])
        settings = TrainConfig(batch_size=self.batch_size, weight_decay=WEIGHT_DECAY, clip_norm=0, schedule="constant")
        self.model = keras_vit.build_vit(config, dtype=POLICIES[self.precision], remat=self.remat)
        compile_model(self.model, make_optimizer(settings, 10**6), settings.jit)

    def dataset(self):
        from keras_vit.data.stream import stream

        batch = np.asarray(self.images), np.asarray(self.targets)
        return stream(lambda step: batch, 0, None, batch[0].shape, batch[1].shape)


class KerasVitMerging(KerasVit):
    merging, modes = True, ("infer",)


class KerasVitRemat(KerasVit):
    remat, modes = True, ("train",)


class Exported(Contender):
    """A model of this project that was exported, in the runtime of its format."""

    format, quantization, merging, modes = None, "float32", False, ("infer",)

    @classmethod
    def write(cls, task):
        """Exports a model with random weights into the task's folder."""
        import keras_vit

        model = keras_vit.build_vit(keras_vit_config(task, merge_tokens=cls.merging * MERGED[task["image_size"]]))
        shape = (64, *model.config.image_shape)
        images = np.random.default_rng(0).integers(256, size=shape).astype("uint8")
        settings = {"precision": cls.quantization, "mean": 0.5, "std": 0.5, "images": images, "threshold": 1e9}
        keras_vit.export_model(model, task["folder"], cls.format, **settings)

    def build(self):
        from keras_vit.export.runtimes import Worker

        self.images = (self.images * 64 + 128).clip(0, 255).astype("uint8")
        self.predict = Worker(self.format, self.folder, 0).run


class KerasHub(Keras):
    def make(self):
        import keras_hub

        if self.precision == "bfloat16":
            self.keras.config.set_dtype_policy("mixed_bfloat16")
        backbone = keras_hub.models.ViTBackbone(
            image_shape=(self.image_size, self.image_size, 3),
            patch_size=self.patch_size,
            num_layers=self.depth,
            num_heads=self.num_heads,
            hidden_dim=self.width,
            mlp_dim=4 * self.width,
            dropout_rate=0.0,
            attention_dropout=0.0,
        )
        self.model = keras_hub.models.ViTImageClassifier(backbone, CLASSES, preprocessor=None)
        self.model.compile(
            self.keras.optimizers.AdamW(LEARNING_RATE, weight_decay=WEIGHT_DECAY),
            loss=self.keras.losses.CategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
        )


class Flax(Contender):
    """A ViT of Flax's own layers and an optax step, written as Flax's documentation has it."""

    def build(self):
        import flax.linen as nn
        import jax
        import jax.numpy as jnp
        import optax

        self.jax, kind = jax, jnp.dtype(self.precision)
        task = self

        class Block(nn.Module):
            @nn.compact
            def __call__(self, x):
                y = nn.LayerNorm(dtype=kind)(x)
                x = x + nn.MultiHeadDotProductAttention(task.num_heads, dtype=kind)(y, y)
                y = nn.Dense(4 * task.width, dtype=kind)(nn.LayerNorm(dtype=kind)(x))
                return x + nn.Dense(task.width, dtype=kind)(nn.gelu(y))

        class ViT(nn.Module):
            @nn.compact
            def __call__(self, x):
                patch = (task.patch_size, task.patch_size)
                x = nn.Conv(task.width, patch, strides=patch, padding="VALID", dtype=kind)(x)
                x = x.reshape(x.shape[0], -1, task.width)
                token = self.param("cls", nn.initializers.zeros, (1, 1, task.width))
                x = jnp.concatenate([jnp.tile(token.astype(x.dtype), (x.shape[0], 1, 1)), x], axis=1)
                x = x + self.param("position", nn.initializers.normal(0.02), (1, *x.shape[1:])).astype(x.dtype)
                for _ in range(task.depth):
                    x = Block()(x)
                return nn.Dense(CLASSES)(nn.LayerNorm()(x)[:, 0])

        model, optimizer = ViT(), optax.adamw(LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        self.parameters = jax.jit(model.init)(jax.random.key(0), self.images)
        self.state = jax.jit(optimizer.init)(self.parameters)

        def loss(parameters, images, labels):
            return optax.softmax_cross_entropy_with_integer_labels(model.apply(parameters, images), labels).mean()

        def update(parameters, state, images, labels):
            gradients = jax.grad(loss)(parameters, images, labels)
            updates, state = optimizer.update(gradients, state, parameters)
            return optax.apply_updates(parameters, updates), state

        self.update = jax.jit(update, donate_argnums=(0, 1))
        self.apply = jax.jit(model.apply)

    def step(self):
        self.parameters, self.state = self.update(self.parameters, self.state, self.images, self.labels)

    def wait(self):
        self.jax.block_until_ready(self.parameters)

    def predict(self, images):
        return np.asarray(self.apply(self.parameters, images), "float32")


# Name: class, packages that it needs, environment.
CONTENDERS = {
    "timm": (Timm, ("timm",), {}),
    "timm, compiled": (TimmCompiled, ("timm",), {}),
    "transformers": (Transformers, ("transformers",), {}),
    "vit-pytorch": (VitPytorch, ("vit_pytorch",), {}),
    "flax": (Flax, ("flax", "optax"), {}),
    **{
        f"{name}, {backend}": (kind, (*packages, backend), {"KERAS_BACKEND": backend})
        for name, kind, packages in (("keras-hub", KerasHub, ("keras_hub",)), ("keras_vit", KerasVit, ()))
        for backend in BACKENDS
    },
    # Gradient checkpointing: less memory, more time.
    **{f"keras_vit remat, {backend}": (KerasVitRemat, (backend,), {"KERAS_BACKEND": backend}) for backend in BACKENDS},
    # These only predict. int8 and merged tokens change the outputs a little; benchmarks/README.md has what that costs.
    **{f"keras_vit merging, {backend}": (KerasVitMerging, (backend,), {"KERAS_BACKEND": backend}) for backend in BACKENDS},
    **{
        ", ".join(("export", *words)): (
            type("Export", (Exported,), {"format": words[0], "quantization": quantization, "merging": "merging" in words}),
            packages,
            {"KERAS_BACKEND": "tensorflow" if words[0] in ("litert", "tf_saved_model") else "torch"},
        )
        for words, quantization, packages in (
            (("litert",), "float32", ("tensorflow",)),
            (("litert", "int8"), "int8", ("tensorflow",)),
            (("litert", "int8", "merging"), "int8", ("tensorflow",)),
            (("onnx",), "float32", ("torch", "onnx", "onnxruntime")),
            (("onnx", "int8"), "int8", ("torch", "onnx", "onnxruntime")),
            (("openvino",), "float32", ("torch", "openvino")),
            (("openvino", "merging"), "float32", ("torch", "openvino")),
            (("openvino", "int8"), "int8", ("torch", "openvino")),
            (("torch",), "float32", ("torch",)),
            (("torch", "bfloat16"), "bfloat16", ("torch",)),
        )
    },
}


def missing(name):
    """Packages that a contender needs and that are not installed."""
    return [package for package in CONTENDERS[name][1] if importlib.util.find_spec(package) is None]


def memory():
    return {"memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10}


def mend_torchvision():
    """Lets timm import a torchvision that was built for another PyTorch: the tests declare the operators that it lacks."""
    peers = ROOT / "tests" / "peers.py"
    if peers.is_file() and importlib.util.find_spec("pytest"):
        sys.modules["peers"] = runpy.run_path(str(peers))  # kept: what it declares ends with it


def start(name, task):
    """The contender after its first step, and the seconds from the import of its libraries to the end of that step."""
    kind, packages, environment = CONTENDERS[name]
    if issubclass(kind, Torch):
        mend_torchvision()
    for package in (*packages, *(["keras"] if environment else [])):
        __import__(package)
    if issubclass(kind, Exported):
        kind.write(task)
    before = time.perf_counter()
    contender = kind(task)
    if task["training"]:
        contender.first_step()
    else:
        contender.predict(contender.images)
    return contender, {"first": time.perf_counter() - before}


if __name__ == "__main__":
    serve(lambda: start(sys.argv[1], json.loads(sys.argv[2])))
