"""The optimizer of a recipe: Keras's own, with the schedule, the decay and the averaging that a Vision Transformer wants."""

import functools
import math

import keras
from keras import ops

from keras_vit.model.layers import NO_DECAY
from keras_vit.recipes.schema import TrainConfig


def make_optimizer(config: TrainConfig, total_steps: int, factors: dict[str, float] | None = None) -> keras.optimizers.Optimizer:
    """The Keras optimizer of a `TrainConfig`.

    Weight decay spares the variables of `keras_vit.layers.NO_DECAY`. The averaged weights are Keras's own EMA. Where
    gradients are accumulated, Keras moves schedule and EMA at every step, not at every update: the schedule is therefore
    counted in steps, and the EMA's decay is spread over the steps of an update.

    Args:
        config: The `TrainConfig`.
        total_steps: Steps of the whole training, before accumulation.
        factors: What the learning rate of each variable is multiplied by, {path: factor}; None = 1 for all. Decay is scaled too.
    """
    schedule = WarmupSchedule(config.learning_rate, *lengths(config, total_steps), config.schedule == "cosine")
    settings = {
        "learning_rate": schedule,
        "weight_decay": None if config.optimizer == "adam" else config.weight_decay or None,
        "global_clipnorm": config.clip_norm or None,
        "use_ema": config.ema > 0,
        "ema_momentum": config.ema ** (1 / config.accumulate),
        "gradient_accumulation_steps": config.accumulate if config.accumulate > 1 else None,
    }
    betas = {"beta_1": config.beta_1, "beta_2": config.beta_2}
    if config.optimizer == "sgd":
        kind = keras.optimizers.SGD
        settings |= {"momentum": config.beta_1, "nesterov": config.beta_1 > 0}
    elif config.optimizer == "lion":
        kind = keras.optimizers.Lion
        settings |= betas
    elif config.optimizer == "muon":
        kind = fused_muon()
        settings |= {f"adam_{name}": value for name, value in betas.items()}
        settings |= {"adam_weight_decay": config.weight_decay or None, "exclude_layers": ["probe$"]}  # a single row, not a matrix
    else:
        kind = fused_adam()
        settings |= betas
    if factors is None:
        optimizer = kind(**settings)
    else:
        optimizer = with_factors(kind)(**settings)
        optimizer.factor_of = lambda variable: factors[variable.path]
    # Keras matches the variable's name, which under TensorFlow is "encoder/position:0" where it is "position" elsewhere.
    optimizer.exclude_from_weight_decay(var_names=[rf"(^|/){name}(:\d+)?$" for name in NO_DECAY])
    schedule.lengths = optimizer.add_variable((2,), name="schedule_lengths")
    set_length(optimizer, config, total_steps)
    return optimizer


def lengths(config, total_steps):
    """Steps of the warmup, and of the whole training."""
    return round(total_steps * min(config.warmup_epochs / config.epochs, 0.5)), total_steps


def set_length(optimizer: keras.optimizers.Optimizer, config: TrainConfig, total_steps: int) -> None:
    """Gives an optimizer of `make_optimizer` another length; what has been compiled of it stays as it is."""
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)  # Keras wraps it for loss scaling
    optimizer._learning_rate.lengths.assign(lengths(config, total_steps))  # no public access in Keras 3.15


class Factors:
    """Mixin in front of a Keras optimizer: each variable is updated and decayed at its own share of the learning rate.

    Keras's own update runs once for each group of variables of one factor, so that clipping, accumulation, averaging and
    loss scaling, which surround it, stay as they are.

    Attributes:
        factor_of: The factor of a variable.
    """

    factor = 1.0  # of the group that is being decayed

    def groups(self, variables):
        """Indices of `variables` by factor."""
        groups = {}
        for index, variable in enumerate(variables):
            groups.setdefault(self.factor_of(variable), []).append(index)
        return groups

    def _backend_update_step(self, grads, trainable_variables, learning_rate):
        for factor, indices in self.groups(trainable_variables).items():
            members = [trainable_variables[index] for index in indices]
            super()._backend_update_step([grads[index] for index in indices], members, learning_rate * factor)

    def _apply_weight_decay(self, variables):
        decayed = [variable for variable in variables if self._use_weight_decay(variable)]
        for factor, indices in self.groups(decayed).items():
            self.factor = factor
            super()._apply_weight_decay([decayed[index] for index in indices])
        self.factor = 1.0

    def _get_current_learning_rate(self):
        return super()._get_current_learning_rate() * self.factor


def backend_class(kind: type) -> type:
    """The class of the objects that a Keras optimizer's class makes: under PyTorch another one."""
    return type(kind())


