"""The fast operations of training give the numbers, and the gradients, of those that they stand for."""

import contextlib
import inspect
import json
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
from helpers import ROOT, numpy, random
from keras import ops

from keras_vit import machine
from keras_vit.kernels import ops as kernels
from keras_vit.kernels.shared import ACTIVATIONS, fused_attention
from keras_vit.model.attention import Attention
from keras_vit.model.block import TransformerBlock
from keras_vit.model.embed import ConvBlock, ConvStem
from keras_vit.model.layers import LayerNormalization

pytestmark = pytest.mark.backend
BACKEND = keras.backend.backend()
CLOSE = 2e-6  # of the largest number


def value_and_gradients(function, *inputs):
    """The value of a function of tensors, and the gradients of its product with a fixed random array."""

    def loss(*tensors):
        y = function(*tensors)
        return ops.sum(y * ops.convert_to_tensor(random(*y.shape, seed=9))), y

    if BACKEND == "tensorflow":
        import tensorflow as tf

        variables = [tf.Variable(value) for value in inputs]

        @tf.function(autograph=False)
        def compute():
            with tf.GradientTape() as tape:
                total, y = loss(*variables)
            return y, *tape.gradient(total, variables)

        return [value.numpy() for value in compute()]
    if BACKEND == "jax":
        import jax

        arguments = tuple(range(len(inputs)))
        (_, y), gradients = jax.jit(jax.value_and_grad(loss, arguments, has_aux=True))(*inputs)
        return [np.asarray(value) for value in (y, *gradients)]
    import torch

    tensors = [torch.tensor(value, requires_grad=True) for value in inputs]
    total, y = loss(*tensors)
    total.backward()
    return [value.detach().numpy() for value in (y, *(tensor.grad for tensor in tensors))]


def no_gradients():
    if BACKEND != "torch":
        return contextlib.nullcontext()
    import torch

    return torch.no_grad()


def assert_same(ours, theirs, close=CLOSE):
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, atol=close * np.abs(b).max())


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_activations(kind):
    x = 3 * random(7, 10)
    plain = value_and_gradients(lambda x: kernels.activate.plain(x, kind), x)
    # TensorFlow's tanh of a number depends on its place among the threads, and where it is nearly 1 the gradient multiplies that.
    close = 3 * CLOSE if kind == "gelu_tanh" else CLOSE
    assert_same(value_and_gradients(lambda x: kernels.activate(x, kind, training=True), x), plain, close)
    with no_gradients():
        assert_same([numpy(kernels.activate(ops.convert_to_tensor(x), kind))], plain[:1])
    if kind in ("gelu", "gelu_tanh"):
        assert_same(plain, value_and_gradients(lambda x: ops.gelu(x, approximate=kind == "gelu_tanh"), x), close)


def test_layer_norm():
    inputs = 2 * random(3, 5, 24) + 1, random(24, seed=1), random(24, seed=2)

    def plain(x, gamma, beta):
        return ops.layer_normalization(x, gamma, beta, axis=-1, epsilon=1e-3)

    expected = value_and_gradients(plain, *inputs)
    for training in (False, True):
        assert_same(value_and_gradients(lambda *x, t=training: kernels.layer_norm(*x, 1e-3, t), *inputs), expected)


def milliseconds(*functions, turns=7):
    """The best time of each function, called in turns after a first call."""
    seconds = [[] for _ in functions]
    for _ in range(1 + turns):
        for function, measured in zip(functions, seconds, strict=True):
            before = time.perf_counter()
            function()
            measured.append(time.perf_counter() - before)
    return [1000 * min(measured[1:]) for measured in seconds]


