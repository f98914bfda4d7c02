"""Evaluates a run, compares runs, or shows what positions a run has learned.

    python experiments/evaluate.py RUN

The same as `keras-vit evaluate`; --help explains it.
"""

from keras_vit.cli.main import main

if __name__ == "__main__":
    main("evaluate")
