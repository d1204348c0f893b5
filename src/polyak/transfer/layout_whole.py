"""Whether the rules of a conversion without a target take every array: what a rule has no name for would be lost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress

from polyak.errors import PolyakError, UnexpectedWeight, argument
from polyak.snapshot import Snapshot
from polyak.transfer.layout_blocks import Block, blocks
from polyak.transfer.layout_pairs import Pairing, refuse_unused, rule_for
from polyak.transfer.layout_rules import Rule
from polyak.weights import Globs, Weight, as_globs, glob_match


def refuse_lost(held: Snapshot, layers: Mapping[str, str], include: Globs, exclude: Globs) -> list[str]:
    """Look at what ``in_layout`` will make of weights in the layout of Keras; nothing is read.

    Returns:
        The globs of ``exclude`` that leave out what would have no name in the layout of PyTorch.

    Raises:
        UnexpectedWeight: the class of a layer has no array of such a name, as where a file counts them.
        WeightError, MissingWeight: ``layers`` names a class that has no rule, or a layer that there is not.
    """
    pairing = Pairing(layers=layers, source=held.origin)
    found = [block for role in held.roles for block in blocks(held.select(role=role).weights, "keras")]
    refuse_unused(pairing, found, ())
    left_out: list[str] = []
    for block in found:
        rule = rule_for(block, None, "keras", pairing)
        if rule is None:
            continue
        for left in _left(block, rule):
            globs = [glob for glob in as_globs(exclude) if _matches(left, glob)]
            left_out += globs
            if not globs and _matches(left, include):
                raise _lost(left, rule.keras[0], held.origin)
    return left_out


def _lost(left: Weight, layer: str, origin: str) -> UnexpectedWeight:
    return UnexpectedWeight(
        f"weight {left.path!r} of {origin}: expected a name that {layer} of Keras gives to an array of its own, "
        f"received {left.path.rpartition('/')[2]!r}",
        hint=f"leave it out with {argument('exclude', left.path)}; where a file of Keras only counts arrays, load it "
        "into its model in Python, which knows their names, and convert that model or its average",
    )


def _matches(weight: Weight, globs: Globs) -> bool:
    """By its name in either layout."""
    return glob_match(weight.path, globs) or glob_match(weight.path.replace("/", "."), globs)


def _left(block: Block, rule: Rule) -> Iterator[Weight]:
    """The weights of a layer that its rule takes nothing from; what it refuses by itself it tells when it is used."""
    used: set[str] = set()
    with suppress(KeyError, ValueError, IndexError):  # a name or an axis that it looks for in vain
        try:
            used = {name for part in rule.to_torch(block.shapes, {}) for name in part.of}
        except PolyakError:
            used = set(block.weights)
    return (weight for local, weight in block.weights.items() if local not in used)
