"""That no weight is left without a partner; or the error that says which is, and what it could be paired with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from polyak.errors import MissingWeight, UnexpectedWeight, argument, listed
from polyak.renaming import apply_rename
from polyak.transfer import computed, inner_counts
from polyak.transfer.kinship import by_names, denied, in_own_order, without_numbers
from polyak.transfer.match import Key, Pair, Pairing, framework, have_other_locals, key_of, local_name
from polyak.transfer.nearest import beneath, in_order, nearest, partner, prefixes
from polyak.weights import Kind, Weight, glob_match

_UNORDERED = (
    "the lists of the two sides have other weights at other places, so that a number does not tell which is meant: "
    "name the pairs with rename="
)


def require_complete(pairing: Pairing, source_label: str, target_label: str, note: str = "") -> None:
    """Raise MissingWeight or UnexpectedWeight unless every weight but random seeds has a partner.

    ``note`` is what is known of weights that the source's writer leaves out.
    """
    missing = [w for w in pairing.missing if w.kind is not Kind.SEED]
    unexpected = [w for w in pairing.unexpected if w.kind is not Kind.SEED]
    if missing:
        by_chance = [p.source for p in pairing.pairs if not _fits(p)]  # of the name of another layer
        fitting = [p for p in pairing.pairs if _fits(p)]
        error = _missing(missing, [*unexpected, *by_chance], fitting, source_label, target_label)
        error.hint = error.hint or _left_alone(missing, pairing.pairs)
        error.hint = "; ".join(filter(None, [error.hint, note]))
        raise error
    if unexpected:
        raise _unexpected(unexpected, pairing, source_label, target_label)
    if not any(p.target.kind is not Kind.SEED for p in pairing.pairs):
        raise MissingWeight(
            f"{target_label}: expected at least one weight to transfer, received none from {source_label}",
            hint="include= and exclude= are compared with the target's names, after rename=",
        )


def _fits(p: Pair) -> bool:
    return p.told or p.source.shape == p.target.shape


def _missing(
    missing: list[Weight], unexpected: list[Weight], pairs: Sequence[Pair], source: str, target: str
) -> MissingWeight:
    first = missing[0]
    found = partner(first, missing, unexpected)
    near = found or nearest(first, unexpected)
    message = (
        f"weight {first.path!r}: expected {first.shape} {first.dtype} for {target}, received nothing from {source}"
        f"{_others(missing)}"
    )
    if near is not None and any((w.path, w.shape) == (first.path, first.shape) for w in unexpected):
        why = "where rename= or by= gave it another name"
        return MissingWeight(f"{message}, {why}", hint='leave it out of rename=, or pair by="path"')
    advice = _before_names(near, missing, unexpected, pairs)
    if near is None:
        return MissingWeight(message, hint=advice)
    renames = _lists(found, missing, unexpected, pairs)
    if not advice and (renames == {} or (renames is None and _counted_otherwise(first, near, pairs))):
        advice = _UNORDERED
    if not (advice or renames or found) and near.shape == first.shape:
        return MissingWeight(message, hint=_left_open(first, unexpected) + _whole(missing, unexpected, pairs))
    if not (advice or renames) and near.shape != first.shape:
        return MissingWeight(f"{message}; nearest: {near.path!r} of {near.shape}")
    told = renames or _renames(near, missing, unexpected, pairs)
    advice = advice or f"pair them with {argument('rename', told)}{_whole(missing, unexpected, pairs)}"
    return MissingWeight(f"{message}; nearest: {near.path!r}", hint=advice)


def _before_names(near: Weight | None, missing: list[Weight], unexpected: list[Weight], pairs: Sequence[Pair]) -> str:
    """What must be done before names can be paired; empty where they can."""
    first, ours, theirs = missing[0], [*(p.target for p in pairs), *missing], [*(p.source for p in pairs), *unexpected]
    if advice := inner_counts.hint(missing, ours) or computed.hint(first, near, ours, theirs):
        return advice
    other = framework([near] if near else []) or framework(unexpected)
    if other and (framework([first]) or framework(missing)) not in ("", other):
        return f'say how the source lies: layout="{other}"'
    return ""


def _lists(
    found: Weight | None, missing: list[Weight], unexpected: list[Weight], pairs: Sequence[Pair]
) -> dict[str, str] | None:
    """Globs for lists whose places have shifted; see ``in_order``."""
    ours, theirs = [*(p.target for p in pairs), *missing], [*(p.source for p in pairs), *unexpected]
    return in_order(missing, (found or missing[0]).path, ours, theirs)


def _renames(near: Weight, missing: list[Weight], unexpected: list[Weight], pairs: Sequence[Pair]) -> Mapping[str, str]:
    """Globs that pair all that is missing with what is near, or the two names."""
    first, known = missing[0], {w.path: w.shape for w in unexpected}
    start = beneath(first, missing, known)
    globs = ("*", f"{start}*") if start else prefixes(near.path, first.path, missing, known)
    if globs is None or any(glob_match(p.source.path, globs[0]) for p in pairs):  # it would be renamed, too
        return {near.path: first.path}
    return _apart(globs, known) | dict([globs])


def _apart(globs: tuple[str, str], known: Iterable[str]) -> dict[str, str]:
    """Names out of the way for what already has one of those that the globs give."""
    given = {apply_rename(path, dict([globs])) for path in known if glob_match(path, globs[0])}
    return {path: f"unused/{path}" for path in known if path in given and not glob_match(path, globs[0])}


def _left_open(first: Weight, unexpected: Sequence[Weight]) -> str:
    """What a weight could be whose name does not tell it."""
    could = [repr(w.path) for w in unexpected if w.shape == first.shape]
    return f"names do not tell which it is of {listed(could, 3)}: name the pairs with rename="


def _counted_otherwise(first: Weight, near: Weight, pairs: Sequence[Pair]) -> bool:
    """Whether two names differ in a number alone, and others that differ so from them were paired by their numbers:
    ``fc1`` and ``fc3``, where ``fc2`` is on both sides, are the first of the one and the last of the other.
    """
    counted = [p.target for p in pairs if not p.told and p.target.shape == first.shape]
    stem = without_numbers(first.path)
    return stem == without_numbers(near.path) and any(without_numbers(w.path) == stem for w in counted)


def _whole(missing: list[Weight], unexpected: list[Weight], known: Sequence[Pair]) -> str:
    """Another kind of evidence that pairs all the rest, as a second suggestion."""
    kinds: tuple[tuple[Key, str], ...] = (("structure", "structure"), ("name", "name"), ("position", "order"))
    for by, word in kinds:
        if any(key_of(p.source, by) != key_of(p.target, by) for p in known):
            continue
        found = {key_of(w, by): w for w in unexpected if w.evidence is not None}
        pairs = [(t, s) for t in missing if (s := found.get(key_of(t, by)))]
        if len(pairs) == len(missing) and all(s.shape == t.shape for t, s in pairs) and not _denied(by, pairs):
            return f', or all by their {word} with by="{by}"'
    return ""


def _denied(by: Key, pairs: Sequence[tuple[Weight, Weight]]) -> bool:
    """Whether names speak against pairs, or, where they were made by an order, that is no order of layers."""
    if by == "position" and any(have_other_locals(t, s) for t, s in pairs):
        return True
    for shape in dict.fromkeys(t.shape for t, _ in pairs):
        alike = [(t, s) for t, s in pairs if t.shape == shape]
        ours, theirs = ({w.path: w for w in side} for side in zip(*alike, strict=True))
        if by != "name" and not (in_own_order(ours) and in_own_order(theirs)):
            return True
        if denied({t.path: s.path for t, s in alike}, by_names(list(ours), list(theirs))):
            return True
    return False


def _left_alone(missing: Sequence[Weight], pairs: Sequence[Pair]) -> str:
    """Statistics, which many sources leave out, by their local names at once; else the first weight by its path."""
    globs = list(dict.fromkeys(f"*{local_name(w.path)}" for w in missing))
    derived = all(w.kind in (Kind.STATISTIC, Kind.COUNTER) for w in missing)
    if len(missing) == 1 or not derived or any(glob_match(p.target.path, globs) for p in pairs):
        return f"leave it as it is with {argument('exclude', missing[0].path)}"
    return f"leave all of them as they are with {argument('exclude', globs)}"


def _unexpected(unexpected: list[Weight], pairing: Pairing, source: str, target: str) -> UnexpectedWeight:
    first = unexpected[0]
    part = computed.parts([*(p.source for p in pairing.pairs), *unexpected]).get(first.path)
    return UnexpectedWeight(
        f"weight {first.path!r}: expected no such weight for {target}, received {first.shape} {first.dtype} "
        f"from {source}{_others(unexpected)}",
        hint=computed.advice(part) if part else _left_out(unexpected, pairing),
    )


def _left_out(unexpected: Sequence[Weight], pairing: Pairing) -> str:
    """All of a part that has nothing of the target, if all is of one; else the first weight by its path."""
    # The new names: an old one that the target has, too, means the target's weight.
    names = [pairing.names.get(w.path, w.path) for w in unexpected]
    start = names[0][: names[0].replace(".", "/").find("/") + 1]
    used = any(path.startswith(start) for p in pairing.pairs for path in (p.source.path, p.target.path))
    if not start or used or len(names) == 1 or not all(name.startswith(start) for name in names):
        return f"leave it out with {argument('exclude', names[0])}"
    return f"leave all of them out with {argument('exclude', start + '*')}"


def _others(weights: list[Weight]) -> str:
    return f" (and {len(weights) - 1} more)" if len(weights) > 1 else ""
