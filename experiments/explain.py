"""Shows what a trained model looks at.

    python experiments/explain.py RUN photos/

The same as `keras-vit explain`; --help explains it.
"""

from keras_vit.cli.main import main

if __name__ == "__main__":
    main("explain")
