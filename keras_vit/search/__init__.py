"""The search for the Vision Transformer to use: a space, an oracle that proposes, trials that train, and a report."""

import importlib.util

NEEDED = ("keras_tuner", "six", "sklearn", "grpc", "google.protobuf", "plotly")


def is_installed(name):
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # its parent package is missing
        return False


MISSING = [name for name in NEEDED if not is_installed(name)]
if MISSING:
    raise ImportError(f"search: needs {', '.join(MISSING)}: pip install 'keras-vision-transformer[search]'")
