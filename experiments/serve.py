"""Serves a trained model over HTTP.

    python experiments/serve.py RUN

The same as `keras-vit serve`; --help explains it.
"""

from keras_vit.cli.main import main

if __name__ == "__main__":
    main("serve")
