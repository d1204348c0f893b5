"""Commit: write all weights or none, then read back and compare every byte."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from polyak.errors import DtypeMismatch, NonFinite, TransferError, argument
from polyak.manifest import digest
from polyak.numbers import is_tame, rounded
from polyak.snapshot import Array, Snapshot
from polyak.transfer.receipt import Moved
from polyak.transfer.target import PutBack, Target
from polyak.transfer.unbroken import unbroken
from polyak.weights import is_floating, numpy_dtype

Moves = Sequence[tuple[str, str, str]]
Undo = list[tuple[str, PutBack]]


def commit(source: Snapshot, target: Target, moves: Moves, finite: bool = True) -> tuple[Moved, ...]:
    """Carry out moves of (source path, target path, target dtype).

    Source and target are those of one moment: a thread that trains one of them waits meanwhile. Until the end the old
    bits of every weight that was written lie beside the new ones: so much more memory as the target's weights take.

    Args:
        finite: refuse NaN and infinity.

    Raises:
        NonFinite, DtypeMismatch: a value must not be written; the target is as it was.
        TransferError: a weight read back differs from what was written; the target is as it was. Or a weight
            could not be put back after any error, which is then the cause.
    """
    with source.moment(), target.moment():
        undo: Undo = [("what is computed from weights", target.settle), ("rule and counts", target.hold_state())]
        try:
            try:
                moved = _write(source, target, moves, finite, undo)
                target.adopt(source.state)
                target.settle()
                for m in moved:
                    _verify(target, m)
                undo.clear()
            except BaseException as error:
                _undo(undo, target.label, error)
                raise
        except BaseException as late:
            if undo:  # an interrupt came in before the first line of that
                _undo(undo, target.label, late)
            raise
    return moved


def _write(source: Snapshot, target: Target, moves: Moves, finite: bool, undo: Undo) -> tuple[Moved, ...]:
    early = {path: source[path] for path in _overwritten(source, target, moves)}
    moved = []
    for source_path, target_path, dtype in moves:
        array = early[source_path] if source_path in early else source.view(source_path)
        value = value_of(target_path, array, dtype, source.origin, finite)
        sent = Moved(source_path, target_path, array.dtype.name, dtype, value.nbytes, digest(value))
        undo.append((f"weight {target_path!r}", target.hold(target_path)))
        target.write(target_path, value)
        moved.append(sent)
    return tuple(moved)


def value_of(path: str, array: Array, dtype: str, origin: str, finite: bool) -> Array:
    """What is written to a weight: the array in the weight's dtype.

    Raises:
        NonFinite: it has NaN or infinity, and ``finite`` is asked for.
        DtypeMismatch: a value is out of the range of the dtype.
    """
    if finite:
        _refuse_nonfinite(path, array, origin)
    return _converted(path, array, dtype, origin)


def _overwritten(source: Snapshot, target: Target, moves: Moves) -> list[str]:
    """Source paths that are written before they are read, and must be read first.

    A model may be its own source, and two models may share variables, under whatever names.
    """
    names, homes = set[str](), set[object]()
    late = []
    for source_path, target_path, _ in moves:
        if source_path in names or source.items_by_path[source_path].home() in homes:
            late.append(source_path)
        names.add(target_path)
        homes.add(target.home(target_path))
    return late


def _verify(target: Target, moved: Moved) -> None:
    found = digest(target.view(moved.target))
    if found != moved.digest:
        raise TransferError(
            f"weight {moved.target!r}: expected bytes with digest {moved.digest} after writing, received {found}; "
            f"{target.label} was put back as it was",
            hint="another thread may be training it: transfer between two steps",
        )


def _undo(undo: Undo, label: str, cause: BaseException) -> None:
    with unbroken():
        _put_back(undo, label, cause)


def _put_back(undo: Undo, label: str, cause: BaseException) -> None:
    """Undo everything, last first, and forget it. What fails is tried once more: it may be an interrupt."""
    first = [entry for entry in reversed(undo) if _failure(entry[1]) is not None]
    failed = [(name, failure) for name, put_back in first if (failure := _failure(put_back)) is not None]
    undo.clear()
    if failed:
        names = ", ".join(name for name, _ in failed)
        raise TransferError(
            f"{label}: expected to put back what it held, could not put back {names}: {_said(failed[0][1])}; "
            f"all else is as it was",
            hint=f"load {label} again; what stopped the transfer was {_said(cause)}",
        ) from cause


def _failure(put_back: PutBack) -> BaseException | None:
    try:
        put_back()
    except BaseException as failure:
        return failure
    return None


def _said(error: BaseException) -> str:
    """An error on one line."""
    return ": ".join(filter(None, [type(error).__name__, str(error).partition("\n")[0]]))


def _converted(path: str, array: Array, dtype: str, origin: str) -> Array:
    if array.dtype.name == dtype:
        return array
    with np.errstate(over="ignore", invalid="ignore"):
        value = rounded(array, numpy_dtype(dtype))
    if not _in_range(array, value):
        raise DtypeMismatch(
            f"weight {path!r}: expected values in the range of {dtype}, received up to {_peak(array)} from {origin}",
            hint="keep a wider dtype: the cast would change them beyond rounding"
            if is_floating(dtype)
            else f"no {dtype} holds them: leave this weight as it is with {argument('exclude', path)}",
        )
    return value


def _in_range(array: Array, value: Array) -> bool:
    if is_floating(value.dtype.name):
        return bool(np.array_equal(_isfinite(array), _isfinite(value)))
    same_sign = array.dtype.kind not in "iu" or bool(np.array_equal(array < 0, value < 0))
    return same_sign and bool(np.array_equal(array, value.astype(array.dtype)))


def _refuse_nonfinite(path: str, array: Array, origin: str) -> None:
    if is_floating(array.dtype.name) and not is_tame(array) and not _isfinite(array).all():
        bad = array.size - np.count_nonzero(_isfinite(array))
        raise NonFinite(
            f"weight {path!r}: expected finite values, received {bad} non-finite of {array.size} from {origin}",
            hint='move it all the same with nonfinite="allow"',
        )


def _isfinite(array: Array) -> Array:
    finite: Array = np.isfinite(array if array.dtype.kind == "f" else array.astype(np.float32))
    return finite


def _peak(array: Array) -> str:
    """The largest absolute value that is a number."""
    if array.dtype.kind in "iu":
        return str(max(abs(int(array.min())), abs(int(array.max()))))
    wide = np.abs(array.astype(np.float64))
    return f"{np.max(wide[np.isfinite(wide)], initial=0.0):g}"
