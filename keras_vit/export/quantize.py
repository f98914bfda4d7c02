"""Int8 of exported models: which parts of a ViT are quantised, and how, in LiteRT and ONNX.

Dense layers and convolutions are quantised: they hold nearly all weights and work, and lose next to no accuracy. Norms, softmax and
the two products of attention stay in float32: quantising them would gain little, cost more accuracy, and miss the fast kernels. A
kernel has one scale for each output channel. Fixed ranges of activations are their extremes over the calibration images.

Measured on 2026-11-25 with a trained `quick` of that day, on its 5,000 validation images (float32: 77.34%) and one core of a Xeon
with AVX512-VNNI, turn by turn; kernels had eight bits in ONNX too. Columns: size relative to float32,
accuracy, share of images with float32's class, speed relative to float32 in batches of 1 and of 50, and the name of a setting that
is kept.

    LiteRT  activations quantised at run time, token by token       29.2%   77.30%   99.4%   x3.0   x1.9   int8
            ranges fixed, dense layers and convolutions only        31.2%   77.22%   97.9%   x3.2   x2.0
            ranges fixed, every operation with an int8 kernel       30.9%   77.04%   97.9%   x0.8   x0.8   int8_static
            ... with activations in 16 bits: LiteRT lacks kernels, the model does not run
    ONNX    ranges fixed, inputs of dense layers and convolutions   29.0%   77.14%   97.9%   x1.6   x1.7   int8
            ... and outputs of dense layers                         29.2%   77.38%   97.7%   x1.4   x1.5
            ... and the products of attention                       29.2%   77.24%   98.0%   x1.5   x1.6
            ... and every operation with an int8 kernel             30.2%   76.88%   97.7%   x1.2   x1.2
            activations quantised at run time                       27.7%   77.26%   98.6%   x0.9   x0.8

Accuracies less than 0.3 points apart are equal within the noise: agreement, size and speed decided. In ONNX, percentiles instead of
extremes gave 77.32% and 98.3%, entropy and signed activations the same as extremes, one scale for a whole kernel 76.86%.
"""

import tempfile
from pathlib import Path

import numpy as np

ONNX = ("Gemm", "MatMul", "Conv")
BATCH = 16  # images in a batch of calibration


def quantize_litert(converter, images: np.ndarray | None = None, batch_size: int | None = None) -> bytes:
    """A LiteRT model with int8 kernels.

    Without images, activations are quantised while the model runs, each token with its own range. With images, every operation that
    has an int8 kernel computes in int8, with ranges fixed beforehand, as accelerators need them.

    Args:
        converter: A `tf.lite.TFLiteConverter`.
        images: Representative images (N, H, W, C), as the model takes them.
        batch_size: The only batch size of the model; None = any.
    """
    import tensorflow as tf

    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if images is not None:
        converter.representative_dataset = lambda: ([batch] for batch in batches_of(images, batch_size or 1))
    return converter.convert()


def quantize_onnx(model, images: np.ndarray):
    """An ONNX model in QDQ form; the operations of `ONNX` that have weights get int8 kernels and uint8 inputs.

    Kernels use seven of their eight bits, -64 to 64: every processor then gives the same numbers. Processors without VNNI add two
    products of uint8 and int8 in 16 bits, which kernels of eight bits would overflow.

    Outputs of dense layers stay in float32: tokens keep their precision from block to block, and so do queries and keys.

    Args:
        model: An ONNX `ModelProto` with one input.
        images: Real images (N, H, W, C), as the model takes them.

    Returns:
        The quantised `ModelProto`.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    size = model.graph.input[0].type.tensor_type.shape.dim[0].dim_value or BATCH  # 0: any

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.batches = iter(batches_of(images, size))

        def get_next(self):
            batch = next(self.batches, None)
            return None if batch is None else {model.graph.input[0].name: batch}

    with tempfile.TemporaryDirectory() as folder:
        source, prepared, result = (str(Path(folder, f"{name}.onnx")) for name in ("source", "prepared", "result"))
        onnx.save(model, source)
        quant_pre_process(source, prepared, skip_symbolic_shape=True)
        graph = onnx.load(prepared).graph
        weights = {tensor.name for tensor in graph.initializer}
        quantize_static(
            prepared,
            result,
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=True,
            weight_type=QuantType.QInt8,
            activation_type=QuantType.QUInt8,
            extra_options={"OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"]},
            nodes_to_quantize=[node.name for node in graph.node if node.op_type in ONNX and node.input[1] in weights],
        )
        quantized = onnx.load(result)
    del quantized.graph.value_info[:]  # shapes inferred for the quantisation; runtimes infer their own
    return quantized


def batches_of(images, size):
    """All images in batches (M, size, H, W, C); the first images fill up the last batch."""
    return np.resize(images, (-(-len(images) // size), size, *images.shape[1:]))
