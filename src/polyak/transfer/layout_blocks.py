"""Weights gathered by the layer that they belong to, so that a rule sees the arrays of one layer together.

Some layers keep their arrays in inner ones: Keras' recurrent layers in cells, attention in four dense layers, PyTorch's
attention in a projection; PyTorch's recurrent modules hold several layers at once. Here each is one block, whose
arrays have the local names that the rules use.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from polyak.transfer.layout_parts import Shapes
from polyak.weights import Kind, Weight

Layout = Literal["keras", "torch"]

_CELLS = ("LSTMCell", "GRUCell", "SimpleRNNCell")
_CELL_ARRAYS = frozenset(("kernel", "recurrent_kernel", "bias"))
_DIRECTIONS = {"forward_layer": "forward", "backward_layer": "backward"}
_QKV = ("query", "key", "value")
_END, _FLAX_END = "attention_output", "out"
_LEVEL = re.compile(r"(?P<array>(?:weight|bias)_(?:ih|hh|hr))_l(?P<level>\d+)(?P<reverse>_reverse)?")
_PROJECTIONS = ("in_proj_weight", "q_proj_weight", "in_proj_bias")


@dataclass(frozen=True, slots=True)
class Block:
    """One layer: its path as its side writes it, its class or "", and its weights by the rules' local names."""

    path: str
    layer: str
    weights: Mapping[str, Weight]

    @property
    def name(self) -> str:
        """The path by which two sides are compared: dots and slashes mean the same."""
        return normal(self.path)

    @property
    def shapes(self) -> Shapes:
        return {local: w.shape for local, w in self.weights.items()}

    def __str__(self) -> str:
        return f"{self.path or 'the model itself'!r}{f' ({self.layer})' if self.layer else ''}"


def normal(path: str) -> str:
    """A path with slashes.

    Example:
        >>> normal("encoder.layers.0")
        'encoder/layers/0'
    """
    return path.replace(".", "/")


def blocks(weights: Iterable[Weight], layout: Layout) -> list[Block]:
    """The layers in the order of their first weights; random seeds belong to none."""
    held = [w for w in weights if w.kind is not Kind.SEED]
    if layout == "keras":
        return _keras(_grouped(held, "/"))
    return [level for b in _joined_attention(_grouped(held, ".")) for level in _levels(b)]


def joined_pairs(named: Sequence[tuple[str, Block]], wanted: Iterable[str]) -> list[tuple[str, Block]]:
    """Two modules below one of the wanted names as one block: PyTorch has no separable convolution of its own."""
    found = list(named)
    for name in wanted:
        inner = [i for i, (n, _) in enumerate(found) if n.startswith(f"{name}/")]
        if len(inner) == 2 and all(n != name for n, _ in found):
            first, second = (found[i][1] for i in inner)
            found[inner[0]] = (name, pair_of(first, second))
            del found[inner[1]]
    return found


def pair_of(first: Block, second: Block) -> Block:
    """A depthwise convolution and the pointwise one behind it."""
    weights = {f"depthwise/{n}": w for n, w in first.weights.items()}
    layer = f"{first.layer}+{second.layer}" if first.layer and second.layer else ""
    path = first.path.rpartition(".")[0] or first.path
    return Block(path, layer, weights | {f"pointwise/{n}": w for n, w in second.weights.items()})


def _grouped(weights: Sequence[Weight], mark: str) -> list[Block]:
    groups: dict[str, dict[str, Weight]] = {}
    layers: dict[str, str] = {}
    for w in weights:
        path, local = _divided(w, mark)
        groups.setdefault(path, {})[local] = w
        layers.setdefault(path, w.evidence.layer if w.evidence else "")
    return [Block(path, layers[path], held) for path, held in groups.items()]


def _divided(weight: Weight, mark: str) -> tuple[str, str]:
    """The path of the layer, and the weight's name within it."""
    local = weight.evidence.local if weight.evidence else ""
    if local and weight.path.endswith(f"{mark}{local}"):
        return weight.path.removesuffix(f"{mark}{local}"), local
    path, _, last = weight.path.rpartition(mark)
    return path, last


