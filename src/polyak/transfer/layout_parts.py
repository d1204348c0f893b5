"""What the rules between Keras and PyTorch are made of: arrays that are made of others, and changes of axes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from polyak.errors import ShapeMismatch
from polyak.snapshot import Array

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]
Axes = tuple[int, ...] | None


@dataclass(frozen=True, slots=True)
class Part:
    """One array of the other layout: its local name, the local names it is made of, and how."""

    name: str
    of: tuple[str, ...]
    make: Callable[..., Array]


Way = Callable[[Shapes, Shapes], Iterator[Part]]


def shape_of(part: Part, shapes: Shapes) -> Shape:
    """The shape that a part will have; nothing is read."""
    return part.make(*(np.broadcast_to(np.False_, shapes[name]) for name in part.of)).shape


def contiguous(value: Any) -> Array:
    """In C order: a view with other strides is stored wrongly by some writers."""
    return np.array(value, order="C")


# What Flax calls weights that lie as in Keras.
_FLAX = {
    "gamma": "scale",
    "beta": "bias",
    "moving_mean": "mean",
    "moving_variance": "var",
    "embeddings": "embedding",
}


def plain(*entries: tuple[str, str, Axes]) -> tuple[Way, Way]:
    """Both ways of (name in Keras, name in PyTorch, axes of the Keras array in PyTorch's order)."""

    def to_torch(given: Shapes, wanted: Shapes) -> Iterator[Part]:
        held = ((_called(keras, given), torch, axes) for keras, torch, axes in entries)
        yield from (Part(torch, (own,), permuted(axes)) for own, torch, axes in held if own in given)

    def to_keras(given: Shapes, wanted: Shapes) -> Iterator[Part]:
        back = ((_called(keras, wanted), torch, inverse(axes)) for keras, torch, axes in entries if torch in given)
        yield from (Part(own, (torch,), permuted(axes)) for own, torch, axes in back)

    return to_torch, to_keras


def _called(name: str, held: Shapes) -> str:
    """What the side of Keras calls an array: as Keras, or as Flax where only that is there."""
    other = _FLAX.get(name, name)
    return other if other in held and name not in held else name


def permuted(axes: Axes) -> Callable[[Array], Array]:
    """A change of axes, which refuses arrays that have another number of them."""

    def make(array: Array) -> Array:
        if axes is not None and array.ndim != len(axes):
            raise ShapeMismatch(f"expected {len(axes)} axes, received {array.shape}")
        return array if axes is None else array.transpose(axes)

    return make


def inverse(axes: Axes) -> Axes:
    """The change of axes that leads back."""
    return None if axes is None else tuple(np.argsort(axes).tolist())


def vectors(*names: tuple[str, str]) -> tuple[Way, Way]:
    """Arrays of one axis, which no layout can turn round."""
    return plain(*((keras, torch, (0,)) for keras, torch in names))


BIAS = ("bias", "bias", None)


def conv(axes: int) -> tuple[int, ...]:
    """Keras has space, in, out (or out, in where transposed); PyTorch has the last two first, in the other order."""
    return (axes + 1, axes, *range(axes))


def as_it_is(array: Array) -> Array:
    """No change."""
    return array


def like(name: str, wanted: Shapes) -> Shape:
    """The shape that Keras has: PyTorch's alone does not tell it."""
    if name not in wanted:
        held = ", ".join(wanted) or "none"
        raise ShapeMismatch(f"{name!r}: expected a Keras layer with this weight, received one with {held}")
    return wanted[name]


def reshaped(array: Array, shape: Shape) -> Array:
    """An array in another shape. Raises ShapeMismatch."""
    try:
        return array.reshape(shape)
    except ValueError:
        raise ShapeMismatch(f"expected a weight that makes {shape}, received {array.shape}") from None
