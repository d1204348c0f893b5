"""Layout views: a snapshot in PyTorch's layout seen in Keras', and the other way round.

Layers are paired by their path (dots and slashes mean the same) or in order; a rule for the two classes gives the
arrays under the target's names, shapes and layout. What is unclear is refused: a transposition that is missing in a
square array cannot be seen by anybody afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import msgspec

from polyak.errors import PolyakError, ShapeMismatch, UnexpectedWeight, WeightError, argument
from polyak.manifest import Manifest
from polyak.snapshot import Array, Item, Snapshot, tool
from polyak.transfer import layout_rules as rules
from polyak.transfer.layout_blocks import Block, Layout, blocks
from polyak.transfer.layout_pairs import SAME, Pairing, pair, refuse_half_said, rule_for, shown
from polyak.transfer.layout_parts import Part, contiguous, shape_of
from polyak.transfer.layout_rules import Rule
from polyak.weights import Weight

_INNER = frozenset(("LSTMCell", "GRUCell", "SimpleRNNCell", "EinsumDense"))
_KERAS_ONLY = (frozenset(rules.BY_KERAS) | _INNER) - rules.TORCH_CLASSES
_TORCH_ONLY = rules.TORCH_CLASSES - frozenset(rules.BY_KERAS)
_OTHER: dict[Layout, Layout] = {"keras": "torch", "torch": "keras"}
CALLED = {"keras": "Keras", "torch": "PyTorch"}


@dataclass(frozen=True, slots=True)
class View:
    """A source under the names and in the layout of a target.

    Attributes:
        snapshot: the source as the target has it.
        alone: weights of either side that the other layout has nothing for.
    """

    snapshot: Snapshot
    alone: tuple[str, ...]


def layout_of(held: Snapshot) -> Layout | None:
    """The layout that a snapshot is in, as its manifest, its layers' classes or its writer tell; None if unknown."""
    said = held.manifest.layout
    return _known(said) or told_by_classes(held.weights) or ("keras" if _wrote_keras(held) else None)


def _wrote_keras(held: Snapshot) -> bool:
    """Whether the file is one of Keras' own."""
    return held.manifest.tool.partition(" ")[0] == "Keras"


def told_by_classes(weights: Sequence[Weight]) -> Layout | None:
    """The layout of weights whose layers have classes that only one of the two frameworks has."""
    classes = {w.evidence.layer for w in weights if w.evidence}
    ours, theirs = not classes.isdisjoint(_KERAS_ONLY), not classes.isdisjoint(_TORCH_ONLY)
    return None if ours == theirs else "keras" if ours else "torch"


def _known(layout: str) -> Layout | None:
    return "keras" if layout == "keras" else "torch" if layout == "torch" else None


def said_layout(held: Snapshot, asked: str | None) -> Layout | None:
    """The layout of a source, as the caller says or as it is known. Raises WeightError if they disagree."""
    known = held.manifest
    stated = _known(known.layout) if known.tool.startswith("polyak") else None
    wanted = _known(asked or "")
    if stated and wanted and stated != wanted:
        raise WeightError(
            f"layout={asked!r}: expected {stated!r}, as {held.origin} says",
            hint="layout= says in which layout the source is; leave it out where the source says so itself",
        )
    return wanted or layout_of(held)


def seen_as(source: Snapshot, targets: Sequence[Weight], pairing: Pairing, layout: Layout) -> View:
    """A source of one role and of this layout as the target has its weights; no value is read.

    Args:
        targets: the target's weights, in the other layout.
        pairing: what the caller says of names, order and classes.

    Raises:
        MissingWeight, UnexpectedWeight: a layer or an array without partner.
        AmbiguousMatch: classes that are not known, or that have no rule.
        ShapeMismatch: two layers of different sizes, where a rule cannot see through them.
    """
    ours = blocks(source.weights, layout)
    theirs = blocks(targets, _OTHER[layout])
    pairs = pair(ours, theirs, layout, pairing)
    refuse_half_said(pairs, layout, pairing)
    items: list[Item] = []
    alone = [w.path for b in theirs for n, w in b.weights.items() if n in rules.UNTWINNED]
    for mine, other in pairs:
        new, left = _seen(source, mine, other, (layout, pairing))
        items += new
        alone += left
    made = {item.weight.path for item in items}
    return View(_snapshot(items, source, _OTHER[layout]), tuple(p for p in dict.fromkeys(alone) if p not in made))


def _seen(source: Snapshot, mine: Block, other: Block, how: tuple[Layout, Pairing]) -> tuple[list[Item], list[str]]:
    layout, pairing = how
    rule = rule_for(mine, other, layout, pairing)
    with_names = f"{mine} -> {other}"
    try:
        parts = list(_parts(rule, mine, other, layout))
        items = [_item(source, mine, other.weights.get(p.name) or _no_place(p, mine, other), p) for p in parts]
        for part in parts if rule is not None else ():
            if pairing.asked(other.weights[part.name].path):
                _refuse_unturned(part, mine, other)
    except PolyakError as error:
        raise type(error)(f"layer {with_names} of {source.origin}: {error.message}", hint=error.hint) from None
    except (ValueError, IndexError) as error:  # NumPy's, of arrays with another number of axes
        raise ShapeMismatch(
            f"layer {with_names} of {source.origin}: expected the shapes of such a layer, received {shown(mine)}"
        ) from error
    used = {name for p in parts for name in p.of}
    left = [n for n in mine.weights if n not in used]
    for name in left:
        if rule is None or name not in rule.untwinned:
            raise UnexpectedWeight(
                f"weight {mine.weights[name].path!r}: {other} has nothing for it",
                hint=f"leave it out with {argument('exclude', mine.weights[name].path)}",
            )
    return items, [mine.weights[n].path for n in left]


