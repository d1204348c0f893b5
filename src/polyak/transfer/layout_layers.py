"""The rules whose arrays change their form: depthwise and separable convolution, PReLU, attention."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from polyak.errors import ShapeMismatch
from polyak.snapshot import Array
from polyak.transfer.layout_parts import (
    Part,
    Shape,
    Shapes,
    Way,
    as_it_is,
    conv,
    inverse,
    like,
    permuted,
    reshaped,
)


def _depthwise_to_torch(array: Array) -> Array:
    """(space, channels, multiplier) to (channels * multiplier, 1, space)."""
    *space, channels, multiplier = array.shape
    n = len(space)
    return array.transpose(n, n + 1, *range(n)).reshape(channels * multiplier, 1, *space)


def _depthwise_to_keras(channels: int) -> Callable[[Array], Array]:
    def make(array: Array) -> Array:
        outputs, _, *space = array.shape
        split = reshaped(array, (channels, outputs // max(channels, 1), *space))
        return split.transpose(*range(2, split.ndim), 0, 1)

    return make


def depthwise(kernel: str) -> tuple[Way, Way]:
    """Both ways of a depthwise convolution; its outputs lie by channel, then by multiplier, on both sides."""

    def to_torch(given: Shapes, wanted: Shapes) -> Iterator[Part]:
        if kernel in given:
            yield Part("weight", (kernel,), _depthwise_to_torch)
        if "bias" in given:
            yield Part("bias", ("bias",), as_it_is)

    def to_keras(given: Shapes, wanted: Shapes) -> Iterator[Part]:
        if "weight" in given:
            yield Part(kernel, ("weight",), _depthwise_to_keras(like(kernel, wanted)[-2]))
        if "bias" in given:
            yield Part("bias", ("bias",), as_it_is)

    return to_torch, to_keras


def separable_to_torch(given: Shapes, wanted: Shapes) -> Iterator[Part]:
    """A depthwise convolution, and one of a single place behind it."""
    axes = len(given.get("pointwise_kernel", ())) - 2
    if "depthwise_kernel" in given:
        yield Part("depthwise/weight", ("depthwise_kernel",), _depthwise_to_torch)
    if "pointwise_kernel" in given:
        yield Part("pointwise/weight", ("pointwise_kernel",), permuted(conv(axes)))
    if "bias" in given:
        yield Part("pointwise/bias", ("bias",), as_it_is)


def separable_to_keras(given: Shapes, wanted: Shapes) -> Iterator[Part]:
    """Of the two convolutions, one layer."""
    axes = len(given.get("pointwise/weight", ())) - 2
    if "depthwise/weight" in given:
        channels = like("depthwise_kernel", wanted)[-2]
        yield Part("depthwise_kernel", ("depthwise/weight",), _depthwise_to_keras(channels))
    if "pointwise/weight" in given:
        yield Part("pointwise_kernel", ("pointwise/weight",), permuted(inverse(conv(axes))))
    if "pointwise/bias" in given:
        yield Part("bias", ("pointwise/bias",), as_it_is)


def prelu_to_torch(given: Shapes, wanted: Shapes) -> Iterator[Part]:
    """One number a channel: the other axes of Keras' alpha must be shared."""
    _refuse_unshared(given.get("alpha", ()))
    if "alpha" in given:
        yield Part("weight", ("alpha",), lambda alpha: alpha.reshape(-1))


def prelu_to_keras(given: Shapes, wanted: Shapes) -> Iterator[Part]:
    """One number a channel, with as many axes as Keras has."""
    shape = like("alpha", wanted)
    _refuse_unshared(wanted.get("alpha", ()))
    if "weight" in given:
        yield Part("alpha", ("weight",), lambda weight: reshaped(weight, shape))


def _refuse_unshared(shape: tuple[int, ...]) -> None:
    if any(n != 1 for n in shape[:-1]):
        raise ShapeMismatch(
            f"'alpha' of shape {shape}: expected all axes but the channels shared, as in PyTorch",
            hint="keras.layers.PReLU(shared_axes=[1, 2]) has one number a channel",
        )


_QKV = ("query", "key", "value")


def attention_to_torch(given: Shapes, wanted: Shapes) -> Iterator[Part]:
    """Query, key and value stacked; side by side where their inputs are of different widths."""
    kernels = tuple(f"{n}/kernel" for n in _QKV)
    biases = tuple(f"{n}/bias" for n in _QKV)
    if all(k in given for k in kernels):
        _refuse_other_heads([given[k] for k in kernels])
        stacked = "in_proj_weight" in wanted if wanted else len({given[k][0] for k in kernels}) == 1
        if stacked:
            yield Part("in_proj_weight", kernels, lambda *a: np.concatenate([_heads_to_torch(x) for x in a]))
        else:
            yield from (Part(f"{n[0]}_proj_weight", (k,), _heads_to_torch) for n, k in zip(_QKV, kernels, strict=True))
    if all(b in given for b in biases):
        yield Part("in_proj_bias", biases, lambda *a: np.concatenate([x.reshape(-1) for x in a]))
    if "output/kernel" in given:
        yield Part("out_proj/weight", ("output/kernel",), lambda a: a.reshape(-1, a.shape[-1]).transpose(1, 0))
    if "output/bias" in given:
        yield Part("out_proj/bias", ("output/bias",), as_it_is)


def _refuse_other_heads(shapes: list[Shape]) -> None:
    """Raise ShapeMismatch for what PyTorch's attention cannot be, such as keys that several heads share."""
    if len({shape[1:] for shape in shapes}) > 1:
        raise ShapeMismatch(
            f"query, key and value of {', '.join(map(str, shapes))}: expected one number of heads and one size of a "
            "head for all three, as in PyTorch's MultiheadAttention"
        )


def attention_to_keras(given: Shapes, wanted: Shapes) -> Iterator[Part]:
    """How many heads there are, only the Keras side knows."""
    for i, name in enumerate(_QKV):
        kernel, bias = f"{name}/kernel", f"{name}/bias"
        if "in_proj_weight" in given:
            yield Part(kernel, ("in_proj_weight",), _heads_to_keras(i, like(kernel, wanted)))
        elif f"{name[0]}_proj_weight" in given:
            yield Part(kernel, (f"{name[0]}_proj_weight",), _heads_to_keras(None, like(kernel, wanted)))
        if "in_proj_bias" in given:
            yield Part(bias, ("in_proj_bias",), _third(i, wanted.get(bias)))
    if "out_proj/weight" in given:
        shape = like("output/kernel", wanted)
        yield Part("output/kernel", ("out_proj/weight",), lambda a: reshaped(a.transpose(1, 0), shape))
    if "out_proj/bias" in given:
        yield Part("output/bias", ("out_proj/bias",), as_it_is)


def _heads_to_torch(array: Array) -> Array:
    """(inputs, heads, size) to (heads * size, inputs)."""
    return array.reshape(array.shape[0], -1).transpose(1, 0)


def _heads_to_keras(third: int | None, shape: Shape) -> Callable[[Array], Array]:
    return lambda a: reshaped((a if third is None else _split(a)[third]).transpose(1, 0), shape)


def _third(i: int, shape: Shape | None) -> Callable[[Array], Array]:
    return lambda a: _split(a)[i] if shape is None else reshaped(_split(a)[i], shape)


def _split(array: Array) -> list[Array]:
    if array.shape[0] % 3:
        raise ShapeMismatch(f"expected query, key and value in one array, received {array.shape}")
    return np.split(array, 3)
