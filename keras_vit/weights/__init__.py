"""Weights of run folders and of timm, transformers and JAX: a file for each format, each read and written, strict both ways."""
