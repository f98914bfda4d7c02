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


def many(seed=0):
    return [random(*shape, seed=seed + index) for index, shape in enumerate(((3, 5), (7,), (2, 1, 4)))]


def flat(tensors):
    return torch.cat([tensor.flatten() for tensor in tensors])


def changed(function, argument):
    """What a function leaves in place of some tensors."""
    tensors = many()
    function(tensors, argument)
    return flat(tensors)


CASES = {
    "norms": ("_foreach_norm", lambda: flat(private.norms(many())), CLOSE),
    "scaled": ("_foreach_mul", lambda: flat(private.scaled(many(), 0.3)), CLOSE),
    "scale": ("_foreach_mul_", lambda: changed(private.scale, torch.tensor(0.3)), CLOSE),
    "plus": ("_foreach_add", lambda: flat(private.plus(many(), many(3), 0.7)), CLOSE),
    "add": ("_foreach_add_", lambda: changed(private.add, many(3)), CLOSE),
    "subtract": ("_foreach_sub_", lambda: changed(private.subtract, many(3)), CLOSE),
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


def test_the_fused_adam_is_that_of_its_paper():
    """Algorithm 1 of arXiv 1412.6980. Without it, `keras_vit.training.fused` leaves the step to Keras."""
    weights, gradients, momentums, velocities = many(), many(3), many(6), [tensor.abs() for tensor in many(9)]
    w, g, m, v = (flat(group).numpy() for group in (weights, gradients, momentums, velocities))
    settings = {"learning_rate": 0.1, "beta_1": 0.8, "beta_2": 0.9, "epsilon": 1e-3}
    private.adam_step(weights, gradients, momentums, velocities, step=4, **settings)
    first, second = 0.8 * m + 0.2 * g, 0.9 * v + 0.1 * g**2
    update = first / (1 - 0.8**5) / (np.sqrt(second / (1 - 0.9**5)) + 1e-3)
    np.testing.assert_allclose(flat(weights), w - 0.1 * update, atol=CLOSE)
    np.testing.assert_allclose(flat(momentums), first, atol=CLOSE)
    np.testing.assert_allclose(flat(velocities), second, atol=CLOSE)


def test_this_pytorch_has_every_operation():
    assert [name for name, operation in private.OPERATIONS.items() if operation is None] == []