@functools.cache
def fused_adam() -> type:
    """Keras's Adam, whose decay is decoupled as AdamW's, in one pass over each weight where Keras makes ten.

    Under TensorFlow the backend's own operation, under PyTorch on a processor its fused AdamW. XLA fuses by itself.
    """
    kind, backend = backend_class(keras.optimizers.Adam), keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        class FusedAdam(SharedDecay, kind):
            def _backend_update_step(self, grads, trainable_variables, learning_rate):
                if is_distributed():
                    return super()._backend_update_step(grads, trainable_variables, learning_rate)
                # Once, and not for each weight: tracing all of it took longer than tracing a model.
                step, rate = ops.cast(self.iterations + 1, "float32"), ops.cast(learning_rate, "float32")
                powers = {"beta1_power": self.beta_1**step, "beta2_power": self.beta_2**step}
                settings = {"lr": rate, "beta1": self.beta_1, "beta2": self.beta_2, "epsilon": self.epsilon}
                for gradient, variable in zip(grads, trainable_variables, strict=True):
                    index = self._get_variable_index(variable)
                    kept = {"m": self._momentums[index].value.handle, "v": self._velocities[index].value.handle}
                    tf.raw_ops.ResourceApplyAdam(var=variable.value.handle, grad=gradient, **kept, **powers, **settings)

        return FusedAdam
    if backend == "torch":
        import torch

        class FusedAdam(FusedClipping, kind):
            @torch.no_grad()
            def _backend_update_step(self, grads, trainable_variables, learning_rate):
                if trainable_variables[0].value.device.type != "cpu":
                    return super()._backend_update_step(grads, trainable_variables, learning_rate)
                indices = [self._get_variable_index(variable) for variable in trainable_variables]
                moments = [[kept[index] for index in indices] for kept in (self._momentums, self._velocities)]
                settings = self.beta_1, self.beta_2, self.epsilon
                torch_adam(grads, trainable_variables, *moments, self.iterations, learning_rate, *settings)

        return FusedAdam
    return kind


def is_distributed():
    """Whether TensorFlow trains several replicas, whose gradients Keras then sums."""
    import tensorflow as tf

    return tf.distribute.has_strategy()


class SharedDecay:
    """Mixin in front of a Keras optimizer: decay and schedule are computed once a step, and not for each weight."""

    def _apply_weight_decay(self, variables):
        rate = self._get_current_learning_rate()
        for variable in variables:
            decay = self.decay_of(variable)
            if decay and self._use_weight_decay(variable):
                self.assign(variable, variable * (1 - decay * rate))

    def decay_of(self, variable):
        return self.weight_decay


class FusedClipping:
    """Mixin in front of a Keras optimizer under PyTorch: the gradients are clipped in a few calls, and not in five for each."""

    def _clip_gradients(self, grads):
        import torch

        if not self.global_clipnorm:
            return super()._clip_gradients(grads)
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
        scale = self.global_clipnorm / norm.clamp(min=self.global_clipnorm) + (norm - norm)  # NaN where the norm is infinite
        return torch._foreach_mul(grads, scale)


def torch_adam(gradients, variables, momentums, velocities, iterations, learning_rate, beta_1, beta_2, epsilon):
    """One step of Keras's Adam by PyTorch's fused one."""
    import torch
    from torch.optim.adam import adam

    step = int(iterations)
    values = [[variable.value for variable in kept] for kept in (variables, momentums, velocities)]
    adam(
        values[0],
        [gradient.contiguous() for gradient in gradients],
        *values[1:],
        [],
        list(torch.full((len(variables),), float(step), device=values[0][0].device).unbind()),
        fused=True,
        amsgrad=False,
        beta1=beta_1,
        beta2=beta_2,
        lr=float(learning_rate),
        weight_decay=0.0,
        # Keras adds it to the root of the uncorrected second moment, PyTorch to that of the corrected one.
        eps=epsilon / math.sqrt(1 - beta_2 ** (step + 1)),
        maximize=False,
    )


