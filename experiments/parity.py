"""Compares the installed backends: same weights, same batch, the largest differences beside their thresholds.

    python experiments/parity.py RUN --exports

The same as `keras-vit parity`; --help explains it.
"""

from keras_vit.cli.main import main

if __name__ == "__main__":
    main("parity")
