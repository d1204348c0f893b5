"""Saving beside the training: what is saved is of the moment of the call, the writing happens in a thread."""

from __future__ import annotations

import atexit
import os
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from polyak.errors import FileError, PolyakError
from polyak.file_verbs import PathLike, refuse_parts, shared, written
from polyak.forks import new_lock
from polyak.transfer.receipt import Receipt
from polyak.transfer.unbroken import unbroken
from polyak.verbs import held_now, saver

_WAITING = 2  # saves under way: one that is written, and one that waits for it


class Saving:
    """A save under way.

    Example:
        >>> import tempfile, numpy as np, polyak
        >>> held = polyak.Snapshot.from_arrays({"w": np.ones(2, np.float32)})
        >>> with Saver() as background:
        ...     saving = background.save(held, tempfile.mkdtemp() + "/w.safetensors")
        ...     saving.result().nbytes
        8
    """

    def __init__(self, path: str, future: Future[Receipt]) -> None:
        self.path = path
        self.seen = False
        self._future = future
        self._process = os.getpid()

    @property
    def done(self) -> bool:
        """Whether it has ended, well or not."""
        return self._future.done()

    @property
    def has_failed_unheard(self) -> bool:
        """Whether it has failed and nobody has asked for its result."""
        return self.done and not self.seen and self._future.exception() is not None

    def result(self, timeout: float | None = None) -> Receipt:
        """The receipt, once the file has its name.

        Raises:
            FileError: it could not be written; the old file is as it was. Or it is another process's, and was not done
                when this one was forked from it.
            TimeoutError: it is not done after so many seconds.
        """
        if not self.done:
            _refuse_forked(f"the save of {self.path!r}", self._process)
        self._future.exception(timeout)  # waits for the end, whichever it is
        self.seen = True
        return self._future.result()


class Saver:
    """Saves like ``polyak.save``, in a thread of its own, so that training goes on meanwhile.

    ``save`` copies what is to be saved and returns; the copy is of one moment, as that of ``polyak.save``. Files are
    written one after the other, in the order of the calls, each as safely as ``polyak.save`` does it. Memory: a copy
    for each save under way, of which there are two at most; a third call waits for the first. Threads that save at one
    moment have a copy each.

    A save that failed raises at its ``result``, or else at the next ``save``, ``wait`` or the end of the ``with``
    block, and at the latest when the program ends, which waits for all saves. Python does not let the last of these
    change the program's exit status: where that matters, end with ``close`` or a ``with`` block.

    Example:
        >>> import tempfile, numpy as np, polyak
        >>> held = polyak.Snapshot.from_arrays({"w": np.ones(2, np.float32)})
        >>> folder = tempfile.mkdtemp()
        >>> with Saver() as background:
        ...     for step in range(3):
        ...         _ = background.save(held, f"{folder}/{step}.safetensors")
        >>> sorted(os.listdir(folder))
        ['0.safetensors', '1.safetensors', '2.safetensors']
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "polyak-save")
        self._turn = new_lock()  # of the threads that change the list
        self._savings: list[Saving] = []
        self._process = os.getpid()
        self._closed = False
        atexit.register(self._raise_at_end)

    def save(self, source: Any, path: PathLike, weights: str | None = None) -> Saving:
        """Take what ``polyak.save`` takes; write it in the thread.

        A relative path is meant from the directory that the program is in now.

        Raises:
            FileError: an earlier save failed; this one is not begun then. Or the saver is closed, or another process's.
        """
        _refuse_forked("a saver", self._process)
        self._raise_unseen()
        if self._closed:
            raise FileError(f"file {os.fspath(path)!r}: the saver is closed", hint="make another Saver")
        refuse_parts(path, [source])
        place = Path(path).absolute()
        writer = shared(saver(os.fspath(path)), source)
        self._make_room()
        held = held_now(source, weights)
        with unbroken(), self._turn:  # in this order: an interrupt shall not leave it taken
            saving = Saving(os.fspath(path), self._pool.submit(written, held, place, writer))
            self._savings = [s for s in self._savings if not s.done or s.has_failed_unheard] + [saving]
        return saving

    def _make_room(self) -> None:
        while len(under_way := [saving._future for saving in self._savings if not saving.done]) >= _WAITING:
            wait_for(under_way, return_when=FIRST_COMPLETED)

    def wait(self) -> tuple[Receipt, ...]:
        """Wait for all saves; the receipts of those under way at the last call, in their order.

        Raises:
            FileError: the first one that failed, with the others as notes. Or another process has begun them.
        """
        _refuse_forked("a saver", self._process)
        waited = list(self._savings)
        wait_for([saving._future for saving in waited])
        # Only now: an interrupt while they are waited for leaves them to the next call.
        with unbroken(), self._turn:
            self._savings = [saving for saving in self._savings if saving not in waited]
        self._raise_failed(waited)
        return tuple(s._future.result() for s in waited if s._future.exception() is None)

    def close(self) -> None:
        """Wait for all saves, and take no more. Raises what ``wait`` raises."""
        self._closed = True
        try:
            self.wait()
        finally:
            self._pool.shutdown()
            if not self._savings:  # an interrupted wait has left what is still to be told
                atexit.unregister(self._raise_at_end)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if error is None:
            self.close()
            return
        try:
            self.close()
        except PolyakError as failed:  # the block's own exception matters more, and names it
            error.add_note(f"besides, a save failed: {failed}")

    def _raise_unseen(self) -> None:
        """Raise for saves that have failed and that nobody has heard of."""
        self._raise_failed([saving for saving in self._savings if saving.done])

    def _raise_at_end(self) -> None:
        """Raise when the program ends, which has waited for all. It shows no notes then, so one message says all."""
        if os.getpid() != self._process:
            return  # what is under way there is told there
        failed = _failed(self._savings)
        if len(failed) > 1:
            raise FileError(f"{len(failed)} saves failed: {'; '.join(f'{s.path}: {error}' for s, error in failed)}")
        self._raise_failed(self._savings)

    @staticmethod
    def _raise_failed(done: Sequence[Saving]) -> None:
        failed = _failed(done)
        for saving in done:
            saving.seen = True
        if failed:
            first = failed[0][1]
            for saving, error in failed[1:]:
                first.add_note(f"{saving.path}: {error}")
            raise first


def _failed(done: Sequence[Saving]) -> list[tuple[Saving, BaseException]]:
    """Those that have failed and that nobody has heard of."""
    return [(s, error) for s in done if not s.seen and (error := s._future.exception()) is not None]


def _refuse_forked(what: str, process: int) -> None:
    """A process that was forked has no thread that writes, and would wait for ever."""
    if os.getpid() != process:
        raise FileError(
            f"{what}: expected to be used in process {process}, which made it, received process {os.getpid()}, forked "
            "from it",
            hint="make a Saver in each process",
        )
