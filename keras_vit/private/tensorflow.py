"""TensorFlow's private names, all that this library uses of them, under names of our own.

Each is looked for at its first use; where one is gone, the public way is taken after one warning. `pytest -m private` tries both
ways: run it with a newer version of TensorFlow.
"""

import functools
import warnings

import tensorflow as tf


@functools.cache
def has_onednn() -> bool:
    """Whether TensorFlow computes with oneDNN here: not on Arm, and not with TF_ENABLE_ONEDNN_OPTS=0."""
    try:
        from tensorflow.python.util._pywrap_util_port import IsMklEnabled
    except ImportError:
        warnings.warn(f"TensorFlow {tf.__version__} lacks IsMklEnabled; the slower public way is taken", stacklevel=2)
        return False
    return IsMklEnabled()
