"""Pre-trains a Vision Transformer on images without labels and leaves a run folder.

    python experiments/pretrain.py --data folder:PHOTOS

The same as `keras-vit pretrain`; --help explains it.
"""

from keras_vit.cli.main import main

if __name__ == "__main__":
    main("pretrain")
