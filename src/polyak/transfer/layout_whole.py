"""Whether the rules of a conversion without a target take every array: what a rule has no name for would be lost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress

from polyak.errors import PolyakError, UnexpectedWeight
from polyak.snapshot import Snapshot
from polyak.transfer.layout_blocks import Block, blocks
from polyak.transfer.layout_pairs import Pairing, refuse_unused, rule_for
from polyak.transfer.layout_rules import Rule
from polyak.weights import Weight


def refuse_lost(held: Snapshot, layers: Mapping[str, str]) -> None:
    """Look at what ``in_layout`` will make of weights in the layout of Keras; nothing is read.

    Raises:
        UnexpectedWeight: the class of a layer has no array of such a name, as where a file counts them.
        WeightError, MissingWeight: ``layers`` names a class that has no rule, or a layer that there is not.
    """
    pairing = Pairing(layers=layers, source=held.origin)
    found = [block for role in held.roles for block in blocks(held.select(role=role).weights, "keras")]
    refuse_unused(pairing, found, ())
    for block in found:
        rule = rule_for(block, None, "keras", pairing)
        if rule is not None and (left := next(_left(block, rule), None)):
            raise UnexpectedWeight(
                f"weight {left.path!r} of {held.origin}: expected a name that {rule.keras[0]} of Keras gives to an "
                f"array of its own, received {left.path.rpartition('/')[2]!r}",
                hint="load it into its model in Python, which knows the names, and convert that model or its average",
            )


def _left(block: Block, rule: Rule) -> Iterator[Weight]:
    """The weights of a layer that its rule takes nothing from; what it refuses by itself it tells when it is used."""
    used: set[str] = set()
    with suppress(KeyError, ValueError, IndexError):  # a name or an axis that it looks for in vain
        try:
            used = {name for part in rule.to_torch(block.shapes, {}) for name in part.of}
        except PolyakError:
            used = set(block.weights)
    return (weight for local, weight in block.weights.items() if local not in used)
