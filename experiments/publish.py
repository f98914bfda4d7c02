"""Publishes a run on the Hugging Face hub.

    python experiments/publish.py RUN you/name --dry-run

The same as `keras-vit publish`; --help explains it.
"""

from keras_vit.cli.main import main

if __name__ == "__main__":
    main("publish")
