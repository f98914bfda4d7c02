"""Fine-tunes a checkpoint on any images, and leaves a run folder.

python experiments/finetune.py CHECKPOINT --data folder:photos            # every weight, and a new head
python experiments/finetune.py CHECKPOINT --data folder:photos --method probe        # the head alone
python experiments/finetune.py CHECKPOINT --data folder:photos --method lora --finetune.lora_rank 16
python experiments/finetune.py CHECKPOINT --data folder:photos --finetune.layer_decay 0.75 --finetune.freeze 6
python experiments/finetune.py CHECKPOINT --data folder:photos --model.image_size 384
python experiments/finetune.py --resume runs/finetune-photos-jax          # after a kill; needs the checkpoint no more

CHECKPOINT is a run folder, a .keras file, a checkpoint of timm, transformers or JAX, or a name on the Hugging Face hub.
"""

import re

from keras_vit.cli.command import Parser, train_and_report


def make_parser():
    import jsonargparse

    from keras_vit.recipes.parse import recipe_parser

    parser = jsonargparse.ArgumentParser(
        usage="finetune.py CHECKPOINT [options]",
        description="Fine-tunes a checkpoint and leaves a run folder. CHECKPOINT is a run folder, a .keras file, a checkpoint of "
        "timm, transformers or JAX, or a name on the Hugging Face hub. Architecture, image size, mean and std are the "
        "checkpoint's; any other setting can be overridden, --model.image_size, --model.patch_size, mean and std too.",
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.add_argument("--recipe", help="A recipe, or a YAML or JSON file. Default: finetune.")
    parser.add_argument("--method", help="full, probe or lora: short for --finetune.method.")  # see `full_names`
    parser.add_argument("--out", help="The run folder. Default: runs/METHOD-DATA-BACKEND, numbered if it exists.")
    parser.add_argument("--overwrite", action="store_true", help="Start again where --out holds a run.")
    parser.add_argument("--resume", metavar="RUN", help="Go on with an interrupted run, to the same numbers.")
    return recipe_parser(parser)


def full_names(arguments):
    """The arguments with CHECKPOINT and --method as the settings that they are."""
    arguments = [re.sub(r"^--method(?==|$)", "--finetune.method", argument) for argument in arguments]
    if arguments and not arguments[0].startswith("-"):
        arguments = ["--finetune.checkpoint", *arguments]
    return arguments


def main(arguments):
    arguments = full_names(arguments)
    first = Parser(add_help=False)
    first.add_argument("--recipe")
    first.add_argument("--resume")
    chosen, _ = first.parse_known_args(arguments)

    from keras_vit.recipes.parse import parse_recipe
    from keras_vit.runs.folder import RunFolder
    from keras_vit.training.finetune import parse_finetune

    name = chosen.recipe or (RunFolder(chosen.resume).path / "recipe.yaml" if chosen.resume else "finetune")
    if not arguments:
        raise ValueError("CHECKPOINT: none is given: python experiments/finetune.py CHECKPOINT --data folder:PATH")
    recipe, options = (parse_recipe if chosen.resume else parse_finetune)(name, arguments, make_parser())
    if options.resume and (options.out or options.overwrite):
        raise ValueError("--resume: takes neither --out nor --overwrite; the run goes on in its own folder")

    from rich.console import Console
    from rich.markup import escape

    from keras_vit.recipes.schema import load_recipe_data

    console = Console(highlight=False, soft_wrap=True)
    data = load_recipe_data(recipe)
    if data.fallback:
        console.print(f"[bold red]CIFAR-10 is not at hand: {escape(data.fallback)}; fine-tuning on embedded digits instead[/]")
    method = recipe.finetune.method
    title = f"{method} fine-tuning of {recipe.finetune.checkpoint}, learning rate {recipe.train.learning_rate:g}"
    train_and_report(console, recipe, data, options, method, title)
