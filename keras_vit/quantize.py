"""Int8 of exported models, calibrated on real images: which operations are quantised, and how.

Of a ViT the dense layers and convolutions hold nearly all weights and work, and lose next to nothing in int8. The norms, the
softmax and the products of attention would gain little, lose more, and leave the fast kernels: they stay in float32.
"""

import tempfile
from pathlib import Path

import numpy as np

LITERT = ("FULLY_CONNECTED", "CONV_2D")
ONNX = ("Gemm", "MatMul", "Conv")
BATCH = 16  # images at a time in calibration


def quantize_litert(converter, images: np.ndarray) -> bytes:
    """A LiteRT model with int8 kernels (one scale a channel) and int8 inputs of the operations of `LITERT`.

    Args:
        converter: A `tf.lite.TFLiteConverter`.
        images: Real images (N, H, W, C), as the model takes them.
    """
    import tensorflow as tf
    from tensorflow.lite.python import schema_py_generated as schema

    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: ([image[None]] for image in images)
    others = [name for name in vars(schema.BuiltinOperator) if name.isupper() and name not in LITERT]
    # TensorFlow's tool for quantising some operations only.
    options = tf.lite.experimental.QuantizationDebugOptions(denylisted_ops=others)
    debugger = tf.lite.experimental.QuantizationDebugger(
        converter=converter, debug_dataset=lambda: ([image[None]] for image in images[:1]), debug_options=options
    )
    return debugger.get_nondebug_quantized_model()


def quantize_onnx(model, images: np.ndarray):
    """An ONNX model with int8 kernels (one scale a channel) and uint8 inputs of the operations of `ONNX`, in QDQ form.

    Args:
        model: An ONNX `ModelProto` with one input.
        images: Real images (N, H, W, C), as the model takes them.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.batches = (images[start : start + BATCH] for start in range(0, len(images), BATCH))

        def get_next(self):
            batch = next(self.batches, None)
            return None if batch is None else {model.graph.input[0].name: batch}

    fixed = model.graph.input[0].type.tensor_type.shape.dim[0].dim_value
    if fixed:
        images = images[: len(images) // fixed * fixed].reshape(-1, *images.shape[1:])
    with tempfile.TemporaryDirectory() as folder:
        source, prepared, result = (str(Path(folder, f"{name}.onnx")) for name in ("source", "prepared", "result"))
        onnx.save(model, source)
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            result,
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            weight_type=QuantType.QInt8,
            activation_type=QuantType.QUInt8,
            op_types_to_quantize=list(ONNX),
        )
        return onnx.load(result)
