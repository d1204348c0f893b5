"""A process for each backend of Keras, which stays: trials are sent to it by name."""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from functools import cache
from importlib import import_module
from multiprocessing import get_context
from typing import Any

BACKENDS = ("tensorflow", "jax", "torch")


def on(backend: str, trial: str, *arguments: Any) -> Any:
    """What a function of ``torture.trials``, such as "numbers.drift", answers on a backend."""
    return begun(backend, trial, *arguments).result()


def begun(backend: str, trial: str, *arguments: Any) -> Future[Any]:
    """The same as a future, so that backends work at one time."""
    return _process(backend).submit(_call, trial, arguments)


def on_each(trial: str, *arguments: Any, backends: Iterable[str] = BACKENDS) -> dict[str, Any]:
    """The answers of several backends."""
    running = {backend: begun(backend, trial, *arguments) for backend in backends}
    return {backend: future.result() for backend, future in running.items()}


@cache
def _process(backend: str) -> ProcessPoolExecutor:
    pool = ProcessPoolExecutor(1, get_context("spawn"), initializer=_prepare, initargs=(backend,))
    atexit.register(pool.shutdown)
    return pool


def _prepare(backend: str) -> None:
    os.environ["KERAS_BACKEND"] = backend
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")


def _call(trial: str, arguments: tuple[Any, ...]) -> Any:
    module, _, name = trial.partition(".")
    return getattr(import_module(f"torture.trials.{module}"), name)(*arguments)
