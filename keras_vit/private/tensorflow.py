"""All private names of TensorFlow that this library uses, under names of its own.

Each is looked up at its first use. If one is missing, the public way is taken, after one warning. `pytest -m private` tests both
ways: run it with a newer version of TensorFlow.
"""

import functools
import importlib
import warnings

import numpy as np
import tensorflow as tf

ONEDNN_MODULE = "tensorflow.python.util._pywrap_util_port"
LITERT_MODULES = ("tensorflow.lite.python.schema_py_generated", "tensorflow.lite.tools.flatbuffer_utils")
SCHEMA_NAMES = ("BufferT", "MetadataT")
FLATBUFFER_NAMES = ("convert_bytearray_to_object", "convert_object_to_bytearray")


@functools.cache
def has_onednn() -> bool:
    """Whether TensorFlow computes with oneDNN here: not on Arm, and not with TF_ENABLE_ONEDNN_OPTS=0."""
    try:
        return importlib.import_module(ONEDNN_MODULE).IsMklEnabled()
    except (ImportError, AttributeError):
        warnings.warn(f"TensorFlow {tf.__version__} lacks IsMklEnabled; the slower public way is taken", stacklevel=2)
        return False


@functools.cache
def litert_tools() -> tuple | None:
    """The modules of `LITERT_MODULES`, which read and write LiteRT files; None after one warning where names are gone."""
    try:
        schema, flatbuffers = (importlib.import_module(name) for name in LITERT_MODULES)
    except ImportError:
        schema = flatbuffers = None
    if all(hasattr(schema, name) for name in SCHEMA_NAMES) and all(hasattr(flatbuffers, name) for name in FLATBUFFER_NAMES):
        return schema, flatbuffers
    warnings.warn(f"TensorFlow {tf.__version__} lacks {', '.join(LITERT_MODULES)}; LiteRT files get no metadata", stacklevel=2)
    return None


def add_litert_metadata(flatbuffer: bytes, name: str, text: str) -> bytes:
    """A LiteRT model with a metadata buffer of this name that holds a text; unchanged where TensorFlow has no tools for it."""
    tools = litert_tools()
    if tools is None:
        return flatbuffer
    schema, flatbuffers = tools
    model = flatbuffers.convert_bytearray_to_object(flatbuffer)
    buffer = schema.BufferT()
    buffer.data = np.frombuffer(text.encode(), "uint8")
    entry = schema.MetadataT()
    entry.name, entry.buffer = name, len(model.buffers)
    model.buffers.append(buffer)
    model.metadata = [*(model.metadata or ()), entry]
    return bytes(flatbuffers.convert_object_to_bytearray(model))
