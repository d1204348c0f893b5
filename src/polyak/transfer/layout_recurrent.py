"""The rules of recurrent layers: order of the gates, and one bias or two."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from polyak.errors import AmbiguousMatch, ShapeMismatch
from polyak.snapshot import Array
from polyak.transfer.layout_parts import Part, Shape, Shapes, Way, as_it_is, plain
from polyak.weights import is_floating


def recurrent(cell: Callable[[str, str], tuple[Way, Way]], directions: Mapping[str, str]) -> tuple[Way, Way]:
    """Both ways of a layer from those of a cell in one direction, by the prefix in Keras and the suffix in PyTorch."""
    ways = [cell(keras, torch) for keras, torch in directions.items()]

    def to_torch(given: Shapes, wanted: Shapes) -> Iterator[Part]:
        for way, _ in ways:
            yield from way(given, wanted)

    def to_keras(given: Shapes, wanted: Shapes) -> Iterator[Part]:
        for _, way in ways:
            yield from way(given, wanted)

    return to_torch, to_keras


ONE_WAY = {"": ""}
BOTH_WAYS = {"forward/": "", "backward/": "_reverse"}


def one_bias(keras: str, torch: str) -> tuple[Way, Way]:
    """LSTM (gates i, f, g, o in both) and the simple cell: Keras has the sum of PyTorch's two biases."""
    kernels, kernels_back = plain(
        (f"{keras}kernel", f"weight_ih{torch}", (1, 0)), (f"{keras}recurrent_kernel", f"weight_hh{torch}", (1, 0))
    )
    bias, ih, hh = f"{keras}bias", f"bias_ih{torch}", f"bias_hh{torch}"

    def to_torch(given: Shapes, wanted: Shapes) -> Iterator[Part]:
        yield from kernels(given, wanted)
        if bias in given:
            yield Part(ih, (bias,), as_it_is)
            yield Part(hh, (bias,), np.zeros_like)

    def to_keras(given: Shapes, wanted: Shapes) -> Iterator[Part]:
        yield from kernels_back(given, wanted)
        if ih in given and hh in given:
            yield Part(bias, (ih, hh), _sum)

    return to_torch, to_keras


def _sum(a: Array, b: Array) -> Array:
    """Narrow values are summed in float32 and rounded once."""
    if is_floating(a.dtype.name) and a.dtype.itemsize < 4:
        return (a.astype(np.float32) + b.astype(np.float32)).astype(a.dtype)
    total: Array = a + b
    return total


def gru(keras: str, torch: str) -> tuple[Way, Way]:
    """Keras has the gates z, r, h, PyTorch r, z, n. Two biases each, if the reset gate acts after the product."""
    names = {"kernel": "weight_ih", "recurrent_kernel": "weight_hh"}

    def to_torch(given: Shapes, wanted: Shapes) -> Iterator[Part]:
        for ours, theirs in names.items():
            if f"{keras}{ours}" in given:
                yield Part(f"{theirs}{torch}", (f"{keras}{ours}",), lambda a: _gates(a, 1).transpose(1, 0))
        if f"{keras}bias" in given:
            _refuse_one_bias(given[f"{keras}bias"])
            for row, name in enumerate(("bias_ih", "bias_hh")):
                yield Part(f"{name}{torch}", (f"{keras}bias",), lambda a, row=row: _gates(a[row], 0))

    def to_keras(given: Shapes, wanted: Shapes) -> Iterator[Part]:
        for ours, theirs in names.items():
            if f"{theirs}{torch}" in given:
                yield Part(f"{keras}{ours}", (f"{theirs}{torch}",), lambda a: _gates(a, 0).transpose(1, 0))
        if f"bias_ih{torch}" in given and f"bias_hh{torch}" in given:
            _refuse_one_bias(wanted.get(f"{keras}bias", (2, 0)))
            yield Part(f"{keras}bias", (f"bias_ih{torch}", f"bias_hh{torch}"), _two_biases)

    return to_torch, to_keras


def _gates(array: Array, axis: int) -> Array:
    """The first two of three blocks exchanged."""
    if array.shape[axis] % 3:
        raise ShapeMismatch(f"expected three gates, received {array.shape}")
    update, reset, new = np.split(array, 3, axis)
    return np.concatenate([reset, update, new], axis)


def _two_biases(ih: Array, hh: Array) -> Array:
    return np.stack([_gates(ih, 0), _gates(hh, 0)])


def _refuse_one_bias(shape: Shape) -> None:
    if len(shape) != 2:
        raise ShapeMismatch(
            f"'bias' of shape {shape}: expected two biases, as in GRU(reset_after=True)",
            hint="with reset_after=False Keras computes another function than PyTorch, and no weights make them equal",
        )


def refuse_unclear(given: Shapes, wanted: Shapes, word: str) -> None:
    """Raise AmbiguousMatch for a GRU without bias, which does not show where its reset gate acts; ``word`` says it."""
    if not any("bias" in name for name in (*given, *wanted)):
        raise AmbiguousMatch(
            "a GRU without bias does not show whether it has reset_after=True, as in PyTorch, or False",
            hint=f"if it is True, say so with {word}",
        )
