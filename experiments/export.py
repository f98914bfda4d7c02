"""Exports a run to SavedModel, ONNX, LiteRT, OpenVINO or torch, verified in that format's own runtime.

    python experiments/export.py RUN --format onnx

The same as `keras-vit export`; --help explains it.
"""

from keras_vit.cli.main import main

if __name__ == "__main__":
    main("export")
