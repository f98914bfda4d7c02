"""A small run with class names made to harm, and its server in this process."""

import dataclasses

import pytest

import keras_vit
from keras_vit.parity import randomise
from keras_vit.recipes.parse import load_recipe
from keras_vit.runs.folder import RunFolder
from keras_vit.runs.prediction import classifier

NAMES = ["<script>alert(1)</script>", 'a, "b"; c', "line\nbreak"]
SHAPE = {"image_size": (8, 12), "patch_size": 4, "width": 16, "depth": 1, "num_heads": 2, "mlp_dim": 16, "channels": 3}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    recipe = load_recipe("digits", model=SHAPE, mean=[0.5, 0.4, 0.3], std=[0.2, 0.3, 0.4])
    run = RunFolder.create(tmp_path_factory.mktemp("serve") / "my run", recipe)
    run.write_model(1, randomise(keras_vit.build_vit(dataclasses.replace(recipe.model, num_classes=3))))
    run.write_summary({"class_names": NAMES, "temperature": 2.5})
    return run


@pytest.fixture(scope="module")
def chosen(run):
    return classifier(run.model(), **run.known)


@pytest.fixture(scope="module")
def client(chosen):
    pytest.importorskip("fastapi")
    from fastapi.testclient import TestClient

    from keras_vit.serve.app import create_app
    from keras_vit.serve.limits import Limits

    with TestClient(create_app(chosen, "pets", Limits(max_batch=4, max_images=6, max_queue=12, max_body=1))) as client:
        yield client
