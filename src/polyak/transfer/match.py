"""Matching: pairs of source and target weights, by one kind of evidence, checked against the others.

No single naming scheme is safe: each pairs wrong weights of one shape under some change of the
model. So the pairs are made by one key (the structural path unless the caller says otherwise) and
every other key that exists on both sides may object. An objection is an error, never a choice.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from polyak.errors import AmbiguousMatch
from polyak.renaming import Rename, apply_rename
from polyak.weights import Kind, Weight

Key = Literal["path", "structure", "name", "creation", "position", "saved"]
_WITNESSES: tuple[Key, ...] = ("structure", "name", "creation")

# What is a matrix in both frameworks, with its axes in another order.
_KERNEL = re.compile(r"(\w+_)?kernel")
_NUMBER = re.compile(r"(arr_)?\d+")  # what NumPy and Keras call arrays that have no name
_UNNAMED = re.compile(r"variable(_\d+)?|(.*/)?\d+")  # what Keras calls a variable without a name; a place in a list
_WEIGHT = re.compile(r"weight(_[ih]h_l\d+(_reverse)?)?|in_proj_weight|[qkv]_proj_weight")


@dataclass(frozen=True, slots=True)
class Pair:
    """One source weight, the target weight it belongs to, and whether the caller named the pair."""

    source: Weight
    target: Weight
    told: bool = False


@dataclass(frozen=True, slots=True)
class Scope:
    """A leading part of the names that one side has and the other has not, such as ``net/``."""

    source: str = ""
    target: str = ""


@dataclass(frozen=True, slots=True)
class Pairing:
    """The pairs, what stayed without a partner on each side, and the new names of the source."""

    pairs: tuple[Pair, ...]
    missing: tuple[Weight, ...]
    unexpected: tuple[Weight, ...]
    scope: Scope = Scope()
    names: Mapping[str, str] = field(default_factory=dict)


def pair(source: Sequence[Weight], target: Sequence[Weight], by: Key = "path", rename: Rename | None = None) -> Pairing:
    """Pair renamed weights by their new path and all others by one key. A leading scope is seen through where no
    path is shared. Nothing is refused here but two weights of one name.

    Raises:
        AmbiguousMatch: two weights of one side would have one name.
        WeightError: ``rename`` cannot be applied.

    Example:
        >>> w = Weight("net/head/bias", (3,), "float32", Kind.TRAINABLE)
        >>> t = Weight("head/bias", (3,), "float32", Kind.TRAINABLE)
        >>> pair([w], [t], rename={"net/*": "*"}).pairs[0].source.path
        'net/head/bias'
    """
    names = {w.path: apply_rename(w.path, rename) for w in source}
    told = _unique((names[w.path], w) for w in source if names[w.path] != w.path)
    same = _unique((_key(w, by), w) for w in source if names[w.path] == w.path)
    if by == "path":
        _unique((names[w.path], w) for w in source)
    _unique((_key(t, by), t) for t in target if t.path not in told)
    pairs, scope = _pairs(told, same, target, by), Scope()
    if not pairs and by == "path" and rename is None:
        scope = _scope(source, target)
        pairs = _scoped(source, target, scope)
    sources, targets = {p.source.path for p in pairs}, {p.target.path for p in pairs}
    return Pairing(
        tuple(pairs),
        tuple(t for t in target if t.path not in targets),
        tuple(s for s in source if s.path not in sources),
        scope,
        names,
    )


def _pairs(told: Mapping[str, Weight], same: Mapping[str, Weight], target: Sequence[Weight], by: Key) -> list[Pair]:
    pairs = []
    for t in target:
        key = _key(t, by)
        if t.path in told:
            pairs.append(Pair(told[t.path], t, told=True))
        elif key is not None and key in same:
            pairs.append(Pair(same[key], t, told=by != "path"))
    return pairs


def _key(weight: Weight, by: Key) -> str | None:
    """The key to pair by; a random seed, which has no position, goes by its path."""
    return f"seed {weight.path}" if by == "position" and weight.kind is Kind.SEED else key_of(weight, by)


def key_of(weight: Weight, by: Key) -> str | None:
    """The value of one kind of evidence; None where a foreign file has none."""
    if by == "path":
        return weight.path
    if by == "position" and weight.kind is Kind.SEED:
        return None
    if weight.evidence is None or (by == "position" and weight.evidence.position < 0):
        return None
    return str(getattr(weight.evidence, by)) or None


def refuse_untold(weights: Sequence[Weight], by: Key, where: str) -> None:
    """Raise AmbiguousMatch for a side of which nothing but names is known, where others pair by more than these."""
    if weights and all(key_of(w, by) is None for w in weights):
        raise AmbiguousMatch(
            f'by="{by}": expected weights of which the {by} is known, received names alone from {where}',
            hint="name the pairs with rename=, from weights of the source to weights of the target",
        )


def natural_key(source: Sequence[Weight]) -> Key:
    """What the names of a source are: structural paths, places in a file of Keras', or mere numbers."""
    if source and all(w.path.startswith("#") for w in source):
        return "position"
    if source and all(w.evidence is not None and w.evidence.saved == w.path for w in source):
        return "saved"
    return "path"


