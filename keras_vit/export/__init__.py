"""Exports to SavedModel, ONNX, LiteRT, OpenVINO and torch, each verified in its own runtime."""
