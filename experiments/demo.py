"""Opens a page on which a trained model can be tried.

    python experiments/demo.py RUN

The same as `keras-vit demo`; --help explains it.
"""

from keras_vit.cli.main import main

if __name__ == "__main__":
    main("demo")