def numbered(source: Sequence[Weight], target: Sequence[Weight], where: str) -> tuple[Weight, ...]:
    """The target with the positions that the numbers of a source mean: those of all its weights, or of its parameters,
    which is what most tools list.

    Raises:
        AmbiguousMatch: neither are as many and of the same shapes, so that no number means anything.
    """
    own = [t for t in target if t.kind is not Kind.SEED]
    listed = [s.shape for s in source if s.kind is not Kind.SEED]
    for meant in (own, [t for t in own if t.kind is Kind.TRAINABLE]):
        if listed == [t.shape for t in meant]:
            places = {t.path: i for i, t in enumerate(meant)}
            return tuple(_placed(t, places.get(t.path, -1)) for t in target)
    raise AmbiguousMatch(
        f"expected weights by name, or a list of all {len(own)} weights of the target or of its parameters, in its "
        f"order, received {len(listed)} numbers from {where} whose shapes are not those",
        hint="name the pairs with rename=",
    )


def _placed(weight: Weight, position: int) -> Weight:
    if weight.evidence is None or weight.kind is Kind.SEED:
        return weight
    return replace(weight, evidence=replace(weight.evidence, position=position))


def refuse_other_names(pairing: Pairing, source: Sequence[Weight], where: str, by: Key) -> None:
    """Raise AmbiguousMatch where a layer's explicit name is in the file, at another weight of the same shape.

    Keras files have the layers by class and number, its exports number all weights; two branches that changed places
    are told by their names alone.
    """
    for p in pairing.pairs:
        for name in _names_around(p.target):
            if name in _names_around(p.source):
                continue
            for other in source:
                if name in _names_around(other) and other.shape == p.target.shape and _same_end(other, p.source):
                    raise _conflict(p, other, "name", where, ("position", "name") if by == "position" else (by,), by)


def refuse_conflicts(pairing: Pairing, source: Sequence[Weight], target: Sequence[Weight], where: str) -> None:
    """Raise AmbiguousMatch where another kind of evidence points at another weight of the same shape.

    Example: a layer of dropout inserted into a list shifts the index in the path but not the
    order of the layers that own weights; the two then disagree about ``blocks/2/kernel``.
    """
    for witness in _WITNESSES:
        sources = _index(source, witness, pairing.scope.source)
        targets = _index(target, witness, pairing.scope.target)
        for p in pairing.pairs:
            key = _within(key_of(p.target, witness), pairing.scope.target)
            other = sources.get(key) if key in targets else None
            if not p.told and other is not None and _rivals(p, other):
                raise _conflict(p, other, witness, where, _whole(pairing, witness, sources))


def _whole(pairing: Pairing, witness: Key, sources: Mapping[str | None, Weight]) -> tuple[Key, ...]:
    """Of the path and another kind of evidence those that pair all weights: what does not may pair by chance."""
    missing = [t for t in pairing.missing if t.kind is not Kind.SEED]
    wanted = [*(p.target for p in pairing.pairs if p.target.kind is not Kind.SEED), *missing]
    keys = (_within(key_of(t, witness), pairing.scope.target) for t in wanted)
    others: tuple[Key, ...] = (witness,) if all(key in sources for key in keys) else ()
    return others if missing else ("path", *others)


def _unique(names: Iterable[tuple[str | None, Weight]]) -> dict[str, Weight]:
    keyed: dict[str, Weight] = {}
    for name, weight in names:
        if name is None:
            continue
        if name in keyed:
            raise AmbiguousMatch(
                f"weight {name!r}: expected one of this name, received {keyed[name].path!r} and {weight.path!r}",
                hint="give each a name of its own with rename=; exclude= leaves one out by its new name",
            )
        keyed[name] = weight
    return keyed


def _scope(source: Sequence[Weight], target: Sequence[Weight]) -> Scope:
    """The one scope under which one side holds all that the other holds: TF1 puts one before every name."""
    ours, theirs = ([w.path for w in side if w.kind is not Kind.SEED] for side in (source, target))
    found = [Scope(source=s) for s in _scopes(ours, theirs)] + [Scope(target=s) for s in _scopes(theirs, ours)]
    return found[0] if len(found) == 1 else Scope()


