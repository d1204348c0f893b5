"""Doctor: what may be wrong with a file of weights, with the evidence and what mends it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from polyak.combine.blocks import count_nonfinite, same_bits
from polyak.manifest import AVERAGE, RAW, State
from polyak.snapshot import Item, Snapshot
from polyak.weights import Kind, numpy_dtype

Immaturity = Callable[[State], float | None]
# An average that is still this much its start differs from what the rule promises by more than noise.
_IMMATURE = 0.01
_NAMED = 3


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that a user of the file should know.

    Attributes:
        what: the finding, one line.
        evidence: what in the file shows it.
        mend: the command or call that mends it, or what to find out first.
    """

    what: str
    evidence: str
    mend: str


def examine(held: Snapshot, path: str, immaturity: Immaturity) -> tuple[Finding, ...]:
    """All findings; every array is read once or twice, one or two at a time.

    Args:
        path: of the file, as commands should name it.
        immaturity: the share of an average that is still its start, of its state; None where that is unknown.

    Raises:
        DamagedFile: an array does not have its digest.

    Example:
        >>> import numpy as np
        >>> held = Snapshot.from_arrays({"w": np.float32([np.nan])}, "average")
        >>> [f.what for f in examine(held, "a.safetensors", lambda state: None)]
        ['the file holds no checksums', 'NaN or infinity in 1 weight', 'the rule of average is not known']
    """
    return (
        *_what_it_says(held),
        *_roles(held, path),
        *_integrity(held, path),
        *_nonfinite(held, path),
        *_equal_to_raw(held),
        *_frozen(held),
        *_immature(held, immaturity),
    )


def _what_it_says(held: Snapshot) -> Iterator[Finding]:
    known = held.manifest
    said = "; ".join(known.evidence)
    if known.confidence != "stated":
        yield Finding(
            f"what the file holds is {known.confidence}, not stated",
            said or "the file does not say who wrote it",
            "check it against the program that wrote it",
        )
    if known.note:
        yield Finding("its writer leaves something out", known.note, "read the note before you rely on the file")
    if re.search(r"\bswap", f"{known.note} {said}"):
        yield Finding(
            "written while the average was swapped in",
            said or known.note,
            "what is called raw may be the average: swap back before saving (with ema.applied(): ends the swap)",
        )


def _roles(held: Snapshot, path: str) -> Iterator[Finding]:
    averages = _averages(held)
    if not averages:
        yield Finding(
            "no average",
            f"it holds {', '.join(held.roles) or 'nothing'}",
            f"average it with other checkpoints: polyak average {path} OTHER -o OUT.safetensors",
        )
    elif len(held.roles) > 1:
        yield Finding(
            "several sets of weights",
            f"it holds {', '.join(held.roles)}",
            f"say which where you load it: polyak transfer {path} OUT.safetensors --weights {averages[0]}",
        )


def _integrity(held: Snapshot, path: str) -> Iterator[Finding]:
    if held.integrity == "none":
        mend = f"write it with checksums: polyak convert {path} OUT.safetensors"
        yield Finding("the file holds no checksums", "integrity: none", mend)


def _nonfinite(held: Snapshot, path: str) -> Iterator[Finding]:
    counts = {name: bad for name in held if (bad := count_nonfinite(held[name]))}
    if counts:
        named = ", ".join(f"{name} ({bad:,} of {held.items_by_path[name].weight.size:,})" for name, bad in _few(counts))
        yield Finding(
            f"NaN or infinity in {_counted(len(counts))}",
            named + (f" and {len(counts) - _NAMED:,} more" if len(counts) > _NAMED else ""),
            "go back to an earlier file, or leave them out: "
            f"polyak convert {path} OUT.safetensors --exclude {held.items_by_path[next(iter(counts))].weight.path!r}",
        )


def _few(counts: dict[str, int]) -> list[tuple[str, int]]:
    return list(counts.items())[:_NAMED]


def _equal_to_raw(held: Snapshot) -> Iterator[Finding]:
    """Bit for bit, of trainable weights only: statistics and counters are copied, so they are equal anyway."""
    raw = {i.weight.path: name for name, i in held.items_by_path.items() if i.role == RAW}
    for role in _averages(held):
        pairs = [(name, raw[i.weight.path]) for name, i in _trainable(held, role) if i.weight.path in raw]
        if pairs and all(_same(held, name, other) for name, other in pairs):
            yield Finding(
                f"{role} is equal to raw",
                f"the bits are the same in {_counted(len(pairs))}, all that are trainable",
                "the average never moved or was overwritten: update it after each step, and save it before a copy",
            )


def _same(held: Snapshot, one: str, other: str) -> bool:
    a, b = (held.items_by_path[name].weight for name in (one, other))
    return (a.shape, a.dtype) == (b.shape, b.dtype) and same_bits(held[one], held[other])


def _frozen(held: Snapshot) -> Iterator[Finding]:
    """An update smaller than half a unit in the last place is lost: in 8 bits of mantissa that is most of them."""
    for role in _averages(held):
        low = [i.weight for _, i in _trainable(held, role) if numpy_dtype(i.weight.dtype).itemsize < 4]
        if low:
            yield Finding(
                f"{role} is stored in low precision",
                f"{_counted(len(low))} in {', '.join(sorted({w.dtype for w in low}))}, such as {low[0].path}",
                "if it was also updated in this dtype, it is frozen: keep the average in float32 while training",
            )


def _immature(held: Snapshot, immaturity: Immaturity) -> Iterator[Finding]:
    for role in _averages(held):
        state = held.manifest.roles[role]
        share = None if state is None else immaturity(state)
        if state is None:
            yield Finding(
                f"the rule of {role} is not known",
                "the file holds neither rule nor count",
                "ask the program that wrote it whether the average had warmed up",
            )
        elif state.count == 0 or (share is not None and share > _IMMATURE):
            start = "" if share is None else f"; {share:.1%} of it is what it started from"
            yield Finding(f"{role} is immature", f"{state.count:,} updates{start}", "train on, or use the raw weights")


def _counted(n: int) -> str:
    return "1 weight" if n == 1 else f"{n:,} weights"


def _averages(held: Snapshot) -> list[str]:
    return [r for r in held.roles if r == AVERAGE or r.startswith(f"{AVERAGE}:")]


def _trainable(held: Snapshot, role: str) -> list[tuple[str, Item]]:
    of_role = ((name, i) for name, i in held.items_by_path.items() if i.role == role)
    return [(name, i) for name, i in of_role if i.weight.kind == Kind.TRAINABLE and i.weight.floating]