@functools.cache
def fused_muon() -> type:
    """Keras's Muon, which updates the matrices of one shape in one go and computes its learning rate once a step.

    Keras takes one matrix after the other: a model has dozens, and each is five steps of three small products.
    """
    kind, backend = backend_class(keras.optimizers.Muon), keras.backend.backend()

    class FusedMuon(SharedDecay, kind):
        def decay_of(self, variable):
            return self.adam_weight_decay if self._should_use_adamw(variable) else self.weight_decay

        def _backend_update_step(self, grads, trainable_variables, learning_rate):
            if backend == "tensorflow" and is_distributed():
                return super()._backend_update_step(grads, trainable_variables, learning_rate)
            shapes, rest = {}, []
            for gradient, variable in zip(grads, trainable_variables, strict=True):
                if self.adam_velocities[self._get_variable_index(variable)] is None:  # Muon's
                    shapes.setdefault(tuple(sorted(variable.shape)), []).append((gradient, variable))
                else:
                    rest.append((gradient, variable))
            for (_, longer), members in shapes.items():
                gradients, variables = zip(*members, strict=True)
                tall = [variable.shape[0] > variable.shape[1] for variable in variables]
                momentums = [self.momentums[self._get_variable_index(variable)] for variable in variables]
                updates = self.directions(gradients, momentums)
                updates = [ops.transpose(update) if turn else update for update, turn in zip(updates, tall, strict=True)]
                rate = 1 if self.rms_rate is None else math.sqrt(longer) * self.rms_rate
                updates = ops.unstack(self.zeropower(ops.stack(updates)) * (rate * learning_rate), len(updates))
                updates = [ops.transpose(update) if turn else update for update, turn in zip(updates, tall, strict=True)]
                self.subtract(variables, updates)
            self.update_rest(rest, learning_rate)

        def directions(self, gradients, momentums):
            """Updates the momentums of matrices; returns what is then made orthogonal."""
            for gradient, momentum in zip(gradients, momentums, strict=True):
                self.assign(momentum, self.momentum * momentum + gradient)
            momentums = [momentum.value for momentum in momentums]
            if not self.nesterov:
                return momentums
            return [gradient + self.momentum * momentum for gradient, momentum in zip(gradients, momentums, strict=True)]

        def zeropower(self, x):
            """About the polar factor of each matrix (n, R, C), R <= C, by Newton-Schulz iterations, as Keras's."""
            x = x / (ops.norm(x, axis=(-2, -1), keepdims=True) + 1e-7)
            for _ in range(self.ns_steps):
                gram = ops.matmul(x, ops.transpose(x, (0, 2, 1)))
                x = self.muon_a * x + ops.matmul(self.muon_b * gram + self.muon_c * ops.matmul(gram, gram), x)
            return x

        def subtract(self, variables, updates):
            for variable, update in zip(variables, updates, strict=True):
                self.assign_sub(variable, update)

        def update_rest(self, rest, learning_rate):
            for gradient, variable in rest:
                self.update_step(gradient, variable, learning_rate)

    if backend != "torch":
        return FusedMuon
    import torch

    class TorchMuon(FusedClipping, FusedMuon):
        """In few calls, each for all matrices of a shape."""

        @torch.no_grad()
        def _apply_weight_decay(self, variables):
            rate, decayed = self._get_current_learning_rate(), {}
            for variable in variables:
                decay = self.decay_of(variable)
                if decay and self._use_weight_decay(variable):
                    decayed.setdefault(decay, []).append(variable.value)
            for decay, values in decayed.items():
                torch._foreach_mul_(values, 1 - decay * rate)

        @torch.no_grad()
        def _backend_update_step(self, grads, trainable_variables, learning_rate):
            super()._backend_update_step(grads, trainable_variables, learning_rate)

        def directions(self, gradients, momentums):
            momentums = [momentum.value for momentum in momentums]
            torch._foreach_mul_(momentums, self.momentum)
            torch._foreach_add_(momentums, gradients)
            return torch._foreach_add(gradients, momentums, alpha=self.momentum) if self.nesterov else momentums

        def zeropower(self, x):
            x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
            for _ in range(self.ns_steps):
                gram = x @ x.mT
                x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=self.muon_b, alpha=self.muon_c), x, beta=self.muon_a)
            return x

        def subtract(self, variables, updates):
            torch._foreach_sub_([variable.value for variable in variables], updates)

        def update_rest(self, rest, learning_rate):
            if not rest or rest[0][0].device.type != "cpu":  # reading step and rate would wait for an accelerator
                return super().update_rest(rest, learning_rate)
            gradients, variables = zip(*rest, strict=True)
            indices = [self._get_variable_index(variable) for variable in variables]
            moments = [[kept[index] for index in indices] for kept in (self.momentums, self.adam_velocities)]
            settings = self.adam_beta_1, self.adam_beta_2, self.epsilon
            torch_adam(gradients, variables, *moments, self.iterations, learning_rate * self.adam_lr_ratio, *settings)

    return TorchMuon


@functools.cache
def with_factors(kind: type) -> type:
    """The class of a Keras optimizer with `Factors`."""
    kind = backend_class(kind)
    return type(f"{kind.__name__}WithFactors", (Factors, kind), {})


@keras.saving.register_keras_serializable(package="keras_vit")
class WarmupSchedule(keras.optimizers.schedules.LearningRateSchedule):
    """Linear from zero to `peak` within `warmup` steps, then a cosine to zero at step `total`, or constant.

    Args:
        peak: The largest learning rate.
        warmup: Steps of the warmup; 0 = none.
        total: Steps of the training, the warmup included.
        cosine: Whether the rate falls behind the warmup.
    """

    def __init__(self, peak, warmup, total, cosine=True):
        self.peak = peak
        self.warmup = warmup
        self.total = total
        self.cosine = cosine
        self.lengths = (warmup, total)  # or a variable of the optimizer: then they can change without another compilation

    def __call__(self, step):
        step, (warmup, total) = ops.cast(step, "float32"), (ops.cast(self.lengths[index], "float32") for index in range(2))
        rate = ops.minimum((step + 1) / ops.maximum(warmup, 1.0), 1.0)
        if self.cosine:
            done = (step - warmup) / ops.maximum(total - warmup, 1.0)
            rate = rate * 0.5 * (1 + ops.cos(math.pi * ops.clip(done, 0.0, 1.0)))
        return self.peak * rate

    def get_config(self):
        return {"peak": self.peak, "warmup": self.warmup, "total": self.total, "cosine": self.cosine}
