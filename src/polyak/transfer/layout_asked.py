"""A transfer between two layouts, as one within the target's layout: what is asked, in the words of the target."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from polyak.errors import AmbiguousMatch, WeightError
from polyak.renaming import refuse_no_rename
from polyak.snapshot import Snapshot, refuse_unmatched
from polyak.transfer.layout_pairs import Pairing
from polyak.transfer.layout_rules import turns
from polyak.transfer.layouts import CALLED, said_layout, seen_as, told_by_classes
from polyak.transfer.match import are_of_two_frameworks, framework, is_numbered_kernel, natural_key
from polyak.transfer.target import Target
from polyak.weights import as_globs, glob_match, transposed_convolution

OWN = ("layout", "layers")
_JAX = "jax"
# Names that modules of Flax and Haiku give themselves and their arrays, where Keras has others; and what holds arrays
# of any tool.
_NEUTRAL = ("npz", "safetensors", "polyak")
_OF_JAX = re.compile(r"params/.*|(.*/)?[A-Z][A-Za-z]*_\d+/.*|.*/w")
_OTHER = {"keras": "torch", "torch": "keras"}


@dataclass(frozen=True, slots=True)
class Change:
    """A source as the target has it.

    Attributes:
        source: the view.
        asked: what is left to ask of the transfer; the weights that stand alone are excluded in it.
        alone: weights of either side that the other layout has nothing for.
    """

    source: Snapshot
    asked: dict[str, Any]
    alone: tuple[str, ...]


def change(source: Snapshot, target: Target, asked: Mapping[str, Any]) -> Change | None:
    """The view that a transfer needs; None where both sides have one layout, or nobody says that they differ.

    Raises:
        WeightError: ``by`` or ``layers`` does not go with what the two sides are.
        MissingWeight, UnexpectedWeight, AmbiguousMatch, ShapeMismatch: the two sides do not fit.
    """
    layout = said_layout(source, asked.get("layout"))
    theirs = _layout_of(target)
    if layout is None or not theirs or layout == theirs:
        if asked.get("layers"):
            raise WeightError(
                f"layers=: expected two layouts, received {layout or 'an unknown one'} from {source.origin} and "
                f"{theirs or 'an unknown one'} of {target.label}",
                hint='say in which layout the source is: layout="torch" or layout="keras"',
            )
        return None
    _refuse_typos(source, target, asked)
    if natural_key(source.weights) == "position":
        raise AmbiguousMatch(
            f"{target.label}: expected weights by name, whose layers tell how they are turned, received "
            f"{len(source.weights)} numbers from {source.origin}",
            hint="they are in the order of parameters(): transfer them into the module that they are of, and from that "
            "module",
        )
    if not (asked.get("layout") or asked.get("layers")):
        _refuse_other_names(source, layout)
    view = seen_as(source, target.weights, _pairing(source, target, asked), layout)
    held = {w.path for w in target.weights}
    alone = [path for path in view.alone if path in held]
    exclude = [g for g in as_globs(asked.get("exclude", ())) if any(glob_match(path, g) for path in held)]
    rest = {k: v for k, v in asked.items() if k not in ("rename", "by", "exclude", *OWN)}
    return Change(view.snapshot, rest | {"exclude": (*exclude, *alone)}, view.alone)


def _refuse_other_names(source: Snapshot, layout: str) -> None:
    """Raise AmbiguousMatch where a file of one framework has the names of the other: so a Keras model on PyTorch is
    saved by ``torch.save``, with arrays that lie as in Keras.
    """
    names = framework(source.weights)
    if names not in ("", layout) and not source.manifest.tool.startswith("polyak"):
        kernel = next(w.path for w in source.weights if framework([w]) == names)
        raise AmbiguousMatch(
            f"weight {kernel!r}: expected a name of {CALLED[layout]} in {source.origin}, received one of "
            f"{CALLED[names]}",
            hint=f'say how the source lies: layout="{names}", if a model of {CALLED[names]} wrote it; else '
            f'layout="{layout}"',
        )


def refuse_unsaid(pairs: Sequence[tuple[str, str]], source: Snapshot, target: Target, layout: str | None) -> None:
    """Raise AmbiguousMatch where nobody has said how the source lies, so that an axis could be another one without
    anybody seeing it.
    """
    if not layout:
        _refuse_transposed(pairs, source, target)
    theirs = _layout_of(target)
    if not (theirs and said_layout(source, layout)):
        _refuse_names_of_two(pairs, source, target, theirs)


def _refuse_names_of_two(
    pairs: Sequence[tuple[str, str]], source: Snapshot, target: Target, theirs: str | None
) -> None:
    """Where a name of one framework, or a number, was given a weight's name of the other."""
    shapes = {w.path: w.shape for w in target.weights}
    for ours, wanted in pairs:
        is_number = is_numbered_kernel(ours, wanted)
        if (is_number or are_of_two_frameworks(ours, wanted)) and turns(shapes[wanted]):
            raise AmbiguousMatch(
                f"weight {wanted!r} {shapes[wanted]}: expected two sides that say in which layout they lie, received "
                f"{ours!r} from {source.origin}, whose axes may be the other way round",
                hint=_how_to_say(theirs, is_number),
            )