def _parts(rule: Rule | None, mine: Block, other: Block, layout: Layout) -> Iterator[Part]:
    if rule is None:
        return rules.same(mine.shapes, other.shapes)
    return (rule.to_torch if layout == "keras" else rule.to_keras)(mine.shapes, other.shapes)


def _no_place(part: Part, mine: Block, other: Block) -> Weight:
    of = " and ".join(repr(mine.weights[name].path) for name in part.of)
    raise UnexpectedWeight(
        f"{of} makes {part.name!r}, which the target's layer does not have; it has {', '.join(other.weights)}",
        hint=f"leave it out with {argument('exclude', mine.weights[part.of[0]].path)}",
    )


def _refuse_unturned(part: Part, mine: Block, other: Block) -> None:
    """Raise ShapeMismatch where an array has the target's shape as it lies, and not once it is turned."""
    wanted, given = other.shapes[part.name], mine.shapes[part.of[0]]
    if len(part.of) == 1 and given == wanted != shape_of(part, mine.shapes):
        raise ShapeMismatch(
            f"weight {mine.weights[part.of[0]].path!r}: expected one that is {wanted} once it is turned, received one "
            f"that is so already",
            hint=f"{argument('layers', {mine.path: SAME})} takes it as it is, if all layers of its sort lie so: name "
            "the square ones with it, which do not show it",
        )


def _item(source: Snapshot, mine: Block, place: Weight, part: Part) -> Item:
    """One array for a place of the target."""
    of = [mine.weights[name] for name in part.of]
    shape, dtype = shape_of(part, mine.shapes), of[0].dtype
    native = of[0].evidence.dtype if of[0].evidence else dtype
    evidence = None if place.evidence is None else replace(place.evidence, dtype=native, saved="")
    weight = Weight(place.path, shape, dtype, place.kind, evidence)
    return Item(source.roles[0], weight, partial(_made, source, tuple(w.path for w in of), part))


def _made(source: Snapshot, names: tuple[str, ...], part: Part) -> Array:
    return contiguous(part.make(*(source[name] for name in names)))


def _snapshot(items: list[Item], source: Snapshot, layout: Layout) -> Snapshot:
    known: Manifest = source.manifest
    written = msgspec.structs.replace(known, layout=layout)
    origin = f"{source.origin} (in the layout of {CALLED[layout]})"
    return Snapshot(items, source.states, origin, source.integrity, written, source.moment)


def in_layout(held: Snapshot, layout: str | None, layers: Mapping[str, str]) -> Snapshot:
    """A snapshot under names and in the layout of PyTorch, where no module says how it calls them.

    ``block/conv/kernel`` becomes ``block.conv.weight``. All roles are kept. A view; nothing is read.

    Args:
        layout: "torch", or None to leave the snapshot as it is.
        layers: the Keras class of layers by glob, where it is not known; "same" takes arrays as they are.

    Raises:
        WeightError: nothing says that the weights are in the layout of Keras.
        AmbiguousMatch: an array of several axes belongs to a layer of no known class.
    """
    if layout is None or (layout == "torch" and layout_of(held) == "torch"):
        return held
    if layout != "torch" or layout_of(held) != "keras":
        raise WeightError(
            f'layout={layout!r}: expected "torch" and weights of a Keras model, received '
            f"{layout_of(held) or 'weights without a word on their layout'} from {held.origin}",
            hint="transfer them into a live model of the other framework, and save that",
        )
    pairing = Pairing(layers=layers)
    items = [i for role in held.roles for i in _of_role(held.select(role=role), pairing)]
    written = msgspec.structs.replace(held.manifest, layout="torch", tool=tool())
    return Snapshot(items, held.states, held.origin, held.integrity, written, held.moment)


def _of_role(held: Snapshot, pairing: Pairing) -> Iterator[Item]:
    for block in blocks(held.weights, "keras"):
        rule = rule_for(block, None, "keras", pairing)
        try:
            parts = list(_parts(rule, block, Block("", "", {}), "keras"))
        except PolyakError as error:
            raise type(error)(f"layer {block} of {held.origin}: {error.message}", hint=error.hint) from None
        for part in parts:
            name = _torch_name(block, part.name, rule)
            place = replace(block.weights[part.of[0]], path=name, evidence=None)
            yield _item(held, block, place, part)


def _torch_name(block: Block, local: str, rule: Rule | None) -> str:
    """``bias_ih_reverse`` of a recurrent layer is ``bias_ih_l0_reverse``."""
    if rule is not None and rule.torch[0] in ("RNN", "LSTM", "GRU"):
        array, _, reverse = local.partition("_reverse")
        local = f"{array}_l0{'_reverse' if _ else ''}{reverse}"
    return ".".join(filter(None, (block.name.replace("/", "."), local.replace("/", "."))))
