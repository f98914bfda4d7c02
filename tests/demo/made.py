"""Runs with random weights."""

import dataclasses

NAMES = ["<img src=x onerror=alert(1)>", "a, b", "two\nlines", "${1+1} {{7}}", "dog", "confidences", "[x](http://example.com)"]
SHAPE = {"image_size": [12, 16], "patch_size": 4, "width": 16, "depth": 2, "num_heads": 2, "mlp_dim": 16, "channels": 3}


def make_run(path, names=NAMES, **settings):
    """A run folder with random weights; its data is gone."""
    import keras_vit
    from keras_vit.parity import randomise
    from keras_vit.recipes.parse import load_recipe
    from keras_vit.runs.folder import RunFolder

    recipe = load_recipe("digits", model=SHAPE, mean=[0.5, 0.4, 0.3], std=[0.2, 0.3, 0.4], **settings)
    run = RunFolder.create(path, recipe)
    run.write_model(1, randomise(keras_vit.build_vit(dataclasses.replace(recipe.model, num_classes=len(names)))))
    run.write_summary({"class_names": names, "temperature": 2.5})
    return run
