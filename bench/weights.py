"""Sets of weights as models have them, and a bare Keras layer that holds one."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

Shape = tuple[int, ...]
# Of `--quick`: so many times fewer numbers in each tensor, and fewer small tensors.
QUICK = 64


def shapes(name: str, quick: bool = False) -> list[Shape]:
    """The shapes of a set: ``one``, ``resnet50``, ``gpt2`` or ``small``.

    Example:
        >>> for name in SETS:
        ...     found = shapes(name)
        ...     print(f"{name}: {len(found):,} tensors, {sum(map(math.prod, found)) / 1e6:.1f} M weights")
        one: 1 tensors, 16.8 M weights
        resnet50: 161 tensors, 25.6 M weights
        gpt2: 148 tensors, 124.4 M weights
        small: 10,000 tensors, 1.0 M weights
    """
    full = list(SETS[name]())
    if not quick:
        return full
    return [(*shape[:-1], max(1, shape[-1] // QUICK)) for shape in full[: len(full) if name != "small" else 200]]


def _one() -> Iterator[Shape]:
    yield (4096, 4096)


def _resnet50() -> Iterator[Shape]:
    """Convolutions without bias, each with scale and offset of its normalisation; the head."""

    def normalised(*kernel: int) -> Iterator[Shape]:
        yield kernel
        yield from [kernel[-1:]] * 2

    yield from normalised(7, 7, 3, 64)
    given = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            yield from normalised(1, 1, given, width)
            yield from normalised(3, 3, width, width)
            yield from normalised(1, 1, width, 4 * width)
            if block == 0:
                yield from normalised(1, 1, given, 4 * width)
            given = 4 * width
    yield from ((given, 1000), (1000,))


def _gpt2() -> Iterator[Shape]:
    """The smallest GPT-2: embeddings, twelve blocks, the last normalisation; the head is tied."""
    width = 768
    yield from ((50257, width), (1024, width))
    for _ in range(12):
        yield from [(width,)] * 2
        for given, made in ((width, 3 * width), (width, width)):
            yield from ((given, made), (made,))
        yield from [(width,)] * 2
        for given, made in ((width, 4 * width), (4 * width, width)):
            yield from ((given, made), (made,))
    yield from [(width,)] * 2


def _small() -> Iterator[Shape]:
    yield from [(100,)] * 10_000


SETS = {"one": _one, "resnet50": _resnet50, "gpt2": _gpt2, "small": _small}


def even(size: int, tensors: int) -> list[Shape]:
    """So many bytes of float32 in equal tensors, each of one number at least.

    Example:
        >>> even(1_000_000, 4)
        [(62500,), (62500,), (62500,), (62500,)]
    """
    return [(max(1, size // 4 // tensors),)] * tensors


def arrays(wanted: list[Shape], seed: int = 0) -> Iterator[np.ndarray]:
    """Random float32 values: a page of zeros that nobody has written would be read from the cache."""
    dice = np.random.default_rng(seed).standard_normal(1 << 20, np.float32)
    for shape in wanted:
        yield np.resize(dice[: math.prod(shape)], shape)


def layer(wanted: list[Shape], dtype: str = "float32", seed: int = 0) -> Any:
    """A bare Keras layer with weights of these shapes."""
    import keras

    made = keras.layers.Layer(dtype=dtype)
    for i, array in enumerate(arrays(wanted, seed)):
        made.add_weight(shape=array.shape, initializer="zeros", dtype=dtype, name=f"w{i}").assign(array)
    made.built = True
    return made
