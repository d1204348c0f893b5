"""Weights that a target has once and a source under several names: tied weights of PyTorch, and in files of Keras'."""

from __future__ import annotations

from dataclasses import replace

from polyak.errors import AmbiguousMatch, argument
from polyak.manifest import digest
from polyak.snapshot import Snapshot
from polyak.transfer.match import natural_key
from polyak.transfer.target import Target
from polyak.weights import Globs, glob_match


def without_twins(source: Snapshot, target: Target, exclude: Globs = ()) -> Snapshot:
    """The source with one name for each weight that the target shares between names; ``exclude`` leaves names out.

    Where a file holds several of the names, their arrays are read and compared.

    Raises:
        AmbiguousMatch: they differ, so that they do not fit into one weight.
    """
    aliases = {**target.aliases, **_stored_again(source, target)}
    twins = {a: first for a, first in aliases.items() if a in source and not glob_match(a, exclude)}
    if not twins:
        return source
    items = dict(source.items_by_path)
    names = {first: first for first in twins.values() if first in source}
    for alias, first in twins.items():
        item = items.pop(alias)
        if first not in names:
            items[first], names[first] = replace(item, weight=replace(item.weight, path=first)), alias
        elif digest(source[alias]) != digest(source[names[first]]):
            raise AmbiguousMatch(
                f"weights {first!r} and {alias!r}: expected one value, because {target.label} shares it, received two "
                f"from {source.origin}",
                hint=f"leave one of them out with {argument('exclude', alias)}",
            )
    known = source.manifest
    return Snapshot(items.values(), source.states, source.origin, source.integrity, known, source.moment)


def _stored_again(source: Snapshot, target: Target) -> dict[str, str]:
    """Of a file whose weights have no names but places, further places of a weight, and the first one."""
    if natural_key(source.weights) != "saved":
        return {}
    known = [w.evidence for w in target.weights if w.evidence is not None and w.evidence.again]
    return {place: evidence.saved for evidence in known for place in evidence.again}
