"""Keras's Adam and Muon in fewer, larger operations; the numbers are equal up to rounding.

Keras updates one weight at a time. `tests/private/test_private_keras.py` compares these optimizers with Keras's own.
"""

import functools
import math

import keras
from keras import ops

from keras_vit.machine import accelerator
from keras_vit.private.keras import MuonHooks, OptimizerHooks, available

LONG = 2  # columns of a matrix to its rows


def backend_class(kind: type) -> type:
    """The class of a Keras optimizer's instances; under PyTorch it is another class than `kind`."""
    return type(kind())


@functools.cache
def fused_adam() -> type:
    """Keras's Adam in one pass over each weight instead of ten; its decay is decoupled, as in AdamW.

    TensorFlow: the backend's own operation. PyTorch on a CPU: its fused Adam. JAX: Keras's own, which XLA fuses by itself.
    """
    backend = keras.backend.backend()
    if backend == "jax" or not available("optimizer"):
        return keras.optimizers.Adam
    kind = backend_class(keras.optimizers.Adam)
    return tensorflow_adam(kind) if backend == "tensorflow" else torch_adam(kind)


@functools.cache
def fused_muon() -> type:
    """Keras's Muon, for convolutions too; it updates all matrices of one shape at once and computes its learning rate once a step.

    Keras updates one matrix at a time; a model has dozens, and each takes five iterations of three small matmuls.
    """
    kind = backend_class(keras.optimizers.Muon)
    if not available("optimizer"):
        return type("ConvolutionMuon", (MuonHooks, kind), {})
    return torch_muon(kind) if keras.backend.backend() == "torch" else muon(kind)


class SharedDecay(OptimizerHooks):
    """Mixin: the decay evaluates the schedule once a step, not once for each weight."""

    def decay(self, variables):
        rate = self.rate()
        for variable in variables:
            decay = self.decay_of(variable)
            if decay and self.is_decayed(variable):
                self.assign(variable, variable * (1 - decay * rate))

    def decay_of(self, variable):
        return self.weight_decay


def is_distributed():
    """Whether TensorFlow trains several replicas, whose gradients Keras then sums."""
    import tensorflow as tf

    return tf.distribute.has_strategy()


def tensorflow_adam(kind):
    import tensorflow as tf

    class FusedAdam(SharedDecay, kind):
        def update(self, gradients, variables, learning_rate):
            if is_distributed():
                return super().update(gradients, variables, learning_rate)
            # Once, not for each weight: tracing all of it took longer than tracing a model.
            step, rate = ops.cast(self.iterations + 1, "float32"), ops.cast(learning_rate, "float32")
            powers = {"beta1_power": self.beta_1**step, "beta2_power": self.beta_2**step}
            settings = {"lr": rate, "beta1": self.beta_1, "beta2": self.beta_2, "epsilon": self.epsilon}
            for gradient, variable in zip(gradients, variables, strict=True):
                momentum, velocity = self.adam_moments(variable)
                kept = {"m": momentum.value.handle, "v": velocity.value.handle}
                tf.raw_ops.ResourceApplyAdam(var=variable.value.handle, grad=gradient, **kept, **powers, **settings)

    return FusedAdam


def muon(kind):
    class FusedMuon(SharedDecay, MuonHooks, kind):
        def decay_of(self, variable):
            return self.weight_decay if self.takes(variable) else self.adam_weight_decay

        def update(self, gradients, variables, learning_rate):
            if keras.backend.backend() == "tensorflow" and is_distributed():
                return super().update(gradients, variables, learning_rate)
            shapes, rest = {}, []
            for gradient, variable in zip(gradients, variables, strict=True):
                members = shapes.setdefault(tuple(sorted(sides(variable))), []) if self.takes(variable) else rest
                members.append((gradient, variable))
            for (_, longer), members in shapes.items():
                gradients, variables = zip(*members, strict=True)
                tall = [rows > columns for rows, columns in map(sides, variables)]
                momentums = [self.momentums[self.place(variable)] for variable in variables]
                updates = [ops.reshape(update, (-1, update.shape[-1])) for update in self.directions(gradients, momentums)]
                updates = [ops.transpose(update) if turn else update for update, turn in zip(updates, tall, strict=True)]
                rate = 1 if self.rms_rate is None else math.sqrt(longer) * self.rms_rate
                updates = ops.unstack(self.zeropower(ops.stack(updates)) * (rate * learning_rate), len(updates))
                updates = [ops.transpose(update) if turn else update for update, turn in zip(updates, tall, strict=True)]
                updates = [ops.reshape(update, variable.shape) for update, variable in zip(updates, variables, strict=True)]
                self.subtract(variables, updates)
            self.update_rest(rest, learning_rate)

        def directions(self, gradients, momentums):
            """Updates the momentums of matrices; returns the updates before they are orthogonalised."""
            for gradient, momentum in zip(gradients, momentums, strict=True):
                self.assign(momentum, self.momentum * momentum + gradient)
            momentums = [momentum.value for momentum in momentums]
            if not self.nesterov:
                return momentums
            return [gradient + self.momentum * momentum for gradient, momentum in zip(gradients, momentums, strict=True)]

        def zeropower(self, x):
            """Approximate polar factor of each matrix (n, R, C), R <= C, by Keras's Newton-Schulz iterations.

            With G = x x' an iteration is x = p x, p = a I + b G + c G^2, after which G is p G p. For long matrices on a processor,
            multiplies the small p first and x once: a third of the time where C is 9 R. Not on accelerators: with factors of ten
            bits (TF32) G can lose positivity, and then grows.
            """
            x = x / (self.norms(x) + 1e-7)
            if x.shape[2] < LONG * x.shape[1] or accelerator():
                for _ in range(self.ns_steps):
                    x = self.polynomial(self.gram(x)) @ x
                return x
            gram = self.gram(x)
            product = factor = self.polynomial(gram)
            for _ in range(self.ns_steps - 1):
                gram = factor @ gram @ factor
                factor = self.polynomial(gram)
                product = factor @ product
            return product @ x

        def norms(self, x):
            return ops.norm(x, axis=(-2, -1), keepdims=True)

        def gram(self, x):
            return x @ ops.transpose(x, (0, 2, 1))  # (n, R, R)

        def polynomial(self, gram):
            return self.muon_a * ops.eye(gram.shape[1], dtype=gram.dtype) + self.muon_b * gram + self.muon_c * (gram @ gram)

        def subtract(self, variables, updates):
            for variable, update in zip(variables, updates, strict=True):
                self.assign_sub(variable, update)

        def update_rest(self, rest, learning_rate):
            """Updates all other variables by AdamW."""
            for gradient, variable in rest:
                self.update_step(gradient, variable, learning_rate)

    return FusedMuon


