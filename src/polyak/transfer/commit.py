"""Commit: write all weights or none, then read back and compare every byte."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from polyak.errors import DtypeMismatch, NonFinite, TransferError
from polyak.manifest import digest
from polyak.snapshot import Array, Snapshot
from polyak.transfer.receipt import Moved
from polyak.transfer.target import PutBack, Target
from polyak.weights import is_floating, numpy_dtype


def commit(
    source: Snapshot, target: Target, moves: Sequence[tuple[str, str, str]], finite: bool = True
) -> tuple[Moved, ...]:
    """Carry out moves of (source path, target path, target dtype).

    The undo holds a handle on the old bits of each weight that was written: memory up to the size
    of the target where the framework cannot share buffers, and nothing where it can.

    Args:
        finite: refuse NaN and infinity.

    Raises:
        NonFinite, DtypeMismatch: a value must not be written; the target is as it was.
        TransferError: a weight read back differs from what was written; the target is as it was.
    """
    undo: list[PutBack] = [target.hold_state()]
    try:
        moved = tuple(_move(source, target, move, finite, undo) for move in moves)
        target.adopt(source.state)
    except BaseException:
        for put_back in reversed(undo):
            put_back()
        raise
    return moved


def _move(source: Snapshot, target: Target, move: tuple[str, str, str], finite: bool, undo: list[PutBack]) -> Moved:
    source_path, target_path, dtype = move
    array = source[source_path]
    if finite:
        _refuse_nonfinite(source_path, array, source.origin)
    value = _converted(source_path, array, dtype)
    undo.append(target.hold(target_path))
    target.write(target_path, value)
    written, found = digest(value), digest(target.read(target_path))
    if written != found:
        raise TransferError(
            f"weight {target_path!r}: expected bytes with digest {written} after writing, received {found}",
            hint="the target was put back; another thread may be training it",
        )
    return Moved(source_path, target_path, array.dtype.name, dtype, value.nbytes, written)


def _converted(path: str, array: Array, dtype: str) -> Array:
    if array.dtype.name == dtype:
        return array
    with np.errstate(over="ignore", invalid="ignore"):
        value: Array = array.astype(numpy_dtype(dtype))
    if is_floating(dtype) and not np.array_equal(_isfinite(array), _isfinite(value)):
        raise DtypeMismatch(
            f"weight {path!r}: expected values within the range of {dtype}, received up to {_peak(array):g}",
            hint="keep a wider dtype; the cast would make infinities",
        )
    return value


def _refuse_nonfinite(path: str, array: Array, origin: str) -> None:
    if is_floating(array.dtype.name) and not _isfinite(array).all():
        bad = int(np.size(array) - np.count_nonzero(_isfinite(array)))
        raise NonFinite(
            f"weight {path!r}: expected finite values, received {bad} non-finite of {np.size(array)} from {origin}",
            hint='move it all the same with nonfinite="allow"',
        )


def _isfinite(array: Array) -> Array:
    return np.isfinite(array if array.dtype.kind == "f" else array.astype(np.float32))


def _peak(array: Array) -> float:
    return float(np.max(np.abs(array.astype(np.float64))))
