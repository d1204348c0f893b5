"""Transfers that fail at any line of polyak, by an error or an interrupt: is the target what it was, bit for bit?"""

from __future__ import annotations

import signal
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import psutil

import polyak
from polyak.manifest import AVERAGE, State
from polyak.snapshot import Snapshot
from torture.trials.models import BACKEND, Array, Weights, put

HOME = str(Path(polyak.__file__).parent)
COUNT, SIZE = 4, 16


class Injected(Exception):
    """What a test raises where nothing of its own could."""


def targets() -> dict[str, Callable[[], Any]]:
    """Ways to make a target: a model or an average."""
    made: dict[str, Callable[[], Any]] = {"a Keras model": _model, "an average": _average}
    if BACKEND == "tensorflow":
        made |= {"a tf.Module": _tf_module, "an average of a tf.Module": lambda: _followed(_tf_module())}
    if BACKEND == "torch":
        made |= {"a torch module": _torch_module}
    return made


def _model() -> Any:
    model = Weights(SIZE, ["float32"] * COUNT)
    put(model, np.arange(SIZE, dtype=np.float32))
    return model


def _followed(model: Any) -> Any:
    average = polyak.EMA(model, decay=0.9, start="initial")
    average.update()
    return average


def _average() -> Any:
    return _followed(_model())


def _tf_module() -> Any:
    import tensorflow as tf

    module = tf.Module()
    for i in range(COUNT):
        setattr(module, f"w{i}", tf.Variable(np.arange(SIZE, dtype=np.float32)))
    return module


def _torch_module() -> Any:
    import torch

    module = torch.nn.Module()
    for i in range(COUNT):
        module.register_parameter(f"w{i}", torch.nn.Parameter(torch.arange(SIZE, dtype=torch.float32)))
    return module


FAULTS: dict[str, Callable[[], None]] = {
    "MemoryError": lambda: _raise(MemoryError("injected")),
    "an error": lambda: _raise(Injected("injected")),
    "SIGINT": lambda: signal.raise_signal(signal.SIGINT),
}


def _raise(error: Exception) -> None:
    raise error


def failures(count: int) -> tuple[int, list[str]]:
    """About so many failures for each target, at lines spread over a whole transfer: (how many, what broke)."""
    trials, broken = 0, []
    for name, make in targets().items():
        live, source = make(), _source()
        lines = _lines(lambda: polyak.transfer(source, live))  # noqa: B023
        live = make()
        for fault, strike in FAULTS.items():
            for k in np.unique(np.linspace(1, lines, max(count // len(FAULTS), 2), dtype=int)):
                before = state(live)
                failed = _failing(lambda: polyak.transfer(source, live), int(k), strike)  # noqa: B023
                trials += failed
                if state(live) == before:
                    continue
                if not _is_new(live, source):
                    broken.append(f"{name}: {fault} at line {k} of {lines}: it is neither as it was nor as it shall be")
                live = make()
    return trials, broken


def _source() -> Snapshot:
    values = {f"w{i}": np.full(SIZE, i + 100, np.float32) for i in range(COUNT)}
    return Snapshot.from_arrays(values, AVERAGE, State({"rule": "mean"}, 41, 2))


def state(live: Any) -> Any:
    """All bits of a model or an average, with rule and counts."""
    own = (str(live.rule), live.count, live.skipped) if isinstance(live, polyak.Average) else None
    return _bits(live.values() if own else polyak.snapshot(live)), own


def _bits(values: Mapping[str, Array]) -> list[bytes]:
    return [value.tobytes() for value in values.values()]


def _is_new(live: Any, source: Snapshot) -> bool:
    bits, own = state(live)
    return bits == _bits(source) and own in (None, ("mean", 41, 2))


class _Lines:
    """Counts the lines of polyak that run, and does something at one of them, once."""

    def __init__(self, at: int, strike: Callable[[], None]) -> None:
        self.count, self._at, self._strike = 0, at, strike

    def __call__(self, frame: FrameType, event: str, arg: Any) -> Any:
        if not frame.f_code.co_filename.startswith(HOME):
            return None
        if event == "line":
            self.count += 1
            if self.count == self._at:
                sys.settrace(None)
                self._strike()
        return self


def _lines(work: Callable[[], Any]) -> int:
    counted = _Lines(-1, lambda: None)
    sys.settrace(counted)
    try:
        work()
    finally:
        sys.settrace(None)
    return counted.count


def _failing(work: Callable[[], Any], line: int, strike: Callable[[], None]) -> bool:
    sys.settrace(_Lines(line, strike))
    try:
        work()
    except (MemoryError, KeyboardInterrupt, Injected):
        return True
    finally:
        sys.settrace(None)
    return False


def undo(mebibytes: int) -> float:
    """Memory beyond what was held before, at the peak of a transfer from a file, in sizes of the target."""
    model = Weights(2**18, ["float32"] * mebibytes)
    put(model, np.ones(2**18, np.float32))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.safetensors"
        polyak.save(model, path)
        put(model, np.zeros(2**18, np.float32))
        polyak.transfer(path, model)
        held = _peak(lambda: polyak.transfer(path, model))
    return held / (mebibytes * 2**20)


def _peak(work: Callable[[], Any]) -> int:
    Path("/proc/self/clear_refs").write_text("5")
    before = psutil.Process().memory_info().rss
    work()
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024 - before


def peers() -> dict[str, str]:
    """What loaders that raise have left of a model."""
    model = _model()
    before = state(model)
    wrong = [np.full(SIZE, 7, np.float32)] * (COUNT - 1) + [np.zeros(SIZE + 1, np.float32)]
    found = {f"Keras set_weights on {BACKEND}": _left(lambda: model.set_weights(wrong), model, before)}
    if BACKEND == "torch":
        import torch

        module = _torch_module()
        before = state(module)
        tensors = {f"w{i}": torch.full((SIZE + (i == COUNT - 1),), 7.0) for i in range(COUNT)}
        found["torch load_state_dict"] = _left(lambda: module.load_state_dict(tensors), module, before)
    return found


def _left(load: Callable[[], Any], model: Any, before: Any) -> str:
    try:
        load()
    except (ValueError, RuntimeError):
        return "as it was" if state(model) == before else "half written"
    return "nothing was raised"
