"""Exports a run to SavedModel, ONNX, LiteRT, OpenVINO or torch, verified in that format's own runtime.

    python experiments/export.py RUN --format onnx
    python experiments/export.py RUN --format litert --precision int8
    python experiments/export.py RUN --format all                         # every format
    python experiments/export.py RUN --format onnx --merge-tokens 4       # fewer operations: each block merges 4 tokens
    python experiments/export.py model.keras --format onnx --mean 0.5 --std 0.25
    python experiments/export.py RUN --compare                            # size, speed and accuracy of what was exported
    python experiments/export.py RUN --compare RUN/export/onnx OTHER      # of these alone

RUN is a run folder or a .keras file. Exports lie in RUN/export/FORMAT, each with a report, export.json.
"""

from keras_vit.cli.main import main

if __name__ == "__main__":
    main("export")
