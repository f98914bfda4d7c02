"""Int8 of exported models: what of a ViT is quantised, and how, in each runtime.

The dense layers and convolutions hold nearly all weights and work, and lose next to nothing. The norms, the softmax and the two
products of attention would gain little, lose more, and leave the fast kernels: they stay in float32. Kernels have a scale for
each channel; where ranges of activations are fixed beforehand, they are the extremes over the calibration images.

Trials of 2026-11-25 with a trained `quick` model, of which this file keeps the settings named on the right; on its 5,000 validation
images (float32: 77.34%) and one core of a Xeon with AVX512-VNNI, turn by turn: share of the float32 file, accuracy, share of images
with float32's class, speed against float32 at batch 1 and 50.

    LiteRT  activations quantised a token at a time, as they come   29.2%   77.30%   99.4%   x3.0   x1.9   int8
            ranges fixed, dense layers and convolutions only        31.2%   77.22%   97.9%   x3.2   x2.0
            ranges fixed, every operation that can be               30.9%   77.04%   97.9%   x0.8   x0.8   int8_static
            ... with activations in 16 bits: LiteRT lacks kernels, the model does not run
    ONNX    ranges fixed, inputs of dense layers and convolutions   29.0%   77.14%   97.9%   x1.6   x1.7   int8
            ... and what dense layers give                          29.2%   77.38%   97.7%   x1.4   x1.5
            ... and the products of attention                       29.2%   77.24%   98.0%   x1.5   x1.6
            ... and every operation that can be                     30.2%   76.88%   97.7%   x1.2   x1.2
            activations quantised as they come                      27.7%   77.26%   98.6%   x0.9   x0.8

Accuracies within 0.3 points do not differ in earnest, so that the class, the size and the speed decided. In ONNX percentiles in the
place of extremes gave 77.32% and 98.3%, entropy and signed activations the same as extremes; one scale a kernel 76.86%.
"""

import tempfile
from pathlib import Path

import numpy as np

ONNX = ("Gemm", "MatMul", "Conv")
BATCH = 16  # images at a time in calibration


def quantize_litert(converter, images: np.ndarray | None = None, batch_size: int | None = None) -> bytes:
    """A LiteRT model with int8 kernels.

    Without images, activations are quantised when the model runs, each token with a range of its own. With images, everything that
    has an int8 kernel computes in int8, with ranges fixed beforehand, as accelerators need it.

    Args:
        converter: A `tf.lite.TFLiteConverter`.
        images: A representative set (N, H, W, C), as the model takes them.
        batch_size: The only one that the model takes; None for any.
    """
    import tensorflow as tf

    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if images is not None:
        converter.representative_dataset = lambda: ([batch] for batch in batches_of(images, batch_size or 1))
    return converter.convert()


def quantize_onnx(model, images: np.ndarray):
    """An ONNX model with int8 kernels and uint8 inputs of the operations of `ONNX` that have weights, in QDQ form.

    What dense layers give stays in float32: the tokens keep their precision from block to block, and queries and keys theirs.

    Args:
        model: An ONNX `ModelProto` with one input.
        images: Real images (N, H, W, C), as the model takes them.
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
            weight_type=QuantType.QInt8,
            activation_type=QuantType.QUInt8,
            extra_options={"OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"]},
            nodes_to_quantize=[node.name for node in graph.node if node.op_type in ONNX and node.input[1] in weights],
        )
        quantized = onnx.load(result)
    del quantized.graph.value_info[:]  # the shapes inferred for this; a runtime infers its own
    return quantized


def batches_of(images, size):
    """All images in batches (M, size, H, W, C); the last one is filled up with the first images."""
    return np.resize(images, (-(-len(images) // size), size, *images.shape[1:]))
