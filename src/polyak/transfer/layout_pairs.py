"""Which layer of one framework belongs to which of the other, and the rule for the two."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from polyak.errors import AmbiguousMatch, MissingWeight, PolyakError, UnexpectedWeight, WeightError, argument, quoted
from polyak.renaming import Rename, apply_rename
from polyak.snapshot import nearest_name
from polyak.transfer import layout_rules as rules
from polyak.transfer.kinship import by_names, denied, partners
from polyak.transfer.layout_blocks import Block, Layout, joined_pairs, normal, pair_of
from polyak.transfer.layout_order import BY_NAME, in_order, told_order, untold
from polyak.transfer.layout_parts import shape_of
from polyak.transfer.layout_recurrent import refuse_unclear
from polyak.transfer.layout_rules import Rule
from polyak.weights import Globs, Weight, glob_match

SAME = "same"
_WRAPPED = "TorchModuleWrapper"  # Keras runs a module of PyTorch, whose arrays it leaves as they are
_SEPARABLE = "SeparableConv"
_GRUS = ("GRU", "Bidirectional GRU")
_ORDER = 'if both have their layers in one order, pair them with by="position"'
Pairs = list[tuple[Block, Block]]
Named = list[tuple[str, Block]]


@dataclass(frozen=True, slots=True)
class Pairing:
    """What the caller says of a pairing.

    Attributes:
        rename: the source's layers under the target's names; names of weights are understood, too.
        position: pair in order, where counts, classes and shapes prove it.
        layers: the Keras class of layers by glob, or "same" for arrays that lie alike on both sides.
        include, exclude: globs of weights.
    """

    rename: Rename | None = None
    position: bool = False
    layers: Mapping[str, str] = field(default_factory=dict)
    include: Globs = "*"
    exclude: Globs = ()
    source: str = "the source"
    target: str = "the target"

    def excluded(self, path: str) -> bool:
        return glob_match(path, self.exclude)

    def offered(self, block: Block) -> Block:
        """A source's layer less the weights that are left out."""
        kept = {local: w for local, w in block.weights.items() if not self.excluded(w.path)}
        return replace(block, weights=kept)

    def wanted(self, block: Block) -> bool:
        """Whether any weight of a target's layer is asked for."""
        return any(self.asked(w.path) for w in block.weights.values())

    def asked(self, path: str) -> bool:
        """Whether a target's weight is asked for."""
        return glob_match(path, self.include) and not self.excluded(path)

    def said(self, *found: Block | None) -> str | None:
        """The class that the caller gave for a layer, by its path on either side."""
        paths = [path for b in found if b is not None for path in (b.path, b.name)]
        for glob, layer in self.layers.items():
            if any(glob_match(path, glob) for path in paths):
                return layer
        return None


def pair(ours: Sequence[Block], theirs: Sequence[Block], layout: Layout, pairing: Pairing) -> Pairs:
    """Source and target layers that belong together; ``layout`` is the source's.

    What a layer is shows in all of its weights; those that are excluded are taken out of it afterwards.

    Raises:
        MissingWeight, UnexpectedWeight: a layer without partner.
        AmbiguousMatch: two layers of one name, or an order that counts, classes or shapes speak against.
    """
    refuse_unused(pairing, ours, theirs)
    if pairing.position:
        offered = told_order(ours, [b for b in map(pairing.offered, ours) if b.weights], pairing.source)
        wanted = told_order(theirs, [t for t in theirs if pairing.wanted(t)], pairing.target)
        return _in_order(offered, wanted, layout, pairing)
    mine: Named = [(_renamed(b, pairing.rename), b) for b in ours]
    other: Named = [(b.name, b) for b in theirs]
    if layout == "keras":
        other = joined_pairs(other, _separable(mine))
    else:
        mine = joined_pairs(mine, _separable(other))
    mine = [(n, left) for n, b in mine if (left := pairing.offered(b)).weights]
    found = _unique(mine, pairing.source)
    targets = _unique(other, pairing.target)
    pairs = [(found[n], t) for n, t in targets.items() if n in found and pairing.wanted(t)]
    missing = [t for n, t in targets.items() if n not in found and pairing.wanted(t)]
    unexpected = [b for n, b in found.items() if n not in targets]
    if missing:
        raise _missing(missing, unexpected, _by_order(targets, found), pairing)
    if unexpected:
        raise _unexpected(unexpected, pairing)
    return pairs


def _separable(named: Named) -> list[str]:
    return [name for name, b in named if b.layer.startswith(_SEPARABLE)]


