"""timm and transformers, which the tests of weights compare with; skips where they, or PyTorch, are not installed."""

import importlib.util
import json

import pytest

torch = pytest.importorskip("torch")


def declare_torchvision():
    """Lets a torchvision without compiled operators be imported: declares those that it wraps at its import."""
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


if importlib.util.find_spec("torchvision") is not None:
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        LIBRARY = declare_torchvision()  # kept alive: it takes its operators with it


def numpy_state(module):
    """The parameters and buffers of a PyTorch module as NumPy arrays."""
    return {name: value.detach().numpy().copy() for name, value in module.state_dict().items()}


def randomise_module(module, seed=0):
    """Gives every parameter random values, norms and scales near one, so that no term is hidden by a zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in module.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            near_one = value.dim() == 1 and not name.endswith("bias")
            value.copy_(1 + 0.2 * noise if near_one else noise * (0.3 if value.dim() == 1 else 1 / value.shape[-1] ** 0.5))
    return module.eval()


def module_output(module, images):
    """The output of a PyTorch module for images (B, H, W, C), as a NumPy array."""
    with torch.no_grad():
        output = module(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    output = getattr(output, "logits", output)
    return output.numpy()


ANYTHING = (None, "x", -1, 0, 1.5, 10**9, True, [], {}, [1, "a"], [0.5], {"a": 1})


def assert_mistakes_are_one_line(folder, name, more=()):
    """Opens a checkpoint with each value of a JSON file replaced by anything at all: it works, or says in one line why not."""
    from keras_vit import open_checkpoint

    path = folder / name
    text = path.read_text()
    settings = {**json.loads(text), **dict(more)}
    for keys in key_paths(settings):
        for value in ANYTHING:
            path.write_text(json.dumps(replaced(settings, keys, value)))
            try:
                open_checkpoint(folder)
            except ValueError as error:
                message = str(error)
                if "\n" in message:
                    raise AssertionError((keys, value, message)) from None
    path.write_text(text)


def key_paths(settings):
    for key, value in settings.items():
        yield (key,)
        if isinstance(value, dict):
            yield from ((key, *rest) for rest in key_paths(value))


def replaced(settings, keys, value):
    first, *rest = keys
    return {**settings, first: replaced(settings[first], rest, value) if rest else value}