def sides(variable):
    """Rows and columns of a matrix, or of a convolution's kernel as one."""
    return math.prod(variable.shape[:-1]), variable.shape[-1]


def torch_adam(kind):
    import torch

    from keras_vit.private import torch as private

    class FusedAdam(torch_clipping(), kind):
        @torch.no_grad()
        def update(self, gradients, variables, learning_rate):
            if variables[0].value.device.type != "cpu" or not private.available("adam"):
                return super().update(gradients, variables, learning_rate)
            moments = zip(*(self.adam_moments(variable) for variable in variables), strict=True)
            settings = self.beta_1, self.beta_2, self.epsilon
            torch_adam_step(gradients, variables, *moments, self.iterations, learning_rate, *settings)

    return FusedAdam


def torch_muon(kind):
    import torch

    from keras_vit.private import torch as private

    class FusedMuon(torch_clipping(), muon(kind)):
        """`FusedMuon` in few calls, each for many matrices."""

        @torch.no_grad()
        def decay(self, variables):
            rate, decayed = self.rate(), {}
            for variable in variables:
                decay = self.decay_of(variable)
                if decay and self.is_decayed(variable):
                    decayed.setdefault(decay, []).append(variable.value)
            for decay, weights in decayed.items():
                private.scale(weights, 1 - decay * rate)

        @torch.no_grad()
        def update(self, gradients, variables, learning_rate):
            super().update(gradients, variables, learning_rate)

        def directions(self, gradients, momentums):
            momentums = [momentum.value for momentum in momentums]
            private.scale(momentums, self.momentum)
            private.add(momentums, gradients)
            return private.plus(gradients, momentums, self.momentum) if self.nesterov else momentums

        def norms(self, x):
            return torch.linalg.matrix_norm(x, keepdim=True)

        def gram(self, x):
            return x @ x.mT

        def polynomial(self, gram):
            identity = torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device)
            return torch.baddbmm(gram, gram, gram, beta=self.muon_b, alpha=self.muon_c) + self.muon_a * identity

        def subtract(self, variables, updates):
            private.subtract([variable.value for variable in variables], updates)

        def update_rest(self, rest, learning_rate):
            # On an accelerator, reading step and rate would wait for the device.
            if not rest or rest[0][0].device.type != "cpu" or not private.available("adam"):
                return super().update_rest(rest, learning_rate)
            gradients, variables = zip(*rest, strict=True)
            moments = [[kept[self.place(variable)] for variable in variables] for kept in (self.momentums, self.adam_velocities)]
            settings = self.adam_beta_1, self.adam_beta_2, self.epsilon
            torch_adam_step(gradients, variables, *moments, self.iterations, learning_rate * self.adam_lr_ratio, *settings)

    return FusedMuon


@functools.cache
def torch_clipping() -> type:
    """Mixin under PyTorch: clips all gradients in a few calls instead of five calls for each."""
    import torch

    from keras_vit.private import torch as private

    class FusedClipping(OptimizerHooks):
        def clip(self, gradients):
            if not self.global_clipnorm:
                return super().clip(gradients)
            norm = torch.linalg.vector_norm(torch.stack(private.norms(gradients)))
            scale = self.global_clipnorm / norm.clamp(min=self.global_clipnorm) + (norm - norm)  # NaN where the norm is infinite
            return private.scaled(gradients, scale)

    return FusedClipping


def torch_adam_step(gradients, variables, momentums, velocities, iterations, learning_rate, beta_1, beta_2, epsilon):
    """One step of Keras's Adam by PyTorch's fused one."""
    from keras_vit.private.torch import adam_step

    step = int(iterations)
    weights, momentums, velocities = ([variable.value for variable in kept] for kept in (variables, momentums, velocities))
    # Keras adds epsilon to the root of the uncorrected second moment, PyTorch to that of the corrected one.
    epsilon /= math.sqrt(1 - beta_2 ** (step + 1))
    settings = {"step": step, "learning_rate": float(learning_rate), "beta_1": beta_1, "beta_2": beta_2, "epsilon": epsilon}
    adam_step(weights, gradients, momentums, velocities, **settings)