def _refuse_transposed(pairs: Sequence[tuple[str, str]], source: Snapshot, target: Target) -> None:
    """Raise AmbiguousMatch for a transposed convolution of Keras in a tree of JAX, where such kernels lie otherwise."""
    wanted = {w.path: w for w in target.weights}
    of_jax = _JAX in (source.manifest.layout, target.layout)
    for ours, path in pairs:
        layer = transposed_convolution(wanted[path], source.items_by_path[ours].weight)
        if layer and (of_jax or (ours != path and _may_be_of_jax(ours, source))):
            tree = target.label if target.layout == _JAX else source.origin
            raise AmbiguousMatch(
                f"weight {path!r} {wanted[path].shape}: expected a word on how {ours!r} lies beside the kernel of "
                f"{layer}, received none for {tree}, and the shape does not show it: Flax has the space reversed and "
                "the last two axes exchanged, unless it is ConvTranspose(transpose_kernel=True); Haiku has the space "
                "reversed",
                hint='layout="keras" takes it as it is; else turn it first, for two axes of space by '
                "kernel[::-1, ::-1].swapaxes(-1, -2) of Flax, or kernel[::-1, ::-1] of Haiku",
            )


def _may_be_of_jax(name: str, source: Snapshot) -> bool:
    said = source.manifest
    return not said.layout and said.tool.partition(" ")[0] in _NEUTRAL and bool(_OF_JAX.fullmatch(name))


def _layout_of(target: Target) -> str | None:
    """By which a source is turned. Trees of JAX lie as in Keras, but for what ``refuse_unsaid`` refuses."""
    return "keras" if target.layout == _JAX else target.layout or told_by_classes(target.weights)


def _how_to_say(theirs: str | None, is_number: bool) -> str:
    if not theirs:
        return "give a model, or a file that says its layout; rename= without like= takes arrays as they are"
    if is_number:
        return f'layout="{theirs}" takes it as it is; else load it into a model of its own framework, and transfer that'
    return f'say it: layout="{_OTHER[theirs]}" turns it, layout="{theirs}" takes it as it is'


def refuse_two_layouts(source: Snapshot, target: Target) -> None:
    """A plan that was stored says which array goes where, and not how it must be turned. Raises WeightError."""
    ours, theirs = said_layout(source, None), _layout_of(target)
    if ours and theirs and ours != theirs:
        raise WeightError(
            f"the plan: expected two sides in one layout, received {ours!r} from {source.origin} and {theirs!r} of "
            f"{target.label}",
            hint="transfer between the layouts of Keras and PyTorch without plan=",
        )


def _pairing(source: Snapshot, target: Target, asked: Mapping[str, Any]) -> Pairing:
    refuse_no_rename(asked.get("rename"))
    return Pairing(
        rename=asked.get("rename"),
        position=asked.get("by") == "position",
        layers=asked.get("layers") or {},
        include=asked.get("include", "*"),
        exclude=asked.get("exclude", ()),
        source=source.origin,
        target=target.label,
    )


def _refuse_typos(source: Snapshot, target: Target, asked: Mapping[str, Any]) -> None:
    if asked.get("by") not in (None, "path", "position"):
        raise WeightError(
            f'by={asked["by"]!r}: expected "path" or "position" between two layouts',
            hint="name the pairs with rename=, from layers of the source to layers of the target",
        )
    paths = [w.path for w in (*target.weights, *source.weights)]
    refuse_unmatched(paths, (), asked.get("exclude", ()), f"{target.label} and {source.origin}")
    refuse_unmatched([w.path for w in target.weights], asked.get("include", "*"), (), target.label)
