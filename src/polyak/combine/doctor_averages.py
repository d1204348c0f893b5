"""What may be wrong with the averages in a file: they never moved, are young, biased or late, or lack statistics."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from polyak.combine.blocks import same_bits
from polyak.combine.finding import Finding, weights_counted
from polyak.manifest import AVERAGE, OF_MEMBER, RAW, State
from polyak.snapshot import Item, Snapshot
from polyak.weights import Kind, numpy_dtype

# An average that is still this much its start differs from what the rule promises by more than noise.
_IMMATURE = 0.01
# A file may be written between a step and its update.
_LATE = 1
_COUNTER = re.compile(r"(?:.*/)?(?:global_step|_?iterations?|iter|step|optimizer(?:/inner_optimizer)?/vars/0)")
_BIASED = re.compile(r"\bbiased\b|without its correction for the start at zero")
_MEASURED = re.compile(
    r"(?:.*[/.])?(?:(?:moving|running)_(?:mean|variance|var)|batch_normalization(?:_\d+)?/vars/[23])"
)


@dataclass(frozen=True, slots=True)
class Start:
    """What an average still has of its start.

    Attributes:
        share: of it that is still what it started from.
        zeros: it started from zeros.
    """

    share: float
    zeros: bool


Judge = Callable[[State], Start | None]


def of_averages(held: Snapshot, judge: Judge) -> Iterator[Finding]:
    """The findings on every average, one average after the other."""
    for role in averages(held):
        yield from _equal_to_raw(held, role)
        yield from _frozen(held, role)
        yield from _start(held, role, judge)
        yield from _late(held, role)
        yield from _statistics(held, role)


def averages(held: Snapshot) -> list[str]:
    """The roles that are averages."""
    return [r for r in held.roles if r == AVERAGE or r.startswith(f"{AVERAGE}:")]


def _equal_to_raw(held: Snapshot, role: str) -> Iterator[Finding]:
    """Bit for bit, of trainable weights only: statistics and counters are copied, so they are equal anyway."""
    pairs = _beside_raw(held, role, _trainable)
    if pairs and all(_same(held, name, other) for name, other in pairs):
        yield Finding(
            f"{role} is equal to raw",
            f"the bits are the same in {weights_counted(len(pairs))}, all that are trainable",
            "the average never moved or was overwritten: update it after each step, and save it before a copy",
        )


def _frozen(held: Snapshot, role: str) -> Iterator[Finding]:
    """An update smaller than half a unit in the last place is lost: in 8 bits of mantissa that is most of them."""
    low = [i.weight for i in held.items_by_path.values() if i.role == role and _trainable(i)]
    low = [w for w in low if numpy_dtype(w.dtype).itemsize < 4]
    if low:
        yield Finding(
            f"{role} is stored in low precision",
            f"{weights_counted(len(low))} in {', '.join(sorted({w.dtype for w in low}))}, such as {low[0].path}",
            "if it was also updated in this dtype, it is frozen: keep the average in float32 while training",
        )


def _start(held: Snapshot, role: str, judge: Judge) -> Iterator[Finding]:
    state = held.manifest.roles[role]
    if state is None:
        yield from _unknown_start(held, role)
        return
    start = judge(state)
    old = start is not None and start.share <= _IMMATURE
    if state.count == 0 or (start is not None and not old):
        share = "" if start is None else f"; {start.share:.1%} of it is what it started from"
        evidence = f"{state.count:,} updates{share}"
        if start is not None and start.zeros:
            mend = "divide it by the rest, train on, or use start=debiased"
            yield Finding(f"{role} is biased towards zero", f"{evidence}: zeros", mend)
        else:
            yield Finding(f"{role} is immature", evidence, "train on, or use the raw weights")


def _unknown_start(held: Snapshot, role: str) -> Iterator[Finding]:
    known = held.manifest
    biased = list(filter(_BIASED.search, known.evidence)) or list(filter(_BIASED.search, [known.note]))
    if biased:
        mend = "divide each value by 1 - decay**count, with the decay of the program that wrote it"
        if known.note.startswith(OF_MEMBER):
            mend = "correct the members first, and average those"
        yield Finding(f"{role} is biased towards zero", "; ".join(biased), mend)
    yield Finding(
        f"the rule of {role} is not known",
        "the file holds neither rule nor count",
        "ask the program that wrote it whether the average had warmed up",
    )


def _late(held: Snapshot, role: str) -> Iterator[Finding]:
    """The count against the steps of the optimizer. An interval of the rule is part of the count."""
    state = held.manifest.roles[role]
    steps = {name: int(held[name]) for name, i in held.items_by_path.items() if _counts_steps(i)}
    if state is None or not steps:
        return
    seen = state.count + state.skipped
    if min(abs(n - seen) for n in steps.values()) <= _LATE:
        return
    said = ", ".join(f"{n:,} in {name}" for name, n in steps.items())
    late = all(n > seen for n in steps.values())
    yield Finding(
        f"{role} is stale against the step counter" if late else f"{role} was updated more often than there were steps",
        f"{seen:,} updates; {said}",
        "update it once after each optimizer step; with an interval say every=, with a late start after="
        if late
        else "update it after optimizer steps, not after the micro-steps of gradient accumulation",
    )


def _counts_steps(item: Item) -> bool:
    weight = item.weight
    whole = numpy_dtype(weight.dtype).kind in "iu" and weight.shape == ()
    return whole and not item.role.startswith((RAW, AVERAGE)) and bool(_COUNTER.fullmatch(weight.path))


def _statistics(held: Snapshot, role: str) -> Iterator[Finding]:
    """BatchNorm's statistics are measured under one set of weights and are wrong for the other."""
    measured = [i.weight.path for i in held.items_by_path.values() if i.role == RAW and _is_measured(i)]
    pairs = _beside_raw(held, role, _is_measured)
    trained = _beside_raw(held, role, _trainable)
    mend = "measure them anew: run the training data through the model with the average applied, in training mode"
    if measured and not pairs:
        evidence = f"raw has {weights_counted(len(measured))} of this kind, such as {measured[0]}; {role} has none"
        yield Finding(f"{role} lacks the BatchNorm statistics", evidence, mend)
    elif pairs and all(_same(held, *p) for p in pairs) and not all(_same(held, *p) for p in trained):
        evidence = (
            f"the bits are those of raw in {weights_counted(len(pairs))}, such as {pairs[0][0]}; the weights differ"
        )
        yield Finding(f"the BatchNorm statistics of {role} belong to the raw weights", evidence, mend)


def _is_measured(item: Item) -> bool:
    return item.weight.floating and bool(_MEASURED.fullmatch(item.weight.path))


def _trainable(item: Item) -> bool:
    return item.weight.kind == Kind.TRAINABLE and item.weight.floating and not _is_measured(item)


def _beside_raw(held: Snapshot, role: str, wanted: Callable[[Item], bool]) -> list[tuple[str, str]]:
    """Names of an average's arrays and of the raw ones of the same path."""
    raw = {i.weight.path: name for name, i in held.items_by_path.items() if i.role == RAW}
    ours = ((name, i) for name, i in held.items_by_path.items() if i.role == role and wanted(i))
    return [(name, raw[i.weight.path]) for name, i in ours if i.weight.path in raw]


def _same(held: Snapshot, one: str, other: str) -> bool:
    a, b = (held.items_by_path[name].weight for name in (one, other))
    return (a.shape, a.dtype) == (b.shape, b.dtype) and same_bits(held[one], held[other])
