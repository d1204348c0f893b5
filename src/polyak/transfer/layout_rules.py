"""How one layer's arrays lie in Keras and in PyTorch: a table of rules, each from both sides.

A rule names the layer classes that it is for. From the shapes of one side it gives the arrays of the other: each by
its local name, by the arrays that it is made of, and by a function of these. No value is needed to tell names and
shapes. All rules are linear (axes change places, blocks are stacked or summed), so they may be applied to an average.

Sources: the documented parameters of ``keras.layers`` and ``torch.nn``; the tests run both layers on one input.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from polyak.transfer.layout_layers import (
    attention_to_keras,
    attention_to_torch,
    depthwise,
    prelu_to_keras,
    prelu_to_torch,
    separable_to_keras,
    separable_to_torch,
)
from polyak.transfer.layout_parts import BIAS, Part, Shape, Shapes, Way, as_it_is, conv, plain, vectors
from polyak.transfer.layout_recurrent import BOTH_WAYS, ONE_WAY, gru, one_bias, recurrent


@dataclass(frozen=True, slots=True)
class Rule:
    """One kind of layer in both layouts.

    Attributes:
        keras, torch: names of the classes.
        to_torch, to_keras: from the shapes of the given side and of the wanted side, by local name, the arrays of
            the wanted side. The wanted shapes may be empty where nothing is there yet.
        untwinned: arrays of PyTorch that Keras has nothing for, by local name.
    """

    keras: tuple[str, ...]
    torch: tuple[str, ...]
    to_torch: Way
    to_keras: Way
    untwinned: tuple[str, ...] = ()


def _rule(keras: str | Sequence[str], torch: str | Sequence[str], ways: tuple[Way, Way], *untwinned: str) -> Rule:
    names = [(n,) if isinstance(n, str) else tuple(n) for n in (keras, torch)]
    return Rule(names[0], names[1], *ways, untwinned)


RULES: tuple[Rule, ...] = (
    _rule("Dense", "Linear", plain(("kernel", "weight", (1, 0)), BIAS)),
    *(_rule(f"Conv{n}D", f"Conv{n}d", plain(("kernel", "weight", conv(n)), BIAS)) for n in (1, 2, 3)),
    *(_rule(f"Conv{n}DTranspose", f"ConvTranspose{n}d", plain(("kernel", "weight", conv(n)), BIAS)) for n in (1, 2, 3)),
    *(_rule(f"DepthwiseConv{n}D", f"Conv{n}d", depthwise("kernel")) for n in (1, 2)),
    *(_rule(f"SeparableConv{n}D", f"Conv{n}d+Conv{n}d", (separable_to_torch, separable_to_keras)) for n in (1, 2)),
    _rule(
        "BatchNormalization",
        ["BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "SyncBatchNorm"],
        vectors(
            ("gamma", "weight"), ("beta", "bias"), ("moving_mean", "running_mean"), ("moving_variance", "running_var")
        ),
        "num_batches_tracked",
    ),
    _rule("LayerNormalization", "LayerNorm", vectors(("gamma", "weight"), ("beta", "bias"))),
    _rule("GroupNormalization", "GroupNorm", vectors(("gamma", "weight"), ("beta", "bias"))),
    _rule("RMSNormalization", "RMSNorm", vectors(("scale", "weight"))),
    _rule("Embedding", "Embedding", plain(("embeddings", "weight", (0, 1)))),
    _rule("PReLU", "PReLU", (prelu_to_torch, prelu_to_keras)),
    _rule("SimpleRNN", "RNN", recurrent(one_bias, ONE_WAY)),
    _rule("LSTM", "LSTM", recurrent(one_bias, ONE_WAY)),
    _rule("GRU", "GRU", recurrent(gru, ONE_WAY)),
    _rule("Bidirectional SimpleRNN", "RNN", recurrent(one_bias, BOTH_WAYS)),
    _rule("Bidirectional LSTM", "LSTM", recurrent(one_bias, BOTH_WAYS)),
    _rule("Bidirectional GRU", "GRU", recurrent(gru, BOTH_WAYS)),
    _rule("MultiHeadAttention", "MultiheadAttention", (attention_to_torch, attention_to_keras)),
)

_MATRIX = {"kernel": "weight", "weight": "kernel"}
BY_KERAS: Mapping[str, Rule] = {name: rule for rule in RULES for name in rule.keras}
TORCH_CLASSES = frozenset(name for rule in RULES for name in rule.torch)
UNTWINNED = frozenset(name for rule in RULES for name in rule.untwinned)


def same(shapes: Shapes, wanted: Shapes) -> Iterator[Part]:
    """Arrays taken as they are; a matrix has each side's own name.

    Example:
        >>> [part.name for part in same({"weight": (3, 4), "bias": (4,)}, {"kernel": (3, 4), "bias": (4,)})]
        ['kernel', 'bias']
    """
    for name in shapes:
        other = _MATRIX.get(name, name)
        yield Part(other if other in wanted and name not in wanted else name, (name,), as_it_is)


def turns(shape: Shape) -> bool:
    """Whether a change of axes could leave the shape as it is, so that nobody would see that it is missing.

    Example:
        >>> turns((8, 8)), turns((8, 4)), turns((1, 8, 1)), turns((8,))
        (True, False, False, False)
    """
    wide = [n for n in shape if n > 1]
    return len(set(wide)) < len(wide)


def by_torch(name: str) -> list[Rule]:
    """The rules for a class of PyTorch."""
    return [rule for rule in RULES if name in rule.torch]
