"""Pre-trains a Vision Transformer on images without labels and leaves a run folder, from which `finetune` can start.

  keras-vit pretrain --data folder:PHOTOS            all pictures below a folder; class folders are not needed
  keras-vit pretrain --data cifar10 --epochs 100     of labelled data the training images, whose labels are not used
  keras-vit pretrain --resume runs/pretrain-RUN      goes on after a kill, to the same numbers
  keras-vit finetune runs/pretrain-RUN --data folder:LABELLED

Most patches of an image are hidden, and the model learns to paint them from the rest (masked autoencoding). Pictures of that lie in
RUN/plots/reconstructions.png.
"""

from pathlib import Path

from keras_vit.cli.command import RecipeParser, load_data, program, start, train_and_report
from keras_vit.recipes.choose import choose_pretraining, picture_side
from keras_vit.recipes.parse import parse_recipe
from keras_vit.runs.folder import RunFolder


def make_parser():
    out = "runs/RECIPE-DATA-BACKEND, numbered if it exists"
    parser = RecipeParser("pretrain", __doc__, recipe="pretrain", default="pretrain or pretrain-photos, by the pictures", out=out)
    parser.add_resume()
    parser.add_setting("--mask-ratio", "pretrain.mask_ratio", "X", "Share of the patches that is hidden.")
    parser.add_usual_settings(data_dir="TFDS_DATA_DIR")
    return parser


def main(arguments):
    options, settings = make_parser().parse_resume(arguments)
    name = options.recipe or (RunFolder(options.resume).recipe_path if options.resume else "pretrain")
    console = start(name, settings)
    recipe, _ = parse_recipe(name, settings)
    if not recipe.pretrain:
        allowed = f"a recipe with pretrain.method, or --pretrain.method=mae; {program('train')} takes the others"
        raise ValueError(f"recipe: received {str(name)!r}, which trains a classifier; allowed: {allowed}")
    data = load_data(console, recipe, "Pre-training on")
    if not options.recipe and not options.resume:
        choice = choose_pretraining(picture_side(data))
        console.print(choice.reason)
        if choice.recipe != name:
            name = choice.recipe
            recipe, _ = parse_recipe(name, settings)
            data = recipe.load_data()
    title = f"pre-training, {recipe.pretrain.mask_ratio:.0%} of the patches hidden"
    train_and_report(console, recipe, data, options, command="pretrain", stem=Path(name).stem, title=title)
