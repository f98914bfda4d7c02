"""`keras-vit COMMAND`: the entry point of the installed command and of the scripts in `experiments/` and `tuning/`."""

import importlib
import sys

from keras_vit import PROBLEM
from keras_vit.processes import run_command

COMMANDS = ("train", "finetune", "evaluate", "export", "search", "parity")
WELCOME = """\
keras-vit train                                  a Vision Transformer on CIFAR-10, in minutes
keras-vit train --data folder:PHOTOS             ... on class folders of your own images
keras-vit finetune CHECKPOINT --data folder:PHOTOS   from anybody's weights
keras-vit search --data folder:PHOTOS            which patch size, depth and heads suit them
keras-vit evaluate RUN                           accuracy, calibration, every class
keras-vit export RUN --format onnx               or tf_saved_model, litert, openvino, torch, verified\
"""


def main(command: str | None = None) -> None:
    """Runs a command with the arguments of this process; without a name the first argument is the command."""
    run_command(lambda: dispatch(command, sys.argv[1:]))


def dispatch(command, arguments):
    if command is None:
        if not arguments or arguments[0] in ("-h", "--help"):
            print(WELCOME)
            return None
        command, *arguments = arguments
        if command not in COMMANDS:
            from keras_vit.checks import unknown

            raise ValueError(unknown("command", command, COMMANDS))
    if PROBLEM:
        raise ValueError(PROBLEM)
    return importlib.import_module(f"keras_vit.cli.{command}").main(arguments)