@pytest.mark.skipif(BACKEND != "tensorflow", reason="oneDNN's, in TensorFlow")
def test_exports_do_without_onednns_layer_norm(monkeypatch):
    calls, norm = [], kernels.backend.onednn_norm
    monkeypatch.setattr(kernels.backend, "onednn_norm", lambda *inputs: calls.append(inputs) or norm(*inputs))
    x, gamma, beta = (ops.convert_to_tensor(value) for value in (random(4, 6, 24), random(24, seed=1), random(24, seed=2)))
    with kernels.portable():
        plain = numpy(kernels.layer_norm(x, gamma, beta, 1e-6))
    assert not calls
    assert_same([numpy(kernels.layer_norm(x, gamma, beta, 1e-6))], [plain])
    assert len(calls) == kernels.backend.has_onednn()


@pytest.mark.slow
@pytest.mark.skipif(BACKEND != "tensorflow", reason="oneDNN's, in TensorFlow")
def test_onednns_layer_norm_is_one_pass():
    """TensorFlow turns the batch norm into it only if it recognises the pattern; otherwise this takes several times longer."""
    import tensorflow as tf

    if not kernels.backend.has_onednn():
        pytest.skip("this TensorFlow does not use oneDNN here")
    x, gamma, beta = (tf.constant(value) for value in (random(64, 65, 384), random(384), random(384)))
    fast = tf.function(lambda x: kernels.layer_norm(x, gamma, beta, 1e-6))
    plain = tf.function(lambda x: kernels.layer_norm.plain(x, gamma, beta, 1e-6))
    ours, theirs = milliseconds(lambda: fast(x), lambda: plain(x))
    assert ours < 0.7 * theirs


@pytest.mark.parametrize("onednn", [False, True] if BACKEND == "torch" else [False])
@pytest.mark.parametrize("sizes", [(6, 20), (20, 6)], ids=str)
def test_linear(sizes, onednn, monkeypatch):
    if BACKEND == "torch":
        monkeypatch.setattr(kernels.backend, "mkl_is_slow", lambda: onednn)
    inputs = random(50, sizes[0]), random(*sizes, seed=1), random(sizes[1], seed=2)
    expected = value_and_gradients(lambda x, kernel, bias: ops.matmul(x, kernel) + bias, *inputs)
    for training in (False, True):
        assert_same(value_and_gradients(lambda *x, t=training: kernels.linear(*x, t), *inputs), expected)
        without = value_and_gradients(lambda *x, t=training: kernels.linear(*x, None, t), *inputs[:2])
        assert_same(without, value_and_gradients(ops.matmul, *inputs[:2]))
    residual = random(50, sizes[1], seed=3)
    expected = value_and_gradients(lambda x, kernel, bias, residual: ops.matmul(x, kernel) + bias + residual, *inputs, residual)
    for training in (False, True):
        assert_same(value_and_gradients(lambda *x, t=training: kernels.linear(*x[:3], t, x[3]), *inputs, residual), expected)
    given = ops.convert_to_tensor(residual)
    with no_gradients():
        silent = kernels.linear(*map(ops.convert_to_tensor, inputs), False, given)
    np.testing.assert_allclose(numpy(silent), inputs[0] @ inputs[1] + inputs[2] + residual, atol=1e-4)
    np.testing.assert_array_equal(numpy(given), residual)  # is not written to


FUNCTIONS = ("linear", "activate", "layer_norm", "self_attention", "attend", "convolution", "reshape", "shape")


def test_a_backends_functions_have_the_signature_of_the_plain_ones():
    """And there is none that layers cannot reach."""
    special = {name: getattr(kernels.backend, name) for name in FUNCTIONS if hasattr(kernels.backend, name)}
    assert {"linear", "layer_norm"} < set(special)
    for name in FUNCTIONS:
        plain = getattr(kernels, name).plain
        assert plain is (getattr(kernels, name) if name not in special else getattr(kernels, name).__wrapped__)
        if name in special:
            assert inspect.signature(special[name]) == inspect.signature(plain), name
            assert "Test: " in special[name].__doc__, name


