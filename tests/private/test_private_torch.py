"""PyTorch's private operations: each gives the numbers of the public way, which is taken after one warning where it is gone."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from keras_vit.private import torch as private  # noqa: E402

pytestmark = pytest.mark.private

CLOSE = 1e-6


def random(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape).astype("float32"))


def softmax_gradient(dtype):
    y = torch.softmax(random(3, 5, 7).to(dtype), -1)
    return lambda: private.softmax_backward(random(3, 5, 7, seed=1).to(dtype), y).float()


CASES = {
    "product": ("_linear_pointwise", lambda: private.onednn_product(random(9, 6), random(6, 4, seed=1)), CLOSE),
    "product of a view": ("_linear_pointwise", lambda: private.onednn_product(random(9, 6).T, random(9, 4, seed=1)), CLOSE),
    "with a bias": (
        "_linear_pointwise",
        lambda: private.onednn_product(random(9, 6), random(6, 4, seed=1), random(4, seed=2)),
        CLOSE,
    ),
    "softmax": ("_softmax_backward_data", softmax_gradient(torch.float32), CLOSE),
    "softmax in bfloat16": ("_softmax_backward_data", softmax_gradient(torch.bfloat16), 1e-2),
    "gelu": ("gelu_", lambda: private.gelu_in_place(3 * random(50)), CLOSE),
}


@pytest.fixture(autouse=True)
def looked_for_anew():
    private.available.cache_clear()
    yield
    private.available.cache_clear()


@pytest.mark.parametrize("name", CASES)
def test_private_and_public_way_give_the_same(monkeypatch, name):
    operation, compute, close = CASES[name]
    if operation == "_linear_pointwise" and not torch.backends.mkldnn.is_available():
        pytest.skip("this PyTorch has no oneDNN")
    assert private.available(operation)
    ours = compute()
    private.available.cache_clear()
    monkeypatch.setitem(private.OPERATIONS, operation, None)
    with pytest.warns(UserWarning, match=f"lacks {operation}") as caught:
        theirs = [compute() for _ in range(2)]
    assert len(caught) == 1
    assert ours.std() > 100 * CLOSE
    for values in theirs:
        np.testing.assert_allclose(ours, values, atol=close)


def test_gelu_overwrites():
    x = random(50)
    assert private.gelu_in_place(x) is x
