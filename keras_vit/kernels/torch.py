"""PyTorch's versions of the functions of `ops.py`: the same numbers, faster. Tests: tests/kernels/test_kernels.py.

Shapes: B batch, N tokens, R rows (B·N), F and D features, h heads, d head size.
"""

import functools

import torch
from keras import ops
from torch.autograd.function import once_differentiable

from keras_vit.kernels.shared import fused_attention
from keras_vit.machine import processor
from keras_vit.private.torch import gelu_in_place, onednn_product, softmax_backward


def replica():
    """Needed: the processes of `torchrun` have the same seeds. Test: test_distribution."""
    return torch.distributed.get_rank() if torch.distributed.is_available() and torch.distributed.is_initialized() else None


def exporting() -> bool:
    """Whether a graph is written: by torch.export, or by TorchScript, as in Keras's own ONNX export with a batch of any size."""
    return torch.compiler.is_exporting() or torch.jit.is_tracing()


def reshape(x, shape):
    """Pays: Keras takes its time to look for symbolic tensors. Test: every test of a layer."""
    return x.reshape(shape)


def shape(x):
    """Pays as `reshape` does. Test: every test of a layer."""
    return x.shape


def linear(x, kernel, bias, training=False, residual=None):
    """Pays: the bias, and in inference the residual too, cost no pass of their own. Test: test_linear."""
    if len(x.shape) != 2:
        return None
    if onednn_is_faster(x):
        kernel, bias = ops.convert_to_tensor(kernel), None if bias is None else ops.convert_to_tensor(bias)
        y = (OneDNNLinear.apply if torch.is_grad_enabled() else onednn_product)(x, kernel, bias)
    elif bias is None or exporting():
        return None
    elif residual is not None and not torch.is_grad_enabled():
        return torch.add(residual, bias).addmm_(x, kernel)  # x @ kernel is added in place
    else:
        y = torch.addmm(bias, x, kernel)
    return y if residual is None else residual + y


class OneDNNLinear(torch.autograd.Function):
    """x @ kernel + bias, and both gradients, by oneDNN: (R, F), (F, D), (D,) or None -> (R, D).

    Pays on AMD with AVX-512: training 806 to 490 ms a batch. Test: test_linear.
    """

    @staticmethod
    def forward(context, x, kernel, bias):
        context.save_for_backward(x, kernel)
        return onednn_product(x, kernel, bias)

    @staticmethod
    @once_differentiable  # a second derivative would silently be zero: the operation has no gradient
    def backward(context, dy):
        x, kernel = context.saved_tensors
        wanted, (dx, dkernel, dbias) = context.needs_input_grad, (None, None, None)
        if wanted[0]:
            dx = onednn_product(dy, kernel.T)
        if wanted[1]:  # oneDNN copies a transposed first factor: it should be the smaller one
            swap = x.shape[1] > dy.shape[1]
            dkernel = onednn_product(dy.T, x).T if swap else onednn_product(x.T, dy)
        if wanted[2]:
            dbias = dy.sum(0)
        return dx, dkernel, dbias


def onednn_is_faster(x) -> bool:
    """Whether oneDNN is faster than MKL at products of this tensor."""
    # torch.compile cannot take a product whose weights change.
    return (
        not (torch.compiler.is_compiling() or exporting()) and x.dtype == torch.float32 and x.device.type == "cpu" and mkl_is_slow()
    )


@functools.cache
def mkl_is_slow() -> bool:
    """True on AMD with AVX-512, which MKL does not use: it takes twice oneDNN's time."""
    backends = torch.backends
    there = backends.mkl.is_available() and backends.mkldnn.is_available() and backends.cpu.get_cpu_capability() == "AVX512"
    return there and "AuthenticAMD" in processor("vendor_id")


def activate(x, kind, training=False):
    """Pays: one pass, and in inference no second buffer. Test: test_activations."""
    if kind == "gelu" and not torch.is_grad_enabled() and not exporting():
        return gelu_in_place(x)
    if kind in ("gelu", "gelu_tanh"):
        return torch.nn.functional.gelu(x, approximate="tanh" if kind == "gelu_tanh" else "none")
    return None