@pytest.mark.parametrize("mask", ["keys", "pairs", None])
def test_fused_attention(mask):
    """Keras's fused attention, of an accelerator's kernels, is the explicit one. Keys that are masked have no influence."""
    q, k, v = (random(3, 4, 7, 8, seed=seed) for seed in range(3))
    rng = np.random.default_rng(5)
    mask = mask and rng.random((3, 7) if mask == "keys" else (3, 7, 7)) < 0.6
    if mask is not None:
        mask[..., 0] = True  # every query has a key
    plain = value_and_gradients(lambda *x: kernels.attend.plain(*x, mask), q, k, v)
    assert_same(value_and_gradients(lambda *x: fused_attention(*x, mask), q, k, v), plain)
    assert_same(value_and_gradients(lambda *x: kernels.attend(*x, mask), q, k, v), plain)
    if mask is not None and mask.ndim == 2:
        hidden = ~mask[:, None, :, None]
        changed = [np.where(hidden, 100 * random(3, 4, 7, 8, seed=8), x) for x in (k, v)]
        for attend in (fused_attention, kernels.attend.plain):
            given = [ops.convert_to_tensor(x) for x in (q, *changed, mask)]
            np.testing.assert_allclose(numpy(attend(*given)), plain[0], atol=1e-5)


def in_bfloat16(function):
    return lambda *inputs: ops.cast(function(*(ops.cast(value, "bfloat16") for value in inputs)), "float32")


@pytest.mark.parametrize(("rows", "sizes"), [(1, (6, 20)), (7, (20, 6)), (64, (64, 32)), (3000, (20, 6))], ids=str)
def test_linear_in_bfloat16(rows, sizes):
    inputs = random(rows, sizes[0]), random(*sizes, seed=1), random(sizes[1], seed=2)
    plain = value_and_gradients(lambda x, kernel, bias: ops.matmul(x, kernel) + bias, *inputs)
    for exact, rounded in zip(plain, value_and_gradients(in_bfloat16(lambda *x: kernels.linear(*x, True)), *inputs), strict=True):
        assert rounded.shape == exact.shape
        assert np.abs(exact - rounded).max() < 0.02 * np.abs(exact).max()


@pytest.mark.slow
@pytest.mark.skipif(BACKEND != "jax", reason="XLA's products")
@pytest.mark.parametrize(("width", "hidden"), [(192, 768), (768, 192)])
def test_xla_multiplies_bfloat16_faster_than_the_plain_product(width, hidden):
    """The result and both gradients: XLA computes those of a plain product in float32."""
    import jax

    if not machine.has_bfloat16():
        pytest.skip("this processor has no bfloat16")
    shapes = (4096, width), (width, hidden), (4096, hidden)
    given = [jax.numpy.asarray(random(*shape), "bfloat16") for shape in shapes]

    def step(product):
        @jax.jit
        def gradients(x, kernel, dy):
            y, back = jax.vjp(product, x, kernel)
            return y, *back(dy)

        return lambda: jax.block_until_ready(gradients(*given))

    ours, plain = milliseconds(step(lambda x, kernel: kernels.linear(x, kernel, None, True)), step(jax.numpy.matmul))
    assert ours < 0.8 * plain


