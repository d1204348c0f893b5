"""Doctor: what may be wrong with a file of weights, with the evidence and what mends it."""

from __future__ import annotations

import glob
import re
import shlex
from collections.abc import Iterator

from polyak.combine.blocks import count_nonfinite
from polyak.combine.doctor_averages import Judge, averages, of_averages
from polyak.combine.finding import Finding, weights_counted
from polyak.errors import listed
from polyak.manifest import RAW
from polyak.snapshot import Snapshot

_NAMED = 3
_SWAP = re.compile(r"\b(?:swap|exchang)|SwapEMA")
_OPEN = re.compile(r"cannot tell|some tools|\bmay\b")


def examine(held: Snapshot, path: str, judge: Judge) -> tuple[Finding, ...]:
    """All findings; every array is read once or twice, one or two at a time.

    Args:
        path: of the file, as commands should name it.
        judge: what an average still has of its start, by its state; None where that is unknown.

    Raises:
        DamagedFile: an array does not have its digest.

    Example:
        >>> import numpy as np
        >>> held = Snapshot.from_arrays({"w": np.float32([np.nan])}, "average")
        >>> [f.what for f in examine(held, "a.safetensors", lambda state: None)]
        ['the file holds no checksums', 'NaN or infinity in 1 weight', 'the rule of average is not known']
    """
    return (
        *_nothing(held),
        *_what_it_says(held, path),
        *_roles(held, path),
        *_integrity(held, path),
        *_nonfinite(held, path),
        *of_averages(held, judge),
    )


def _nothing(held: Snapshot) -> Iterator[Finding]:
    if not held:
        yield Finding("no weights", "it holds 0 arrays", "ask the program that wrote it, or write it anew")


def _what_it_says(held: Snapshot, path: str) -> Iterator[Finding]:
    known = held.manifest
    said = "; ".join(known.evidence)
    if known.confidence == "unknown":
        yield Finding(
            "raw or average: unknown",
            said or "the file does not say who wrote it",
            "ask the program that wrote it; polyak takes the weights for raw",
        )
    elif known.confidence != "stated":
        yield Finding(
            f"what the file holds is {known.confidence}, not stated",
            said or "the file does not say who wrote it",
            "check it against the program that wrote it",
        )
    if known.note:
        leaves = "may leave" if known.note.startswith("if ") else "leaves"
        yield Finding(f"its writer {leaves} something out", known.note, "read the note before you rely on the file")
    yield from _swapped(held, path)


def _swapped(held: Snapshot, path: str) -> Iterator[Finding]:
    """No file proves that its two sets are exchanged; tools that may have exchanged them are known."""
    said = [line for line in (held.manifest.note, *held.manifest.evidence) if _SWAP.search(line)]
    open_ones = [line for line in said if _OPEN.search(line)]
    if open_ones and averages(held) and RAW in held.roles:
        yield Finding(
            "raw and average may be exchanged: ambiguous",
            "; ".join(open_ones),
            "evaluate both before you rely on either, and write files outside of the swap",
        )
    closed = [line for line in said if line not in open_ones]
    if closed:
        yield Finding(
            "written while the average was swapped in",
            "; ".join(closed),
            f"choose by role, not by the keys of the file: polyak transfer {path} OUT.safetensors --weights average",
        )


def _roles(held: Snapshot, path: str) -> Iterator[Finding]:
    found = averages(held)
    if not found and held.manifest.confidence != "unknown":
        yield Finding(
            "no average",
            f"it holds {', '.join(held.roles) or 'nothing'}",
            f"average it with other checkpoints: polyak average {path} OTHER -o OUT.safetensors",
        )
    elif found and len(held.roles) > 1:
        yield Finding(
            "several sets of weights",
            f"it holds {', '.join(held.roles)}",
            f"say which where you load it: polyak transfer {path} OUT.safetensors --weights {shlex.quote(found[0])}",
        )


def _integrity(held: Snapshot, path: str) -> Iterator[Finding]:
    if held.integrity == "none":
        mend = f"write it with checksums: polyak convert {path} OUT.safetensors"
        yield Finding("the file holds no checksums", "integrity: none", mend)


def _nonfinite(held: Snapshot, path: str) -> Iterator[Finding]:
    counts = {name: bad for name in held if (bad := count_nonfinite(held[name]))}
    if counts:
        named = [f"{name} ({bad:,} of {held.items_by_path[name].weight.size:,})" for name, bad in counts.items()]
        first = held.items_by_path[next(iter(counts))].weight.path
        yield Finding(
            f"NaN or infinity in {weights_counted(len(counts))}",
            listed(named, _NAMED),
            "go back to an earlier file, or leave them out: "
            f"polyak convert {path} OUT.safetensors --exclude {shlex.quote(_as_glob(first))}",
        )


def _as_glob(path: str) -> str:
    """A path as it is; where a terminal cannot show some of its letters, a glob with question marks for these."""
    return path if path.isprintable() else "".join(c if c.isprintable() else "?" for c in glob.escape(path))
