"""Matching: pairs of source and target weights, by one kind of evidence, checked against the others.

No single naming scheme is safe: each pairs wrong weights of one shape under some change of the
model. So the pairs are made by one key (the structural path unless the caller says otherwise) and
every other key that exists on both sides may object. An objection is an error, never a choice.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from polyak.errors import AmbiguousMatch, MissingWeight, PolyakError, RuleError, UnexpectedWeight
from polyak.weights import Kind, Weight

Key = Literal["path", "structure", "name", "creation", "position"]
Rename = Mapping[str, str] | Callable[[str], str]
_WITNESSES: tuple[Key, ...] = ("structure", "name", "creation")


@dataclass(frozen=True, slots=True)
class Pair:
    """One source weight, the target weight it belongs to, and whether the caller named the pair."""

    source: Weight
    target: Weight
    told: bool = False


@dataclass(frozen=True, slots=True)
class Pairing:
    """The pairs, and what stayed without a partner on each side."""

    pairs: tuple[Pair, ...]
    missing: tuple[Weight, ...]
    unexpected: tuple[Weight, ...]


def pair(source: Sequence[Weight], target: Sequence[Weight], by: Key = "path", rename: Rename | None = None) -> Pairing:
    """Pair by one key after renaming. Nothing is refused here but a rename that makes two names one.

    Example:
        >>> w = Weight("net/head/bias", (3,), "float32", Kind.TRAINABLE)
        >>> t = Weight("head/bias", (3,), "float32", Kind.TRAINABLE)
        >>> pair([w], [t], rename={"net/*": "*"}).pairs[0].source.path
        'net/head/bias'
    """
    names = _renamed(source, by, rename)
    keyed = _unique(names)
    pairs = [_pair(keyed[key], t, by, rename) for t in target if (key := key_of(t, by)) in keyed]
    if not pairs and by == "path" and rename is None:
        pairs = _by_scope(source, target)
    paired_sources = {p.source.path for p in pairs}
    paired_targets = {p.target.path for p in pairs}
    return Pairing(
        tuple(pairs),
        tuple(t for t in target if t.path not in paired_targets),
        tuple(s for s in source if s.path not in paired_sources),
    )


def key_of(weight: Weight, by: Key) -> str | None:
    """The value of one kind of evidence; None where a foreign file has none."""
    if by == "path":
        return weight.path
    if by == "position" and weight.kind is Kind.SEED:
        return None
    return None if weight.evidence is None else str(getattr(weight.evidence, by))


def refuse_conflicts(pairing: Pairing, source: Sequence[Weight], target: Sequence[Weight], where: str) -> None:
    """Raise AmbiguousMatch where another kind of evidence points at another weight of the same shape.

    Example: a layer of dropout inserted into a list shifts the index in the path but not the
    order of the layers that own weights; the two then disagree about ``blocks/2/kernel``.
    """
    for witness in _WITNESSES:
        sources = _index(source, witness)
        targets = _index(target, witness)
        for p in pairing.pairs:
            key = key_of(p.target, witness)
            other = sources.get(key) if key in targets else None
            if not p.told and other is not None and _rivals(p, other):
                raise _conflict(p, other, witness, where)


def require_complete(pairing: Pairing, source_label: str, target_label: str) -> None:
    """Raise MissingWeight or UnexpectedWeight unless every weight but random seeds has a partner."""
    missing = [w for w in pairing.missing if w.kind is not Kind.SEED]
    unexpected = [w for w in pairing.unexpected if w.kind is not Kind.SEED]
    if missing:
        raise _missing(missing, unexpected, source_label, target_label)
    if unexpected:
        raise _unexpected(unexpected, source_label, target_label)
    if not any(p.target.kind is not Kind.SEED for p in pairing.pairs):
        raise MissingWeight(
            f"nothing to transfer from {source_label} to {target_label}: no weight is paired",
            hint="check include= and exclude=, and that both sides are built",
        )


def apply_rename(path: str, rename: Rename | None) -> str:
    """A source path under its new name. In a mapping the stars of the old glob fill those of the new one.

    Example:
        >>> apply_rename("enc/0/kernel", {"enc/*": "encoder/*"})
        'encoder/0/kernel'
    """
    if rename is None:
        return path
    if not isinstance(rename, Mapping):
        return rename(path)
    for old, new in rename.items():
        found = re.fullmatch("(.*)".join(re.escape(part) for part in old.split("*")), path)
        if found:
            return _fill(new, found.groups(), old)
    return path


def _fill(new: str, stars: tuple[str, ...], old: str) -> str:
    if new.count("*") != len(stars):
        raise RuleError(
            f"rename {old!r}: expected {len(stars)} stars in the new name, received {new!r}",
            hint='write for example rename={"enc/*": "encoder/*"}',
        )
    parts = new.split("*")
    return "".join(part + star for part, star in zip(parts, (*stars, ""), strict=True))


def _renamed(source: Sequence[Weight], by: Key, rename: Rename | None) -> list[tuple[str | None, Weight]]:
    if rename is None or by != "path":
        return [(key_of(w, by), w) for w in source]
    return [(apply_rename(w.path, rename), w) for w in source]


def _unique(names: Iterable[tuple[str | None, Weight]]) -> dict[str | None, Weight]:
    keyed: dict[str | None, Weight] = {}
    for name, weight in names:
        if name is None:
            continue
        if name in keyed:
            raise AmbiguousMatch(
                f"weights {keyed[name].path!r} and {weight.path!r} are both called {name!r}",
                hint="give each its own name with rename=",
            )
        keyed[name] = weight
    return keyed


def _pair(source: Weight, target: Weight, by: Key, rename: Rename | None) -> Pair:
    told = by != "path" or (rename is not None and apply_rename(source.path, rename) != source.path)
    return Pair(source, target, told)


def _by_scope(source: Sequence[Weight], target: Sequence[Weight]) -> list[Pair]:
    """Pairs under one common leading scope, if they are complete: TF1 puts a scope before every name."""
    needed = [t for t in target if t.kind is not Kind.SEED]
    by_name = {s.path: s for s in source}
    scopes = {s.path.removesuffix(needed[0].path) for s in source if s.path.endswith(f"/{needed[0].path}")} if needed else set()
    fitting = [scope for scope in scopes if all(scope + t.path in by_name for t in needed)]
    if len(fitting) != 1:
        return []
    return [Pair(by_name[fitting[0] + t.path], t, told=True) for t in needed]


def _index(weights: Sequence[Weight], by: Key) -> dict[str, Weight]:
    """Weights under a key, without those keys that do not tell weights apart."""
    keys = Counter(key_of(w, by) for w in weights)
    return {key: w for w in weights if (key := key_of(w, by)) is not None and keys[key] == 1}


def _rivals(p: Pair, other: Weight) -> bool:
    return other.path != p.source.path and other.shape == p.target.shape and other.kind == p.target.kind


def _conflict(p: Pair, other: Weight, witness: Key, where: str) -> AmbiguousMatch:
    return AmbiguousMatch(
        f"weight {p.target.path!r}: expected one source, received two of shape {p.target.shape} from {where}: "
        f"{p.source.path!r} by path and {other.path!r} by {witness}",
        hint=f'say which evidence is right, by="path" or by="{witness}", or name the pairs with rename=',
    )


def _missing(missing: list[Weight], unexpected: list[Weight], source: str, target: str) -> PolyakError:
    first = missing[0]
    near = nearest(first, unexpected)
    message = (
        f"weight {first.path!r}: expected {first.shape} {first.dtype} for {target}, received nothing from {source}"
        f"{_others(missing)}"
    )
    if near is None:
        return MissingWeight(message, hint=f'leave it as it is with exclude="{first.path}"')
    renames = f'rename={{"{near.path}": "{first.path}"}}'
    return MissingWeight(f"{message}; nearest: {near.path!r}", hint=f'pair them with {renames}{_whole(missing, unexpected)}')


def _whole(missing: list[Weight], unexpected: list[Weight]) -> str:
    """Another kind of evidence that pairs all the rest, as a second suggestion."""
    for by in ("structure", "position"):
        found = {key_of(w, by): w for w in unexpected if w.evidence is not None}
        if all((s := found.get(key_of(t, by))) is not None and s.shape == t.shape for t in missing):
            return f', or all by their {"order" if by == "position" else by} with by="{by}"'
    return ""


def _unexpected(unexpected: list[Weight], source: str, target: str) -> PolyakError:
    first = unexpected[0]
    return UnexpectedWeight(
        f"weight {first.path!r} {first.shape} of {source} has no place in {target}{_others(unexpected)}",
        hint=f'leave it out with exclude="{first.path}"',
    )


def _others(weights: list[Weight]) -> str:
    return f" (and {len(weights) - 1} more)" if len(weights) > 1 else ""


def nearest(weight: Weight, candidates: Sequence[Weight]) -> Weight | None:
    """The candidate of the same shape at the most similar path, or the most similar path of any shape."""
    same_shape = [c for c in candidates if c.shape == weight.shape]
    for pool, cutoff in ((same_shape, 0.0), (candidates, 0.6)):
        close = difflib.get_close_matches(weight.path, [c.path for c in pool], 1, cutoff)
        if close:
            return next(c for c in pool if c.path == close[0])
    return None
