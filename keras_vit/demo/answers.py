"""What the page shows of one picture: the likeliest classes, where the model looks, and how long that took.

Shapes: H height, W width, C channels of the model's images, K classes, L blocks.
"""

import dataclasses
import os
import threading
import time
from pathlib import Path

import numpy as np

from keras_vit.checks import check_choice, visible
from keras_vit.data.decode import CONVERTED, open_image
from keras_vit.explain.attention import attention_maps
from keras_vit.explain.methods import METHODS, OF_A_CLASS, heat_maps
from keras_vit.model.vit import ViT
from keras_vit.runs.explain_plots import overlay
from keras_vit.runs.folder import RunFolder
from keras_vit.runs.prediction import Classifier, classifier, model_input, predict_arrays, read_pictures

TOP = 5  # classes that are shown
SIDE = 384  # pixels of the shown picture's longer side, about
NARROW = 4  # a picture whose sides differ more than this many times gets a note
PREDICTED = ""  # stands for the predicted class
LAST = -1  # stands for the last block
ONE = threading.Lock()  # held by the one thread that reads a picture or runs a model: explanations tap its layers


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a model says of a picture.

    Attributes:
        classes: Probabilities of the likeliest classes by name, the likeliest first.
        picture: uint8 (h, w, 3), where the model looks; black is least, yellow most.
        notes: Lines for the visitor, not escaped.
        predict_ms: Milliseconds of the prediction, without the reading of the file.
        explain_ms: Milliseconds of the explanation.
    """

    classes: dict[str, float]
    picture: np.ndarray
    notes: list[str]
    predict_ms: float
    explain_ms: float


@dataclasses.dataclass(frozen=True)
class Viewer:
    """A model with what it needs to look at picture files.

    Attributes:
        name: Of the run.
        model: The `ViT`.
        classifier: Its `Classifier`, whose class names are the indices 0 to K - 1.
        class_names: K names, each once.
        mean, std: Of pixels scaled to 0..1, as in training.
    """

    name: str
    model: ViT
    classifier: Classifier
    class_names: list[str]
    mean: list[float]
    std: list[float]

    @classmethod
    def of_run(cls, run: RunFolder) -> "Viewer":
        """The viewer of a run's best model; errors are those of `RunFolder.model`."""
        run.check_classes()
        model, recipe = run.model(), run.recipe
        chosen = classifier(model, **run.known)
        indices = dataclasses.replace(chosen, class_names=[*range(len(chosen.class_names))])
        return cls(visible(run.path.resolve().name), model, indices, distinct(chosen.class_names), recipe.mean, recipe.std)

    @property
    def depth(self) -> int:
        return self.model.config.depth

    def answer(self, file: str | os.PathLike, method: str = METHODS[0], block: int = LAST, explained: str = PREDICTED) -> Answer:
        """What the model says of a picture file, as `keras_vit.predict` does, and where it looks.

        Args:
            file: Path of the picture.
            method: One of `METHODS`.
            block: Whose attention is shown, 0 to L - 1, by the method `attention`; -1 = the last one.
            explained: Name of the class to explain, by the methods that know one; "" = the predicted class.

        Raises:
            ValueError: For another method and a file that is no picture, in words for the visitor.
        """
        check_choice("method", method, METHODS)
        image = self.read(file, self.classifier)
        height, width, channels = self.classifier.shape
        factor = max(1, round(SIDE / max(height, width)))
        shown = self.read(file, dataclasses.replace(self.classifier, shape=(factor * height, factor * width, channels)))
        notes = narrow(file) if channels in CONVERTED else []
        classes, maps, times = self.look(image, method, block, explained, notes)
        return Answer(classes, overlay(shown[None], maps)[0], notes, *times)

    def look(self, image, method=METHODS[0], block=LAST, explained=PREDICTED, notes=None):
        """Classes and a heat map (1, rows, columns) of one uint8 (H, W, C), and the milliseconds of each; it may add notes."""
        with ONE:
            began, notes = time.perf_counter(), [] if notes is None else notes
            top = min(TOP, len(self.class_names))
            (found,) = predict_arrays(self.classifier, image[None], top=top, threshold=None, batch_size=1)
            predicted = time.perf_counter()
            maps = self.maps(image, method, block, self.index(explained, found.classes[0], notes, method), notes)
            times = 1000 * (predicted - began), 1000 * (time.perf_counter() - predicted)
        classes = {self.class_names[index]: value for index, value in zip(found.classes, found.probabilities, strict=True)}
        return classes, maps, times

    def read(self, file, chosen):
        """The picture as uint8 (H, W, C) of a `Classifier`; a ValueError in words for the visitor."""
        file = Path(file)
        name = visible(file.name)
        if file.is_file() and not file.stat().st_size:
            raise ValueError(f"{name}: the file is empty; choose a picture")
        with ONE:  # it changes the warnings of the process
            _, images, broken = read_pictures(chosen, [file])
        if broken:
            raise ValueError(f"{name}: cannot be read as a picture ({broken[0][1]}); choose another")
        return images[0]

    def index(self, name, predicted, notes, method):
        """The class to explain by index; adds a note if this model has none of that name."""
        if name == PREDICTED or method not in OF_A_CLASS:
            return predicted
        if name not in self.class_names:
            notes.append(f"This run has no class {name}: its predicted class is explained.")
            return predicted
        return self.class_names.index(name)

    def maps(self, image, method, block, label, notes):
        """The heat map of one image (1, rows, columns)."""
        images = model_input(self.model, image[None], self.mean, self.std)
        if method != METHODS[0] or block == LAST:
            return heat_maps(self.model, images, method, label)
        if block >= self.depth:
            notes.append(f"This run has {self.depth} blocks: the attention of its last one is shown.")
        return attention_maps(self.model, images)[:, min(block, self.depth - 1)].mean(axis=1)


def narrow(file):
    """A note on a picture of which little is left once it is cut to the model's shape."""
    with open_image(file) as image:
        width, height = image.size
    if max(width, height) <= NARROW * min(width, height):
        return []
    return [f"The picture has {width:,} × {height:,} pixels: the model sees only its middle."]


def distinct(names: list[str]) -> list[str]:
    """Names of which each occurs once: equal ones get a number."""
    found = {}  # in order
    for name in names:
        number, new = 1, name
        while new in found:
            number += 1
            new = f"{name} ({number})"
        found[new] = None
    return [*found]