def _renamed(block: Block, rename: Rename | None) -> str:
    """The name that the target has for a layer: renamed as a layer, else as its weights are."""
    if rename is None:
        return block.name
    plain = _slashed(rename)
    forms: tuple[tuple[str, Rename], ...] = ((block.path, rename), (block.name, plain))
    for form, names in forms:
        if (new := apply_rename(form, names)) != form:
            return normal(new)
    for local in block.weights:
        old = f"{block.name}/{local}"
        new = normal(apply_rename(old, plain))
        if new != old and new.endswith(f"/{local}"):
            return new.removesuffix(f"/{local}")
    return block.name


def _slashed(rename: Rename) -> Rename:
    """Names and globs with slashes; expressions stay as they are."""
    if not isinstance(rename, Mapping):
        return rename
    return {k if isinstance(k, re.Pattern) else normal(k): normal(v) for k, v in rename.items()}


def refuse_unused(pairing: Pairing, ours: Sequence[Block], theirs: Sequence[Block]) -> None:
    """Raise for a class that is none, and for names in ``layers`` and ``rename`` that no layer has."""
    for glob, layer in pairing.layers.items():
        if layer not in rules.BY_KERAS and layer != SAME:
            raise WeightError(
                f"layers={{{glob!r}: {layer!r}}}: expected a class of Keras layers that has a rule, or {SAME!r}"
                f"{nearest_name(layer, rules.BY_KERAS)}",
                hint=f"rules are there for {', '.join(rules.BY_KERAS)}",
            )
        if not any(glob_match(path, glob) for b in (*ours, *theirs) for path in (b.path, b.name)):
            paths = [b.path for b in ours]
            raise MissingWeight(
                f"layers={glob!r}: expected a layer, received a glob that matches none{nearest_name(glob, paths)}",
                hint=f"the layers are called such as {paths[0]!r}" if paths else None,
            )
    for old, new in pairing.rename.items() if isinstance(pairing.rename, Mapping) else ():
        if all(_renamed(b, {old: new}) == b.name for b in ours):
            raise MissingWeight(
                f"rename={old!r}: expected a layer of {pairing.source}, received a name of none"
                f"{nearest_name(str(old), [b.path for b in ours])}",
                hint='rename maps layers of the source to layers of the target: rename={"features.0": "stem"}',
            )


def _unique(named: Named, where: str) -> dict[str, Block]:
    found: dict[str, Block] = {}
    for name, block in named:
        if name in found:
            raise AmbiguousMatch(
                f"{where}: expected one layer {name!r}, received {found[name]} and {block}",
                hint="give each a name of its own with rename=",
            )
        found[name] = block
    return found


def _missing(
    missing: Sequence[Block], unexpected: Sequence[Block], order: Sequence[str], pairing: Pairing
) -> MissingWeight:
    """``order`` is what else to try."""
    first = missing[0]
    found = _partner(first, missing, unexpected)
    near = found or _nearest(first, unexpected)
    tail = f"; nearest: {near}" if near else ""
    said = [f"name the pair with {argument('rename', {found.path: first.path})}"] if found else []
    return MissingWeight(
        f"layer {first}{_more(missing)}: expected a layer of this name for {pairing.target}, "
        f"received none from {pairing.source}{tail}",
        hint="; ".join([*said, *order]) or BY_NAME,
    )


def _unexpected(unexpected: Sequence[Block], pairing: Pairing) -> UnexpectedWeight:
    first = unexpected[0]
    return UnexpectedWeight(
        f"layer {first}{_more(unexpected)} of {pairing.source}: {pairing.target} has no layer of this name",
        hint=f"leave it out with {argument('exclude', next(iter(first.weights.values())).path)}",
    )


def _more(found: Sequence[Block]) -> str:
    return f" and {len(found) - 1} more" if len(found) > 1 else ""


def _nearest(block: Block, among: Sequence[Block]) -> Block | None:
    """A layer of a similar name, if possible with as many numbers."""
    size = _size(block)
    for pool in ([b for b in among if _size(b) == size], among):
        close = difflib.get_close_matches(block.name, [b.name for b in pool], 1)
        if close or len(pool) == 1:
            return next(b for b in pool if not close or b.name == close[0])
    return None


def _partner(first: Block, missing: Sequence[Block], unexpected: Sequence[Block]) -> Block | None:
    """The layer with as many numbers that the first of those missing is, where names, numbers or the order tell."""
    alike, ours = ([b for b in side if _size(b) == _size(first)] for side in (unexpected, missing))
    name = partners(_named(ours), _named(alike)).get(f"{first.name}/")
    return next((b for b in alike if f"{b.name}/" == name), None)