def _keras(found: list[Block]) -> list[Block]:
    gathered: dict[tuple[str, str], dict[str, Weight]] = {}
    attention = _attention(found)
    for b in found:
        path, layer, prefix = _owner(b, attention)
        own = {_local(b, n, prefix): w for n, w in b.weights.items()}
        gathered.setdefault((path, layer), {}).update(own)
    return [Block(path, layer, weights) for (path, layer), weights in gathered.items()]


def _owner(block: Block, attention: Mapping[str, str]) -> tuple[str, str, str]:
    """The layer that a block is a part of: its path, its class, and what stands before its local names."""
    parent, _, last = block.path.rpartition("/")
    if parent in attention and last in (*_QKV, attention[parent]):
        return parent, "MultiHeadAttention" if block.layer else "", f"{last if last in _QKV else 'output'}/"
    if last != "cell" or not (block.layer in _CELLS or (not block.layer and set(block.weights) <= _CELL_ARRAYS)):
        return block.path, block.layer, ""
    outer, _, direction = parent.rpartition("/")
    layer = block.layer.removesuffix("Cell")
    if direction in _DIRECTIONS:
        return outer, layer and f"Bidirectional {layer}", f"{_DIRECTIONS[direction]}/"
    return parent, layer, ""


def _local(block: Block, name: str, prefix: str) -> str:
    """Keras 2 calls the kernel of a depthwise convolution otherwise."""
    if block.layer.startswith("DepthwiseConv") and name == "depthwise_kernel":
        return "kernel"
    return f"{prefix}{name}"


def _attention(found: Sequence[Block]) -> dict[str, str]:
    """The paths at which all four inner layers of an attention stand, and the name of the last one in each."""
    inner = {b.path for b in found if b.layer in ("EinsumDense", "")}
    ends = [b.path.rpartition("/") for b in found if b.path in inner and _is_end(b)]
    parents = {parent: last for parent, _, last in sorted(ends, key=lambda end: end[2] == _END)}
    return {p: last for p, last in parents.items() if all(_below(p, name) in inner for name in _QKV)}


def _is_end(block: Block) -> bool:
    """Whether it may be the last layer of an attention: of Flax by its heads, because others call a plain one so."""
    last = block.path.rpartition("/")[2]
    of_heads = not block.layer and len(block.shapes.get("kernel", ())) == 3
    return last == _END or (last == _FLAX_END and of_heads)


def _below(path: str, name: str) -> str:
    return f"{path}/{name}" if path else name


def _joined_attention(found: list[Block]) -> list[Block]:
    by_path = {b.path: b for b in found}
    inner = {b.path: f"{b.path}.out_proj".lstrip(".") for b in found if any(n in b.weights for n in _PROJECTIONS)}
    taken = {out for out in inner.values() if out in by_path}
    joined = []
    for b in found:
        if b.path in taken:
            continue
        out = by_path.get(inner.get(b.path, ""))
        weights = {} if out is None else {f"out_proj/{n}": w for n, w in out.weights.items()}
        joined.append(Block(b.path, b.layer, {**b.weights, **weights}))
    return joined


def _levels(block: Block) -> list[Block]:
    """The layers that a recurrent module has on top of one another; one layer has the module's own path."""
    found = {n: match for n in block.weights if (match := _LEVEL.fullmatch(n))}
    if not found or len(found) < len(block.weights):
        return [block]
    levels: dict[str, dict[str, Weight]] = {}
    for name, match in found.items():
        local = f"{match['array']}{match['reverse'] or ''}"
        levels.setdefault(match["level"], {})[local] = block.weights[name]
    if len(levels) == 1:
        return [Block(block.path, block.layer, held) for held in levels.values()]
    return [Block(f"{block.path}.l{level}".lstrip("."), block.layer, held) for level, held in levels.items()]
