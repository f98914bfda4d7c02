"""Shows what a trained model looks at, and what it has learned.

  keras-vit explain RUN                        maps of some test images; positions, filters and attention distances
  keras-vit explain RUN photo.jpg folder/      maps of your pictures, for the predicted class
  keras-vit explain RUN photo.jpg --class dog  what speaks for another class
  keras-vit explain RUN photo.jpg --heads      the attention of every block and head
  keras-vit explain RUN photos/ --method legrad --arrays maps.npz

Methods: attention (of the last block), rollout, gradient-attention, legrad, grad-cam, occlusion. The pictures go into RUN/explain.
"""

from pathlib import Path

import numpy as np

from keras_vit.checks import check_choice, check_int, unknown
from keras_vit.cli.command import Parser
from keras_vit.explain.attention import attention_distance, attention_maps
from keras_vit.explain.batches import in_batches, logits
from keras_vit.explain.filters import patch_filters
from keras_vit.explain.methods import METHODS, heat_maps
from keras_vit.explain.positions import position_similarity
from keras_vit.files import atomic_path
from keras_vit.machine import tune
from keras_vit.runs.evaluation import own_test_images
from keras_vit.runs.explain_plots import distance_picture, filter_picture, head_picture, heat_picture
from keras_vit.runs.folder import RunFolder
from keras_vit.runs.plots import position_maps
from keras_vit.runs.prediction import classifier, find_images, model_input, note_of, read_pictures
from keras_vit.terminal import Terminal

EXAMPLES = 6  # test images where no picture is given
ROWS = 12  # images in a picture
DISTANCES = 64  # images over which the attention distance is averaged


def parse_options(arguments):
    parser = Parser("explain", __doc__, "RUN [PATH ...]")
    parser.add_argument("run", metavar="RUN", help="A run folder.")
    parser.add_argument("paths", metavar="PATH", nargs="*", help="A picture, a folder with pictures or a pattern.")
    parser.add_argument("--method", metavar="NAME", action="append", help=f"{', '.join(METHODS)}. Default: all.")
    parser.add_argument("--class", metavar="NAME", dest="class_name", help="The class to explain. Default: the predicted one.")
    parser.add_argument("--heads", action="store_true", help="Also the attention of every block and head, a picture an image.")
    parser.add_argument("--most", metavar="N", type=int, default=100, help="Most pictures to explain. Default: 100.")
    parser.add_argument("--out", metavar="FOLDER", type=Path, help="Where the pictures go. Default: RUN/explain.")
    parser.add_argument("--arrays", metavar="FILE", type=Path, help="Also the maps as NumPy arrays, in an .npz file.")
    options = parser.parse_args(arguments)
    for method in options.method or ():
        check_choice("--method", method, METHODS)
    check_int("--most", options.most, at_least=1)
    if options.arrays and options.arrays.suffix != ".npz":
        raise ValueError(f"--arrays: received {str(options.arrays)!r}; allowed: a file whose name ends in .npz")
    return options


def main(arguments):
    options, notes = parse_options(arguments), []
    console = Terminal(highlight=False, markup=False, emoji=False)
    tune()
    run = RunFolder(options.run)
    files = find_images(options.paths) if options.paths else None
    run.check_classes()
    model, recipe = run.model(), run.recipe
    chosen = classifier(model, **run.known)
    classes = None
    if options.class_name is not None:
        if options.class_name not in chosen.class_names:
            raise ValueError(unknown("--class", options.class_name, chosen.class_names))
        classes = chosen.class_names.index(options.class_name)
    out, written = options.out or run.path / "explain", []
    if files:
        titles, images, broken = read_pictures(chosen, files[: options.most])
        notes += [note_of(broken, len(files[: options.most]))] if broken else []
        notes += [f"explained: the first {options.most:,} of {len(files):,} pictures"] if len(files) > options.most else []
        titles = [Path(title).name for title in titles]
    else:
        images, notes = examples(run)
        written += draw_model(model, run.path.resolve().name, out)
        if len(images):
            path = out / "distances.png"
            distances = attention_distance(model, model_input(model, images, recipe.mean, recipe.std))
            distance_picture(distances, path, title=f"Mean attention distance, {len(images)} test images")
            written.append(path)
        images = images[: min(EXAMPLES, options.most)]
        titles = [f"test {index}" for index in range(len(images))]
    if len(images):
        shown = model_input(model, images, recipe.mean, recipe.std)
        written += draw_images(chosen, model, images, shown, titles, classes, options, out)
    elif options.arrays:
        notes.append(f"{options.arrays}: not written, as there is no image")
    for note in notes:
        console.print(note, soft_wrap=True)
    for path in written:
        console.print(f"written: {path}", soft_wrap=True)


def examples(run):
    """Test images of the run's data; none, with a note, where the data is gone."""
    test, reason = own_test_images(run)
    if test is None:
        return np.zeros((0,)), [f"no examples: {reason}"]
    return test.images(np.arange(min(DISTANCES, len(test)))), []


def draw_model(model, name, out):
    """Pictures of what the weights alone show."""
    config, written = model.config, [out / "filters.png"]
    layer = "first convolution" if config.stem == "conv" else "patch embedding"
    filter_picture(patch_filters(model), written[0], title=f"Filters of the {layer}: principal components, {name}")
    if config.position != "none" or config.rotary != "none":
        written.append(out / "positions.png")
        kind = "rotary" if config.position == "none" else config.position
        position_maps(position_similarity(model), written[1], title=f"Similarity of {kind} position embeddings, {name}")
    return written


def draw_images(chosen, model, images, shown, titles, classes, options, out):
    """Pictures of the images' maps: twelve rows each, and with --heads one for each image."""
    methods, written = options.method or METHODS, []
    probabilities = chosen.probabilities(in_batches(logits, model, shown))
    labels = [
        f"{chosen.class_names[label]}, {row[label]:.0%}"
        for row in probabilities
        for label in [row.argmax() if classes is None else classes]
    ]
    maps = {method: heat_maps(model, shown, method, classes) for method in methods}
    parts = range(0, len(images), ROWS)
    for number, start in enumerate(parts, 1):
        rows = slice(start, start + ROWS)
        written.append(out / (f"maps-{number}.png" if len(parts) > 1 else "maps.png"))
        part = {method: each[rows] for method, each in maps.items()}
        rows = [f"{label}: {title}" for label, title in zip(labels[rows], titles[rows], strict=True)]
        heat_picture(images[start : start + ROWS], part, rows, written[-1], title=f"Where {Path(options.run).resolve().name} looks")
    if options.heads:
        for number, (image, each, title) in enumerate(zip(images, attention_maps(model, shown), titles, strict=True), 1):
            written.append(out / f"heads-{number}.png")
            head_picture(image, each, written[-1], title=f"Attention to the patches, {title}")
    if options.arrays:
        with atomic_path(options.arrays) as temporary, open(temporary, "wb") as file:
            np.savez(file, images=images, names=np.array(titles), labels=np.array(labels), **maps)
        written.append(options.arrays)
    return written