def _scopes(outer: Sequence[str], inner: Sequence[str]) -> list[str]:
    if not inner or not outer:
        return []
    held = set(outer)
    candidates = {path.removesuffix(inner[0]) for path in outer if path.endswith(f"/{inner[0]}")}
    return [scope for scope in sorted(candidates) if all(scope + path in held for path in inner)]


def _scoped(source: Sequence[Weight], target: Sequence[Weight], scope: Scope) -> list[Pair]:
    named = {s.path.removeprefix(scope.source): s for s in source if s.path.startswith(scope.source)}
    names = ((t.path.removeprefix(scope.target), t) for t in target if t.path.startswith(scope.target))
    return [Pair(named[name], t) for name, t in names if name in named]


def _within(key: str | None, scope: str) -> str | None:
    """A key less as many leading steps as the scope has: other evidence may call these steps otherwise."""
    return None if key is None else key.split("/", scope.count("/"))[-1]


def _index(weights: Sequence[Weight], by: Key, scope: str) -> dict[str | None, Weight]:
    """Weights under a key, without those keys that do not tell weights apart."""
    keys = [(_within(key_of(w, by), scope), w) for w in weights if w.path.startswith(scope)]
    times = Counter(key for key, _ in keys)
    return {key: w for key, w in keys if key is not None and times[key] == 1}


def _rivals(p: Pair, other: Weight) -> bool:
    return other.path != p.source.path and other.shape == p.target.shape and other.kind == p.target.kind


def _names_around(weight: Weight) -> tuple[str, ...]:
    return () if weight.evidence is None else weight.evidence.names


def are_of_two_frameworks(ours: str, theirs: str) -> bool:
    """Whether one name is a kernel's in Keras and the other one's in PyTorch, whose axes have another order."""
    one, other = local_name(ours), local_name(theirs)
    return any(_KERNEL.fullmatch(a) and _WEIGHT.fullmatch(b) for a, b in ((one, other), (other, one)))


def is_numbered_kernel(ours: str, theirs: str) -> bool:
    """Whether a kernel of either framework is given a mere number, which does not tell whose it is."""
    own = local_name(theirs)
    return bool(_NUMBER.fullmatch(local_name(ours)) and (_KERNEL.fullmatch(own) or _WEIGHT.fullmatch(own)))


def framework(weights: Sequence[Weight]) -> str:
    """Whose names the matrices have: of a norm or a bias they do not tell."""
    own = [local_name(w.path) for w in weights]
    kernels, matrices = (any(name.fullmatch(n) for n in own) for name in (_KERNEL, _WEIGHT))
    return "" if kernels is matrices else "keras" if kernels else "torch"


def local_name(path: str) -> str:
    """The last step of a path."""
    return path.replace(".", "/").rpartition("/")[2]


def _same_end(a: Weight, b: Weight) -> bool:
    return _end(a) == _end(b)


def _end(weight: Weight) -> str:
    """The last step of its path; of a mere number what is known of its name."""
    if weight.path.startswith("#") and weight.evidence is not None:
        return weight.evidence.local
    return weight.path.rpartition("/")[2]


def _conflict(
    p: Pair, other: Weight, witness: Key, where: str, offered: Sequence[Key], by: Key = "path"
) -> AmbiguousMatch:
    choices = " or ".join(f'by="{key}"' for key in offered)
    which = f"say which evidence is right, {choices}, or" if choices else "neither pairs all weights:"
    return AmbiguousMatch(
        f"weight {p.target.path!r}: expected one source, received two of shape {p.target.shape} from {where}: "
        f"{p.source.path!r} by {by} and {other.path!r} by {witness}",
        hint=f"{which} name the pairs with rename=",
    )


def refuse_other_local(p: Pair, where: str) -> None:
    """Raise AmbiguousMatch where a position pairs a kernel with a bias of the same shape."""
    ours, theirs = p.target.evidence, p.source.evidence
    if ours and theirs and have_other_locals(p.target, p.source):
        raise AmbiguousMatch(
            f"weight {p.target.path!r}: expected {ours.local!r} at position {ours.position}, "
            f"received {theirs.local!r} ({p.source.path!r}) from {where}",
            hint="the two sides have their weights in another order; name the pairs with rename=",
        )


def have_other_locals(target: Weight, source: Weight) -> bool:
    """Whether the names of two weights within their layers are known, and differ."""
    ours, theirs = target.evidence, source.evidence
    if not (ours and theirs and theirs.local) or target.kind is Kind.SEED:
        return False
    return ours.local != theirs.local and not any(_UNNAMED.fullmatch(local) for local in (ours.local, theirs.local))
