"""How fast a recipe trains on this machine, measured."""

from keras import ops

from keras_vit.data.dataset import training_batches
from keras_vit.training.callbacks import Clock


def training_rate(model, data, recipe):
    """Images a second that a compiled model trains with; leaves the model as it was, but compiled for `fit`."""
    variables = [*model.variables, *model.optimizer.variables]
    before = [ops.convert_to_numpy(variable) for variable in variables]
    settings = stream_settings(recipe, total_steps=10**6)
    batches = training_batches(data.train, recipe.augment, image_size=model.config.image_size, **settings)
    clock = Clock()
    model.fit(batches, steps_per_epoch=10**6, shuffle=False, verbose=0, callbacks=[clock])
    for variable, value in zip(variables, before, strict=True):
        variable.assign(value)
    return clock.steps * recipe.train.batch_size / clock.seconds


def stream_settings(recipe, total_steps):
    """What the training batches of a recipe depend on, besides its data and augmentation."""
    return {
        "num_classes": recipe.model.num_classes,
        "batch_size": recipe.train.batch_size,
        "seed": recipe.seed,
        "mean": recipe.mean,
        "std": recipe.std,
        "total_steps": total_steps,
    }
