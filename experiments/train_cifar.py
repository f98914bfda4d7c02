"""Trains a Vision Transformer on CIFAR-10, or on any images, and leaves a run folder.

python experiments/train_cifar.py                                         # a recipe that suits this machine
python experiments/train_cifar.py --recipe standard --train.epochs 50 --model.depth 6
python experiments/train_cifar.py --data folder:PATH --recipe my.yaml
python experiments/train_cifar.py --resume runs/quick-cifar10-jax         # after a kill
KERAS_BACKEND=torch python experiments/train_cifar.py
"""

from keras_vit.cli.main import main

if __name__ == "__main__":
    main("train")
