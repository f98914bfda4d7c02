"""Fine-tunes a checkpoint on your images and leaves a run folder.

  keras-vit finetune CHECKPOINT --data folder:PHOTOS                    every weight, and a new head
  keras-vit finetune CHECKPOINT --data folder:PHOTOS --method probe     the head alone
  keras-vit finetune CHECKPOINT --data folder:PHOTOS --method lora      adapters of low rank, and the head
  keras-vit finetune CHECKPOINT --data folder:PHOTOS --image-size 384   positions are interpolated
  keras-vit finetune --resume runs/full-photos-jax                      goes on after a kill, without the checkpoint
  keras-vit finetune --resume runs/full-photos-jax --extend 20          20 more epochs, also for a finished run

CHECKPOINT is a run folder, a .keras file, a checkpoint of timm, transformers or JAX, or a name on the Hugging Face hub.
Its architecture is kept, and its image size, mean and std are the defaults.
"""

from keras_vit.cli.command import RecipeParser, load_data, program, start, train_and_report
from keras_vit.recipes.parse import parse_recipe
from keras_vit.runs.folder import RunFolder
from keras_vit.training.finetune import parse_finetune


def make_parser():
    out = "runs/METHOD-DATA-BACKEND, numbered if it exists"
    parser = RecipeParser("finetune", __doc__, recipe="photos", default="photos", out=out, target="CHECKPOINT")
    parser.add_resume()
    parser.add_setting("--method", "finetune.method", "NAME", "full, probe or lora.")
    parser.add_usual_settings(data_dir="TFDS_DATA_DIR", image_size="the checkpoint's", learning_rate="the method's")
    return parser


def main(arguments):
    checkpoint, *rest = arguments if arguments and not arguments[0].startswith("-") else (None, *arguments)
    options, settings = make_parser().parse_resume(rest)
    if checkpoint:
        settings = [f"--finetune.checkpoint={checkpoint}", *settings]
    elif not rest:
        raise ValueError(f"CHECKPOINT: received none; allowed: as `{program('finetune')} --help` explains")
    name = options.recipe or (RunFolder(options.resume).recipe_path if options.resume else "photos")
    console = start(name, settings)
    goes_on = options.resume and not (checkpoint and options.recipe)
    recipe, _ = (parse_recipe if goes_on else parse_finetune)(name, settings)
    data = load_data(console, recipe, "Fine-tuning on")
    method = recipe.finetune.method
    title = f"{method} fine-tuning of {recipe.finetune.checkpoint}, learning rate {recipe.train.learning_rate:g}"
    train_and_report(console, recipe, data, options, command="finetune", stem=method, title=title)
