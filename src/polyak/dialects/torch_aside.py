"""Raw weights that were put aside while the average is in the model: a ``backup`` beside its ``shadow``.

Many a class of one's own keeps the average in ``shadow``, has ``apply_shadow()`` put the model's weights into
``backup``, and ``restore()`` take them from there; others have other words for the two. In a file that was written in
between the model is the average, and what was put aside is raw. What lies there afterwards is old. Which of the two it
is can be seen by the values.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from polyak.contents import Tensor
from polyak.dialects.torch_beside import averages_among, called_average, words_of
from polyak.dialects.torch_sets import Named, agree, bare, parameters, same
from polyak.weights import numpy_dtype

_LOOKED_AT = 1 << 20  # bytes of the smallest parameters
_ASIDE = re.compile(r"(?<![a-z])(backups?|originals?|collected|(temp_)?stored|saved)(?![a-z])")
_SHADOW = re.compile(r"(?<![a-z])(shadows?|ema|swa|avg|averaged?|polyak)(?![a-z])")
_WEIGHTS = re.compile(r"(?<![a-z])(model|net|network|module|weights|param(eter)?s|state|dict)(?![a-z])")


@dataclass(frozen=True, slots=True)
class PutAside:
    """What was put aside: its set, and that of the average that was in the model meanwhile."""

    held: Named
    shadow: Named


def put_aside(found: Mapping[str, Named]) -> list[PutAside]:
    """The sets that a word for it names, each beside an average of its names and shapes that only its own word tells.

    What lies beside all else in the file, and not with the average in something of its own, is so called only where
    there is a model, too.

    Example:
        >>> from polyak.contents import Tensor
        >>> w = {"w": Tensor((), "float32", lambda: 0)}
        >>> found = {key: Named(key, w) for key in ("model", "ema/shadow", "ema/backup", "backup")}
        >>> [aside.held.key for aside in put_aside(found)]
        ['ema/backup']
    """
    shadows = {_place(s.key, _SHADOW): s for s in averages_among(found) if _is_shadow(s.key)}
    named = {key: shadows.get(_place(key, _ASIDE)) for key in found if _ASIDE.search(_last(key))}
    pairs = [PutAside(found[key], s) for key, s in named.items() if s and key != s.key]
    pairs = [p for p in pairs if agree(bare(p.held.tensors), bare(p.shadow.tensors))]
    others = {key: s for key, s in found.items() if key not in named and not called_average(key)}
    return [p for p in pairs if "/" in p.held.key or any(_has(s, p.shadow) for s in others.values())]


def _is_shadow(key: str) -> bool:
    """Whether an average is one that goes into the model: no teacher, and nothing that was put aside itself."""
    return bool(_SHADOW.search(words_of(key).lower())) and not _ASIDE.search(_last(key))


def _place(key: str, words: re.Pattern[str]) -> tuple[str, str]:
    """What a set is in, and what it is called there beside these words and those for weights: a network's name."""
    last = words.sub("", _last(key))
    return key.rpartition("/")[0], re.sub(r"[\W_]", "", _WEIGHTS.sub("", _SHADOW.sub("", last)))


def _last(key: str) -> str:
    return words_of(key.rpartition("/")[2]).lower()


def restored(found: Mapping[str, Named], aside: Sequence[PutAside]) -> tuple[dict[str, Named], tuple[str, ...]]:
    """The sets without what was put aside, which is in the model again where this holds the average; and why."""
    of = {a.held.key: a for a in aside}
    left = {key: s for key, s in found.items() if key not in of}
    why: list[str] = []
    for each in aside:
        models = [s for s in left.values() if s is not each.shadow and _has(s, each.shadow)]
        for model in models:
            in_model = _in_model(model, each)
            if in_model:
                left[model.key] = _with(model, each.held)
            why += _said(in_model, model, each)
        if not models:
            why.append(f"{each.held.place} holds raw weights that were put aside, it is not known when")
    return left, tuple(why)


def is_in_model(model: Sequence[Tensor], shadows: Sequence[Tensor], aside: Sequence[Tensor]) -> bool | None:
    """Whether the model's values are those of the average, by its smallest parameters; None where these do not tell."""
    told: set[bool] = set()
    for own, average, kept in smallest(model, shadows, aside):
        if average != kept:
            told.add(own == average)
    return told.pop() if len(told) == 1 else None


def smallest(model: Sequence[Tensor], *others: Sequence[Tensor]) -> Iterator[tuple[bytes, ...]]:
    """The values of the smallest parameters, and what the other lists have for each, in the model's dtype."""
    left = _LOOKED_AT
    for own, *rest in sorted(zip(model, *others, strict=True), key=lambda alike: math.prod(alike[0].shape)):
        dtype = numpy_dtype(own.dtype)
        left -= math.prod(own.shape) * dtype.itemsize
        if left < 0:
            return
        yield own.read().tobytes(), *(t.read().astype(dtype).tobytes() for t in rest)


def _has(model: Named, shadow: Named) -> bool:
    own, average = bare(model.tensors), bare(shadow.tensors)
    return same({n: t for n, t in own.items() if n in average}, average)


def _in_model(model: Named, aside: PutAside) -> bool | None:
    own, shadow, kept = (bare(s.tensors) for s in (model, aside.shadow, aside.held))
    names = [n for n in parameters(shadow) if n in own and n in kept]
    return is_in_model(*([held[n] for n in names] for held in (own, shadow, kept)))


def _with(model: Named, aside: Named) -> Named:
    """The model with the weights that were put aside, under its own names. What it held of the average is a copy."""
    kept = bare(aside.tensors)
    own = zip(model.tensors.items(), bare(model.tensors), strict=True)
    return Named(model.key, {name: kept.get(short, t) for (name, t), short in own}, model.stored | aside.stored)


def _said(in_model: bool | None, model: Named, aside: PutAside) -> list[str]:
    if in_model is None:
        why = f"weights were put aside in {aside.held.place}: in a file written meanwhile they are the raw ones"
        return [f"{why}, and {model.place} is exchanged for the average; the file cannot tell"]
    said = f"{model.place} holds the values of {aside.shadow.place}, and {aside.held.place} the raw weights put aside"
    return [said] if in_model else []