def _by_order(ours: Mapping[str, Block], theirs: Mapping[str, Block]) -> list[str]:
    """The order of all layers as a suggestion, where their names do not speak against it."""
    if untold(list(ours.values())) or untold(list(theirs.values())):
        return []
    moved = {a: b for a, b in zip(_ordered(ours), _ordered(theirs), strict=False) if a != b}
    if len(ours) == len(theirs):
        known = any(a in theirs or b in ours for a, b in moved.items())
        slashed = {f"{a}/": f"{b}/" for a, b in moved.items()}
        if known or denied(slashed, by_names(list(slashed), list(slashed.values()))):
            return []
    return [_ORDER]


def _ordered(side: Mapping[str, Block]) -> list[str]:
    names = {b.path: name for name, b in side.items()}
    return [names[b.path] for b in in_order(list(side.values()))]


def _named(side: Sequence[Block]) -> dict[str, Weight]:
    return {f"{b.name}/": next(iter(b.weights.values())) for b in side}


def _size(block: Block) -> int:
    return max((w.size for w in block.weights.values()), default=0)


def _in_order(ours: list[Block], theirs: list[Block], layout: Layout, pairing: Pairing) -> Pairs:
    if layout == "keras":
        theirs = _joined_in_order(theirs, ours)
    else:
        ours = _joined_in_order(ours, theirs)
    if len(ours) != len(theirs):
        raise AmbiguousMatch(
            f'by="position": expected as many layers on both sides, received {len(ours)} from {pairing.source} and '
            f"{len(theirs)} for {pairing.target}",
            hint="leave layers out with exclude=, or name the pairs with rename=",
        )
    for i, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
        if not _fits(mine, other, layout, pairing):
            raise AmbiguousMatch(
                f'by="position": layers number {i} do not fit: {mine} {shown(mine)} of {pairing.source} and '
                f"{other} {shown(other)} of {pairing.target}",
                hint="the two sides have their layers in another order; name the pairs with rename=",
            )
    return list(zip(ours, theirs, strict=True))


def _joined_in_order(torch: list[Block], keras: Sequence[Block]) -> list[Block]:
    joined, rest = [], list(torch)
    for b in keras:
        if b.layer.startswith(_SEPARABLE) and len(rest) > 1:
            joined.append(pair_of(rest.pop(0), rest.pop(0)))
        elif rest:
            joined.append(rest.pop(0))
    return joined + rest


def shown(block: Block) -> str:
    """The arrays of a layer with their shapes."""
    return ", ".join(f"{n} {s}" for n, s in block.shapes.items())


def _fits(mine: Block, other: Block, layout: Layout, pairing: Pairing) -> bool:
    """Whether the rule for two layers makes just the arrays that the target has."""
    try:
        return fits(rule_for(mine, other, layout, pairing), mine, other, layout)
    except PolyakError:
        return False


def fits(rule: Rule | None, mine: Block, other: Block, layout: Layout) -> bool:
    """Whether a rule makes all arrays of the target's layer in their shapes, out of all of the source's layer."""
    if rule is None:
        return {p.name: mine.shapes[p.of[0]] for p in rules.same(mine.shapes, other.shapes)} == other.shapes
    try:
        parts = list((rule.to_torch if layout == "keras" else rule.to_keras)(mine.shapes, other.shapes))
        made = {p.name: shape_of(p, mine.shapes) for p in parts}
    except (PolyakError, ValueError, IndexError):  # also NumPy's, of arrays with another number of axes
        return False
    needed = {n: s for n, s in other.shapes.items() if n not in rule.untwinned}
    return made == needed and {n for p in parts for n in p.of} | set(rule.untwinned) >= set(mine.shapes)


def rule_for(mine: Block, other: Block | None, layout: Layout, pairing: Pairing) -> Rule | None:
    """The rule for two layers; None where the arrays lie alike. ``other`` is None where nothing is there yet.

    Raises:
        AmbiguousMatch: the classes have no rule, or are not known and several readings are possible.
    """
    keras, torch = (mine, other) if layout == "keras" else (other, mine)
    said = pairing.said(mine, other)
    if said is not None:
        return None if said == SAME else rules.BY_KERAS[said]
    if keras is not None and keras.layer == _WRAPPED:
        return None
    rule = rules.BY_KERAS.get(keras.layer if keras else "")
    if rule is not None:
        if torch is not None and torch.layer and torch.layer not in rule.torch:
            # A class that nobody knows may be the user's own kind of the class that the rule is for.
            known = rules.by_torch(torch.layer) or [rule]
            raise _no_rule(mine, other, f'"{known[0].keras[0]}"')
        _refuse_unclear(rule, mine, other)
        return rule
    if torch is not None and torch.layer in rules.TORCH_CLASSES:
        return _by_torch(mine, other, layout, torch.layer)
    _refuse_turns(mine, other)
    return None


