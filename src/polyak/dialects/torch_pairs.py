"""Which sets are averages of which: one model with its averages, or several networks with an average each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from polyak.contents import Tensor
from polyak.dialects.torch_beside import averages_among, is_within_one, stem, stem_of_average
from polyak.dialects.torch_sets import Named, Reading, bare, is_usual, parameters, same
from polyak.errors import listed
from polyak.manifest import AVERAGE, RAW

Pair = tuple[Named, Named]
Held = tuple[str, tuple[int, ...]]


def paired(averages: Sequence[Named], raws: Sequence[Named]) -> Reading | None:
    """One set, and others of its names and shapes that are averages; or several sets with one average each."""
    pairs = _pairs(averages, raws)
    if len({raw.key for raw, _ in pairs}) == 1:
        return averages_of(pairs[0][0], [average for _, average in pairs])
    return next((_side_by_side(told) for told in (pairs, _by_keys(pairs)) if _each_once(told, pairs)), None)


def counted(averages: Sequence[Named], among: Mapping[str, Named]) -> tuple[Reading, str]:
    """Averages that a tool's own counts prove, with what is called one beside them, and a word on their models.

    Of several sets alike the model is the one that is called so; where none is, no weights are raw.
    """
    known = {a.key for a in averages}
    called = {s.key for s in averages_among(among)} - known
    raws = [s for key, s in among.items() if key not in known | called]
    beside = [among[key] for key in among if key in called]
    alike = [r for r in raws if any(same(bare(r.tensors), bare(a.tensors)) for a in averages)]
    usual = [r for r in alike if is_usual(r.key)]
    for held in (raws, usual if len(usual) == 1 else []):
        made = paired([*averages, *beside], held) or paired(averages, held)
        if made and stored_of(*averages) <= made.used:
            used = [r.place for r in raws if r.stored <= made.used]
            others = [r.place for r in alike if r.place not in used]
            more = f", and so has {listed(others)}, which is not called the model" if others else ""
            return made, f"{', '.join(used)} has the same names and shapes{more}"
    several = f"{', '.join(r.place for r in alike)} have the same names and shapes: which is the model is not told"
    return averages_of(None, averages), several if alike else "no set with the same names is beside it"


def averages_of(raw: Named | None, averages: Sequence[Named]) -> Reading:
    """A role for each average, by its key where there are several, and the raw weights if they are known."""
    called = {AVERAGE if len(averages) == 1 else f"{AVERAGE}:{a.key or 'file'}": a for a in averages}
    held = {RAW: raw} | called if raw else called
    roles = {role: _completed(raw, s) if raw and s is not raw else bare(s.tensors) for role, s in held.items()}
    whole = {role: s.whole or s.tensors for role, s in held.items()}
    why = _why([(raw, a) for a in averages]) if raw else ()
    return Reading("PyTorch", roles, stored_of(*held.values()), why, whole=whole)


class _Raws:
    """Sets that may be the weights of an average, to be found by what they hold: a file may have thousands."""

    def __init__(self, raws: Sequence[Named]) -> None:
        self._alike: dict[frozenset[Held], list[Named]] = {}
        self._having: dict[Held, list[tuple[Named, frozenset[Held]]]] = {}
        for raw in raws:
            held = frozenset(_shapes(raw))
            self._alike.setdefault(held, []).append(raw)
            for one in held:
                self._having.setdefault(one, []).append((raw, held))

    def of(self, average: Named) -> list[Named]:
        """The sets with the average's names and shapes; where there are none, those that have them among others."""
        own = _shapes(average)
        if not own:
            return []
        alike = self._alike.get(frozenset(own))
        return alike or [raw for raw, held in self._having.get(own[0], ()) if held.issuperset(own)]


def _pairs(averages: Sequence[Named], raws: Sequence[Named]) -> list[Pair]:
    """Each average with each set that may be its model. What an average holds of it in itself is a copy beside it."""
    outside, all_of_them = _Raws([raw for raw in raws if not is_within_one(raw.key)]), _Raws(raws)
    return [(raw, average) for average in averages for raw in outside.of(average) or all_of_them.of(average)]


def _shapes(held: Named) -> list[Held]:
    return [(name, tensor.shape) for name, tensor in bare(held.tensors).items()]


def stored_of(*of: Named) -> frozenset[str]:
    """The stored names of all these sets."""
    return frozenset(name for s in of for name in s.stored)


def with_key(key: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A set whose names begin with its key."""
    return {f"{key}/{n}" if key else n: t for n, t in tensors.items()}


def _by_keys(pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs that their keys tell, too, where several networks have the same names and shapes."""
    known = {key: stem(key) for key in {raw.key for raw, _ in pairs}}
    called = {key: stem_of_average(key) for key in {average.key for _, average in pairs}}
    return [(raw, average) for raw, average in pairs if known[raw.key] == called[average.key]]


def _each_once(told: Sequence[Pair], pairs: Sequence[Pair]) -> bool:
    """Whether these are one average for each network, and one network for each average, of all that there are."""
    keys = [{pair[side].key for pair in some} for some in (told, pairs) for side in (0, 1)]
    return bool(told) and all(len(held) == len(told) for held in keys)


def _side_by_side(pairs: Sequence[Pair]) -> Reading:
    """Networks with an average each: a generator and a discriminator. Each weight has its network's key in its name."""
    raw = {n: t for s, _ in pairs for n, t in with_key(s.key, bare(s.tensors)).items()}
    average = {n: t for s, a in pairs for n, t in with_key(s.key, _completed(s, a)).items()}
    return Reading("PyTorch", {RAW: raw, AVERAGE: average}, stored_of(*(s for p in pairs for s in p)), _why(pairs))


def _completed(raw: Named, average: Named) -> dict[str, Tensor]:
    """The average, and the buffers of its model, in the model's order."""
    whole, own = bare(raw.tensors), bare(average.tensors)
    trained = parameters(whole)
    return {n: own.get(n, t) for n, t in whole.items() if n in own or n not in trained}


def _why(pairs: Sequence[Pair]) -> tuple[str, ...]:
    return (*(_names_of(*p) for p in pairs), "no tool that is known writes this; some tools save the two swapped")


def _names_of(raw: Named, average: Named) -> str:
    own, held = bare(average.tensors), _completed(raw, average)
    left = {
        "which it takes from there": [n for n in held if n not in own],
        "which it lacks": [n for n in bare(raw.tensors) if n not in held],
    }
    rest = "".join(f" but for {listed(names)}, {what}," for what, names in left.items() if names)
    return f"{average.place} has the names and shapes of {raw.place}{rest} and is called an average by its writer"