@pytest.mark.skipif(BACKEND != "torch", reason="PyTorch's products")
@pytest.mark.parametrize(
    ("vendor", "capability", "slow"),
    [("AuthenticAMD", "AVX512", True), ("AuthenticAMD", "AVX2", False), ("GenuineIntel", "AVX512", False)],
)
def test_onednn_multiplies_where_mkl_is_slow(vendor, capability, slow, monkeypatch):
    import torch

    for name in ("mkl", "mkldnn"):
        monkeypatch.setattr(getattr(torch.backends, name), "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(kernels.backend, "processor", lambda field: {"vendor_id": vendor}[field])
    calls, product = [], kernels.backend.onednn_product
    monkeypatch.setattr(kernels.backend, "onednn_product", lambda *inputs: calls.append(inputs) or product(*inputs))
    kernels.backend.mkl_is_slow.cache_clear()
    try:
        y = kernels.linear(*(torch.ones(2, 2, requires_grad=True) for _ in range(2)), None)
        y.sum().backward()
    finally:
        kernels.backend.mkl_is_slow.cache_clear()
    assert len(calls) == (3 if slow else 0)  # the result and two gradients


def test_convolutions_of_the_stem():
    """Values and gradients are those of Keras's layers, for which PyTorch and, while training, JAX have other operations here."""
    stem = ConvStem((6, 10))
    stem.build((None, 8, 12, 3))
    for index, weight in enumerate(stem.weights):
        weight.assign(random(*weight.shape, seed=index))
    x = random(2, 8, 12, 3)

    def by_keras(x):
        for layer in stem.convolutions:
            x = ops.gelu(layer(x), approximate=False)
        return ops.reshape(x, (-1, 6, 10))

    expected = value_and_gradients(by_keras, x)
    for training in (True, False):
        assert_same(expected, value_and_gradients(lambda x, t=training: stem(x, training=t), x))


@pytest.mark.parametrize("batch", [2, 3, 8])
def test_convolutions_of_a_block(batch):
    """Those of stride 1, likewise; JAX computes the kernel's gradient in parts of the batch."""
    block = ConvBlock(6)
    block.build((None, 8, 12, 6))
    for index, weight in enumerate(block.weights):
        weight.assign(random(*weight.shape, seed=index))
    x = random(batch, 8, 12, 6)
    expected = value_and_gradients(lambda x: x + block.conv2(ops.gelu(block.conv1(block.pre_norm(x)), approximate=False)), x)
    for training in (True, False):
        assert_same(expected, value_and_gradients(lambda x, t=training: block(x, training=t), x))


@pytest.mark.skipif(BACKEND == "tensorflow", reason="has no convolution of its own")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("batch", [1, 6, 16])
def test_gradients_of_a_convolution(batch, stride, dtype):
    """Also of kernel and bias. In bfloat16 the parts of a kernel's gradient, and those of a bias, are added in float32."""

    class Convolution:
        strides = (stride, stride)

        def __init__(self, kernel, bias):
            self.kernel, self.bias = kernel, bias

        def __call__(self, x):
            return ops.conv(x, self.kernel, stride, "same", "channels_last") + self.bias

    def ours(*inputs):
        x, kernel, bias = (ops.cast(value, dtype) for value in inputs)
        return ops.cast(kernels.convolution(Convolution(kernel, bias), x, training=True), "float32")

    inputs = random(batch, 8, 12, 6), random(3, 3, 6, 10, seed=1), random(10, seed=2)
    expected = value_and_gradients(lambda x, kernel, bias: Convolution(kernel, bias)(x), *inputs)
    assert_same(value_and_gradients(ours, *inputs), expected, *([0.02] if dtype == "bfloat16" else []))


def test_fused_attention_is_the_explicit_one(monkeypatch):
    """Also where gradients are recorded, and in the order of (queries, keys, values) x heads that the layer has."""
    layer = Attention(24, 3)
    layer.build((None, 5, 24))
    x = random(2, 5, 24)
    fast = value_and_gradients(lambda x: layer(x, training=True), x)
    with no_gradients():
        silent = numpy(layer(x))
    monkeypatch.setattr("keras_vit.model.attention.self_attention", kernels.self_attention.plain)
    assert_same(fast, value_and_gradients(lambda x: layer(x, training=True), x))
    assert_same([silent], [numpy(layer(x))])


def test_attention_of_split_heads_in_inference():
    q, k, v = (ops.convert_to_tensor(random(2, 3, size, 8, seed=seed)) for seed, size in enumerate((4, 5, 5)))
    for bias in (None, ops.convert_to_tensor(random(2, 1, 1, 5, seed=3))):
        plain = kernels.attend.plain(q, k, v, bias=bias)
        with no_gradients():
            assert_same([numpy(kernels.attend(q, k, v, bias=bias))], [numpy(plain)])


def test_self_attention_with_a_bias():
    """The bias adds to the scores of its keys, for every query and head: by hand in NumPy, and with the same gradients."""
    batch, tokens, heads, size = 2, 5, 3, 4
    qkv, bias = random(batch * tokens, 3 * heads * size), 2 * random(batch, 1, 1, tokens, seed=1)
    q, k, v = qkv.reshape(batch, tokens, 3, heads, size).transpose(2, 0, 3, 1, 4)
    scores = np.exp(q @ k.transpose(0, 1, 3, 2) / size**0.5 + bias)
    expected = (scores / scores.sum(-1, keepdims=True) @ v).transpose(0, 2, 1, 3).reshape(batch * tokens, -1)

    def attention(function):
        return lambda qkv: function(qkv, tokens, heads, ops.convert_to_tensor(bias))

    plain = value_and_gradients(attention(kernels.self_attention.plain), qkv)
    assert_same(plain[:1], [expected])
    assert_same(value_and_gradients(attention(kernels.self_attention), qkv), plain)
    with no_gradients():
        assert_same([numpy(attention(kernels.self_attention)(ops.convert_to_tensor(qkv)))], [expected])


def test_bfloat16_is_float32_rounded():
    """Attention and norm of activations in bfloat16, and their gradients, are computed in float32 where it matters."""
    x, results = 2 * random(2, 5, 24) + 1, []
    for dtype in ("float32", "mixed_bfloat16"):
        keras.utils.set_random_seed(0)
        layers = [LayerNormalization(epsilon=1e-6, dtype=dtype), Attention(24, 3, dtype=dtype)]
        for layer in layers:
            layer.build((None, 5, 24))

        def call(x, layers=layers):
            for layer in layers:
                x = layer(x, training=True)
            return ops.cast(x, "float32")

        results.append(value_and_gradients(call, x))
    for exact, rounded in zip(*results, strict=True):
        assert np.abs(exact - rounded).max() < 0.02 * np.abs(exact).max()


def test_tune_can_be_called_at_any_time():
    before = numpy(ops.matmul(random(9, 9), random(9, 9)))
    machine.tune()
    machine.tune()
    np.testing.assert_array_equal(numpy(ops.matmul(random(9, 9), random(9, 9))), before)
    if BACKEND == "jax":
        import jax

        assert jax.config.jax_compilation_cache_dir


@pytest.mark.slow
def test_throughput_measures_beside_timm(tmp_path):
    pytest.importorskip("timm")
    output = tmp_path / "results.json"
    command = [
        sys.executable,
        "benchmarks/throughput.py",
        "--tasks",
        "32",
        "--contenders",
        f"keras_vit, {BACKEND}",
        "--json",
        output,
    ]
    command += ["--depth", "1", "--batch-size", "2", "--turns", "1", "--seconds", "0.1"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=300)
    for result in json.loads(output.read_text())["results"]:
        assert [row["name"] for row in result["rows"]] == ["timm", f"keras_vit, {BACKEND}"]
        assert result["rows"][0]["ratio"] == 1
        assert all(row["rate"] > 0 and 0 < row["utilisation"] < 1.2 for row in result["rows"])


@pytest.mark.skipif(BACKEND != "jax", reason="XLA's")
def test_a_step_grows_by_the_same_operations_with_every_block():
    """XLA once repeated the gradient of the residual stream, a sum over all later blocks, in each block."""
    import jax

    def operations(depth):
        blocks = [TransformerBlock(8, 2, 8) for _ in range(depth)]
        for block in blocks:
            block.build((2, 40, 8))

        def loss(weights, x):
            for block, values in zip(blocks, weights, strict=True):
                x, _ = block.stateless_call(values, [], x, training=True)
            return (x * x).sum()

        weights = [[variable.value for variable in block.trainable_variables] for block in blocks]
        compiled = jax.jit(jax.grad(loss)).lower(weights, ops.ones((2, 40, 8))).compile()
        return compiled.cost_analysis()["flops"]

    four, eight, twelve = (operations(depth) for depth in (4, 8, 12))
    assert twelve - eight == pytest.approx(eight - four, rel=0.01)
