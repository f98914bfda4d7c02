"""Do heat maps say what a model looks at? Every method of `keras_vit.explain` on the test images of a run, and others beside it.

    python benchmarks/faithfulness.py RUN --json benchmarks/results/faithfulness.json
    KERAS_BACKEND=torch python benchmarks/faithfulness.py RUN --peers --json benchmarks/results/faithfulness-peers.json

A row a method: areas below the curves of deletion and insertion, each less that of random orders of the same images, with the
half-width of a 95% interval; the rank correlation of its maps with those of the same model with shuffled weights; milliseconds an
image. `--peers` adds pytorch-grad-cam's Grad-CAM and four methods of captum on the same model, with an area for each by Quantus,
in an environment of their own: `pip install grad-cam captum quantus`, with a torchvision that fits PyTorch.
"""

import argparse
import time
from pathlib import Path

import keras_vit  # isort: skip  # before keras: it chooses the backend
import keras
import numpy as np

from keras_vit.explain.batches import check_classes
from keras_vit.explain.faithfulness import faithfulness, likeness, of_random_orders, shuffled_model
from keras_vit.explain.methods import METHODS, heat_maps
from keras_vit.runs.prediction import model_input

IMAGES = 200
STEPS = 16
SETTINGS = {"steps": STEPS, "baseline": "the mean image"}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN", type=Path, help="A run folder.")
    parser.add_argument("--images", type=int, default=IMAGES, help=f"Test images. Default: {IMAGES}.")
    parser.add_argument("--peers", action="store_true", help="Also other libraries, under PyTorch.")
    parser.add_argument("--json", type=Path, help="A file for the record.")
    options = parser.parse_args()
    run = keras_vit.RunFolder(options.run)
    model, test = run.model(), run.recipe.load_data().test
    images = model_input(model, test.images(np.arange(min(options.images, len(test)))), run.recipe.mean, run.recipe.std)
    classes, other = check_classes(model, None, images), shuffled_model(model)
    methods = {name: (lambda model, images, classes, name=name: heat_maps(model, images, name, classes)) for name in METHODS}
    if options.peers:
        methods |= peers()
    quantus = correlation(model) if options.peers else None
    random, rows = of_random_orders(model, images, classes, steps=STEPS), []
    for name, method in methods.items():
        method(model, images[:32], classes[:32])  # compiles
        start = time.perf_counter()
        maps = method(model, images, classes)
        seconds = time.perf_counter() - start
        areas = faithfulness(model, images, maps, classes, steps=STEPS)
        row = {"method": name, "ms_per_image": 1000 * seconds / len(images)}
        for curve in ("deletion", "insertion"):
            difference = getattr(areas, curve) - getattr(random, curve)
            row[curve], row[f"{curve}_95"] = difference.mean(), 1.96 * difference.std(ddof=1) / len(difference) ** 0.5
        row["likeness"] = np.nanmean(likeness(maps, method(other, images, classes)))
        if quantus:
            row["quantus"] = quantus(images, classes, maps)
        rows.append(row)
        print(", ".join(f"{key} {value:.4f}" if isinstance(value, float) else str(value) for key, value in row.items()), flush=True)
    if options.json:
        from record import write_record

        summary = {key: run.summary[key] for key in ("data", "test_accuracy")}
        write_record(
            options.json,
            backend=keras.backend.backend(),
            images=len(images),
            settings=SETTINGS,
            run=summary,
            random={curve: getattr(random, curve).mean() for curve in ("deletion", "insertion")},
            rows=rows,
        )


def peers():
    """Other libraries' methods as functions of (model, images, classes) that give maps of patches."""
    import torch
    from captum import attr
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    class Start(torch.nn.Module):
        """Images (B, C, H, W), as pytorch-grad-cam wants them, to the tokens that the last block gets."""

        def __init__(self, model):
            super().__init__()
            last = model.get_layer(f"block_{model.config.depth - 1}")
            self.start = keras.Model(model.input, last.input)

        def forward(self, images):
            return self.start(images.permute(0, 2, 3, 1))

    class Whole(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            last = model.get_layer(f"block_{model.config.depth - 1}")
            self.start, self.end = Start(model), keras.Model(last.input, model.output)

        def forward(self, images):
            return self.end(self.start(images))

    def grad_cam(model, images, classes):
        whole = Whole(model)
        rows, columns = model.config.grid_size
        prefix = model.config.num_prefix_tokens

        def reshape(tokens):
            return tokens[:, prefix:].reshape(len(tokens), rows, columns, -1).permute(0, 3, 1, 2)

        found = []
        with GradCAM(model=whole, target_layers=[whole.start], reshape_transform=reshape) as cam:
            for start in range(0, len(images), 32):
                part = torch.tensor(images[start : start + 32].transpose(0, 3, 1, 2))
                targets = [ClassifierOutputTarget(int(label)) for label in classes[start : start + 32]]
                found.append(cam(input_tensor=part, targets=targets))
        return to_patches(model, np.concatenate(found)[..., None])

    def of_captum(method, **settings):
        def explain(model, images, classes):
            explainer, found = method(model), []
            for start in range(0, len(images), 32):
                part = torch.tensor(images[start : start + 32], requires_grad=True)
                target = torch.tensor(classes[start : start + 32].copy())
                more = {name: value(model) for name, value in settings.items()}
                found.append(explainer.attribute(part, target=target, **more).detach().numpy())
            return to_patches(model, np.concatenate(found))

        return explain

    def patches(model):
        """The number of each pixel's patch, (1, H, W, 1)."""
        rows, columns = model.config.grid_size
        height, width = np.array(model.config.image_size) // (rows, columns)
        numbers = np.arange(rows * columns).reshape(rows, columns).repeat(height, axis=0).repeat(width, axis=1)
        return torch.tensor(numbers[None, :, :, None])

    return {
        "pytorch-grad-cam: Grad-CAM": grad_cam,
        "captum: input x gradient": of_captum(attr.InputXGradient),
        "captum: integrated gradients": of_captum(attr.IntegratedGradients, n_steps=lambda model: 20),
        "captum: ablation of patches": of_captum(attr.FeatureAblation, feature_mask=patches),
        "captum: Shapley values of patches": of_captum(attr.ShapleyValueSampling, feature_mask=patches, n_samples=lambda model: 10),
    }


def to_patches(model, values):
    """The sum of the values of each patch's pixels: (B, H, W, C) -> (B, rows, columns)."""
    rows, columns = model.config.grid_size
    batch, height, width, _ = values.shape
    return values.reshape(batch, rows, height // rows, columns, width // columns, -1).sum(axis=(2, 4, 5))


def correlation(model):
    """Quantus's faithfulness correlation (arXiv 2005.00631) of maps: the mean over images."""
    import quantus
    import torch

    class ChannelsFirst(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, images):
            return self.model(images.permute(0, 2, 3, 1))

    wrapped = ChannelsFirst().eval()

    def measure(images, classes, maps):
        height, width = np.array(model.config.image_size) // model.config.grid_size
        wide = maps.repeat(height, axis=1).repeat(width, axis=2)[:, None]
        metric = quantus.FaithfulnessCorrelation(
            nr_runs=50,
            subset_size=int(np.prod(model.config.image_size)) // 4,
            perturb_baseline="black",
            abs=False,
            normalise=False,
            disable_warnings=True,
        )
        np.random.seed(0)  # noqa: NPY002  # Quantus draws from NumPy's global generator
        scores = metric(wrapped, images.transpose(0, 3, 1, 2), classes, wide.astype(np.float32), device="cpu", softmax=True)
        return float(np.nanmean(scores))

    return measure


if __name__ == "__main__":
    main()
