"""Fine-tunes a checkpoint on your images and leaves a run folder.

    python experiments/finetune.py CHECKPOINT --data folder:PHOTOS

The same as `keras-vit finetune`; --help explains it.
"""

from keras_vit.cli.main import main

if __name__ == "__main__":
    main("finetune")
