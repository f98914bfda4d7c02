"""All private names of Keras that this library uses, under names of its own.

Each is looked up at import. If one is missing, the public way is taken, after one warning. `pytest -m private` tests both ways:
run it with a newer version of Keras.
"""

import functools
import warnings

import keras
from keras import ops, tree

# What an update of Keras's optimizers consists of. The public way leaves the update to Keras.
OPTIMIZER_NAMES = (
    "_apply_weight_decay",
    "_backend_update_step",
    "_clip_gradients",
    "_get_current_learning_rate",
    "_get_variable_index",
    "_momentums",
    "_use_weight_decay",
    "_velocities",
)
MUON_NAMES = ("_should_use_adamw", "adam_lr_ratio", "adam_velocities", "lr_adjust", "momentums", "muon_a", "muon_b", "muon_c")
MUON_NAMES += ("ns_steps", "rms_rate", "zeropower_via_newtonschulz5")
LAYER_NAMES = ("_flatten_layers",)


def missing_names(cls: type, names: tuple[str, ...]) -> list[str]:
    """Which of `names` a class lacks: they are no attributes of it, and neither constructor nor `build` makes them."""
    made = [name for method in (cls.__init__, cls.build) for name in getattr(method, "__code__", missing_names.__code__).co_names]
    return [f"{cls.__name__}.{name}" for name in names if not hasattr(cls, name) and name not in made]


MISSING = {
    "optimizer": missing_names(keras.optimizers.Adam, OPTIMIZER_NAMES) + missing_names(keras.optimizers.Muon, MUON_NAMES),
    "layer": missing_names(keras.Layer, LAYER_NAMES),
}


@functools.cache
def available(kind: str) -> bool:
    """Whether this Keras has all private names of a kind, a key of `MISSING`; warns once where it has not."""
    if MISSING[kind]:
        names = ", ".join(MISSING[kind])
        warnings.warn(f"Keras {keras.__version__} lacks {names}; the slower public way is taken", stacklevel=2)
    return not MISSING[kind]


def flatten_layers(layer: keras.Layer) -> list[keras.Layer]:
    """A layer and all layers inside it, each once."""
    if available("layer"):
        return layer._flatten_layers()
    found, waiting = {}, [layer]
    while waiting:
        layer = waiting.pop()
        if id(layer) not in found:
            found[id(layer)] = layer
            waiting += [part for part in tree.flatten(list(vars(layer).values())) if isinstance(part, keras.Layer)]
    return list(found.values())


def build_for_workers(model: keras.Model) -> None:
    """Builds losses and metrics of a compiled model, which `fit` then need not do under TensorFlow.

    Keras 3.15 takes a batch for that and averages it over the replicas, which fails with several workers. For use in the strategy's
    scope.
    """
    batch = tuple(
        tree.map_structure(lambda x: keras.KerasTensor((1, *x.shape[1:]), x.dtype), each) for each in (model.input, model.output)
    )
    model._symbolic_build(data_batch=batch)
    model._maybe_symbolic_build = lambda **batch: None


def set_tensor(variable: keras.Variable, tensor) -> None:
    """Gives a variable another PyTorch parameter, of any kind and on any device, not only another value."""
    variable._value = tensor


def set_parameters(layer: keras.Layer, parameters) -> None:
    """Gives a layer another `ParameterDict` under PyTorch. Keras's own lists the variables of all sublayers too."""
    layer._torch_params = parameters


class MuonHooks:
    """Mixin before Keras's Muon: it takes the kernels of convolutions too, as matrices (height · width · inputs, outputs).

    That is how Muon's author trains convolutions ('Muon: An optimizer for hidden layers in neural networks', 2024). Keras leaves
    them to AdamW.
    """

    def takes(self, variable: keras.Variable) -> bool:
        """Whether Muon, not AdamW, updates a variable."""
        return len(variable.shape) == 4 or not super()._should_use_adamw(variable)

    def _should_use_adamw(self, variable):
        return not self.takes(variable)

    def zeropower_via_newtonschulz5(self, x, steps):
        return ops.reshape(super().zeropower_via_newtonschulz5(ops.reshape(x, (-1, x.shape[-1])), steps), x.shape)

    def lr_adjust(self, x):
        return ops.reshape(super().lr_adjust(ops.reshape(x, (-1, x.shape[-1]))), x.shape)


class OptimizerHooks:
    """Mixin, listed before one of Keras's optimizers among the bases: the parts of an update, to call and to override.

    For use only if `available("optimizer")`.
    """

    def apply(self, grads, trainable_variables=None):
        """One step, with gradients that TensorFlow's replicas have summed: Keras sums them later, after clipping each replica's."""
        if keras.backend.backend() == "tensorflow":
            import tensorflow as tf

            if tf.distribute.has_strategy():
                grads = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, list(grads))
        super().apply(grads, trainable_variables)

    def _all_reduce_sum_gradients(self, grads_and_vars):
        return grads_and_vars

    def clip(self, gradients: list) -> list:
        """The gradients with bounded norms."""
        return super()._clip_gradients(gradients)

    def decay(self, variables: list[keras.Variable]) -> None:
        """Decays the weights, before the update."""
        super()._apply_weight_decay(variables)

    def update(self, gradients: list, variables: list[keras.Variable], learning_rate) -> None:
        """Updates weights and moments."""
        super()._backend_update_step(gradients, variables, learning_rate)

    def rate(self):
        """The learning rate of this step."""
        return super()._get_current_learning_rate()

    def is_decayed(self, variable: keras.Variable) -> bool:
        """Whether a variable decays, that is, `exclude_from_weight_decay` has not excluded it."""
        return self._use_weight_decay(variable)

    def place(self, variable: keras.Variable) -> int:
        """The place of a variable among those that the optimizer was built for."""
        return self._get_variable_index(variable)

    def adam_moments(self, variable: keras.Variable) -> tuple[keras.Variable, keras.Variable]:
        """First and second moment of a variable, of Keras's Adam."""
        return self._momentums[self.place(variable)], self._velocities[self.place(variable)]

    def _clip_gradients(self, grads):
        return self.clip(grads)

    def _apply_weight_decay(self, variables):
        self.decay(variables)

    def _backend_update_step(self, grads, trainable_variables, learning_rate):
        self.update(grads, trainable_variables, learning_rate)

    def _get_current_learning_rate(self):
        return self.rate()