def refuse_half_said(pairs: Pairs, layout: Layout, pairing: Pairing) -> None:
    """Raise AmbiguousMatch for a square layer of no known class beside one that was said to lie alike.

    Files do not tell a layer of transformers' ``Conv1D``, which lies as in Keras, from a ``Linear``.
    """
    sides = [((mine, other), *((mine, other) if layout == "keras" else (other, mine))) for mine, other in pairs]
    unknown = [(both, keras) for both, keras, torch in sides if keras.layer == "Dense" and not torch.layer]
    alike = [both[0] for both, _ in unknown if pairing.said(*both) == SAME]
    for (mine, other), keras in unknown:
        if alike and pairing.said(mine, other) is None and any(rules.turns(s) for s in keras.shapes.values()):
            raise AmbiguousMatch(
                f"layer {mine} -> {other}: it is square and of no known class, and {alike[0]} was said to lie alike on "
                "both sides; its axes could be the other way round without anybody seeing it",
                hint=f"say how it lies: {argument('layers', {mine.path: 'Dense'})} to turn it as a Dense layer, "
                f'or "{SAME}"',
            )


def _by_torch(mine: Block, other: Block | None, layout: Layout, name: str) -> Rule:
    """The Keras side has names alone: the one rule of PyTorch's class under which all arrays fit."""
    keras = mine if layout == "keras" else other
    fitting = [r for r in rules.by_torch(name) if other and fits(r, mine, other, layout)]
    if keras is None or keras.layer or len(fitting) != 1:
        raise _no_rule(mine, other, " or ".join(f'"{r.keras[0]}"' for r in fitting or rules.by_torch(name)))
    _refuse_unclear(fitting[0], mine, other)
    _refuse_flax(fitting[0], keras)
    return fitting[0]


def _refuse_flax(rule: Rule, keras: Block) -> None:
    """Raise AmbiguousMatch for a kernel of Keras' or Flax', which have its last two axes in another order."""
    kernel = keras.shapes.get("kernel", ())
    if kernel and rule.torch[0].startswith("ConvTranspose") and kernel[-2:-1] == kernel[-1:]:
        raise AmbiguousMatch(
            f"layer {keras}: Keras and Flax keep such kernels in another order, and this one has as many channels in "
            "as out, so that nobody would see it",
            hint=f"{argument('layers', {keras.path: rule.keras[0]})} says that it lies as in Keras; for those of Flax "
            "there is no rule",
        )


def _no_rule(mine: Block, other: Block | None, classes: str) -> AmbiguousMatch:
    return AmbiguousMatch(
        f"layer {mine}{f' -> {other}' if other else ''}: no layout rule is known for these two classes",
        hint=f"say in whose layout it is: layers={{{quoted(mine.path)}: {classes}}}, "
        f'or "{SAME}" if the arrays lie alike',
    )


def _refuse_unclear(rule: Rule, mine: Block, other: Block | None) -> None:
    if rule.keras[0] in _GRUS:
        word = argument("layers", {mine.path: rule.keras[0]})
        refuse_unclear(mine.shapes, other.shapes if other else {}, word)


def _refuse_turns(mine: Block, other: Block | None) -> None:
    """Layers of no known class: arrays go over as they are, where a missing transposition would be seen."""
    for name, w in mine.weights.items():
        twin = None if other is None else other.weights.get(name)
        if other is not None and (twin is None or twin.shape != w.shape):
            raise _no_rule(mine, other, '"Dense"')
        if rules.turns(w.shape) or (other is None and _wide(w)):
            raise AmbiguousMatch(
                f"weight {w.path!r} {w.shape} of layer {mine}: no rule is known for this class, and its axes could be "
                f"the other way round without anybody seeing it",
                hint=f"say how it lies: {argument('layers', {mine.path: 'Dense'})} to turn it as a Dense layer, "
                f'or "{SAME}" to take it as it is',
            )


def _wide(weight: Weight) -> bool:
    return sum(n > 1 for n in weight.shape) > 1
