"""Says what is on pictures, with a trained model.

    python experiments/predict.py RUN photos/

The same as `keras-vit predict`; --help explains it.
"""

from keras_vit.cli.main import main

if __name__ == "__main__":
    main("predict")
