"""`keras-vit COMMAND`: the entry point of the installed command and of the scripts in `experiments/` and `tuning/`."""

import importlib
import sys

from keras_vit import PROBLEM
from keras_vit.checks import unknown
from keras_vit.processes import run_command

COMMANDS = (
    "train",
    "finetune",
    "pretrain",
    "evaluate",
    "predict",
    "explain",
    "export",
    "demo",
    "serve",
    "publish",
    "search",
    "parity",
    "doctor",
)
WELCOME = """\
keras-vit train                                      a Vision Transformer on CIFAR-10, in minutes
keras-vit train --data folder:PHOTOS                 on your own images, a folder for each class
keras-vit pretrain --data folder:PHOTOS              first on images without labels, then finetune on the few that have some
keras-vit finetune CHECKPOINT --data folder:PHOTOS   from the weights of a run, timm, transformers or JAX
keras-vit search --data folder:PHOTOS                which patch size, depth and heads suit your images
keras-vit evaluate RUN                               accuracy, calibration, every class; two runs are compared
keras-vit predict RUN photo.jpg folder/              what is on your pictures; --html makes a page
keras-vit explain RUN photo.jpg                      where the model looks, and what it has learned
keras-vit demo RUN                                   a page in the browser: drop a picture, see its classes
keras-vit export RUN --format onnx                   or tf_saved_model, litert, openvino, torch: verified
keras-vit serve RUN                                  over HTTP, to clients of KServe and TensorFlow Serving
keras-vit publish RUN you/name                       a model card and the weights, to the Hugging Face hub

Also keras-vit parity: the same numbers under every backend? And keras-vit doctor: which devices and processes work together?
Each command explains itself with --help.
"""


def main(command: str | None = None) -> None:
    """Runs a command with the arguments of this process; without a name the first argument is the command."""
    run_command(lambda: dispatch(command, sys.argv[1:]))


def dispatch(command, arguments):
    if command is None:
        command, *arguments = arguments or ["--help"]
        if command in ("-h", "--help"):
            print(WELCOME, end="")
            return None
        if command not in COMMANDS:
            raise ValueError(unknown("command", command, COMMANDS))
    if PROBLEM:
        raise ValueError(PROBLEM)
    return importlib.import_module(f"keras_vit.cli.{command}").main(arguments)