def layer_norm(x, gamma, beta, epsilon, training=False):
    """Pays: one kernel, in float32 inside where x is bfloat16 on a processor. Test: test_layer_norm."""
    if x.dtype == torch.float32 or (x.device.type == "cpu" and not exporting()):
        return torch.nn.functional.layer_norm(x, (int(x.shape[-1]),), gamma, beta, epsilon)
    return None


def self_attention(qkv, tokens, num_heads, bias=None):
    """Pays on a processor: 5.6 ms a block in training, 7.0 without. Test: test_fused_attention_is_the_explicit_one."""
    if qkv.device.type != "cpu" or torch.compiler.is_compiling() or exporting():
        return None
    rows, features = qkv.shape
    qkv = qkv.reshape(rows // tokens, tokens, features)
    if not (torch.is_grad_enabled() and qkv.requires_grad):
        y = torch.nn.functional.scaled_dot_product_attention(*split_heads(qkv, num_heads), attn_mask=bias)
        return y.transpose(1, 2).reshape(rows, features // 3)
    return PackedAttention.apply(qkv, num_heads).reshape(rows, features // 3) if bias is None else None


class PackedAttention(torch.autograd.Function):
    """(B, N, 3·h·d) -> (B, N, h·d), for training on a processor.

    It writes the gradients of queries, keys and values side by side; autograd would stack and copy them. PyTorch's fused kernel
    has a slower backward pass.
    """

    @staticmethod
    def forward(context, qkv, num_heads):
        _, batch, _, tokens, size = (parts := split_heads(qkv, num_heads)).shape
        parts = parts.reshape(3, batch * num_heads, tokens, size)  # contiguous
        q, k, v = parts
        weights = torch.baddbmm(qkv.new_empty(1, 1, 1), q, k.transpose(1, 2), beta=0, alpha=size**-0.5)
        weights = torch.softmax(weights, -1)  # (B·h, N, N), in float32 inside, here and below
        context.save_for_backward(parts, weights)
        context.num_heads = num_heads
        return torch.bmm(weights, v).view(batch, num_heads, tokens, size).transpose(1, 2).flatten(2)

    @staticmethod
    def backward(context, dy):
        parts, weights = context.saved_tensors
        (q, k, v), num_heads = parts, context.num_heads
        _, pairs, tokens, size = parts.shape
        dy = dy.view(-1, tokens, num_heads, size).transpose(1, 2).reshape(pairs, tokens, size)
        gradients = torch.empty_like(parts)
        torch.bmm(weights.transpose(1, 2), dy, out=gradients[2])
        dscores = softmax_backward(torch.bmm(dy, v.transpose(1, 2)), weights)
        for gradient, a, b in ((gradients[0], dscores, k), (gradients[1], dscores.transpose(1, 2), q)):
            torch.baddbmm(gradient, a, b, beta=0, alpha=size**-0.5, out=gradient)
        gradients = gradients.view(3, -1, num_heads, tokens, size).permute(1, 3, 0, 2, 4)
        return gradients.flatten(2), None


def split_heads(qkv, num_heads):
    """(B, N, 3·h·d) -> a view (3, B, h, N, d)."""
    batch, tokens, width = qkv.shape
    return qkv.view(batch, tokens, 3, num_heads, width // (3 * num_heads)).permute(2, 0, 3, 1, 4)


def attend(q, k, v, mask=None, bias=None, dropout=None):
    """Pays on an accelerator, and in inference on a processor; there the fused kernel's backward pass is slow.

    Test: test_fused_attention, test_attention_of_split_heads_in_inference.
    """
    if q.device.type != "cpu":
        return fused_attention(q, k, v, mask) if bias is None and dropout is None else None
    recorded = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
    if mask is not None or dropout is not None or recorded or torch.compiler.is_compiling():
        return None
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)


def convolution(layer, x, training=False):
    """Pays: no copies to move the channels to the front and back. Test: test_convolutions_of_the_stem."""
    if exporting():
        return None
    kernel, bias = ops.convert_to_tensor(layer.kernel), None if layer.bias is None else ops.convert_to_tensor(layer.bias)
    x, kernel, stride = x.permute(0, 3, 1, 2), kernel.permute(3, 2, 0, 1), layer.strides[0]
    x = torch.nn.functional.pad(x, (0, 1, 0, 1)) if stride == 2 else x  # `same` adds only at the end
    return torch.nn.functional.conv2d(x, kernel, bias, stride=stride, padding=2 - stride).permute(0, 2, 3, 1)
