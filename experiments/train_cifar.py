"""Trains a Vision Transformer on CIFAR-10, or on your own images, and leaves a run folder.

    python experiments/train_cifar.py --data folder:PHOTOS --epochs 30

The same as `keras-vit train`; --help explains it.
"""

from keras_vit.cli.main import main

if __name__ == "__main__":
    main("train")
