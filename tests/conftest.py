"""What every test stands on: a quiet CPU-only TensorFlow, fixed seeds, reproducible properties, no network."""

from __future__ import annotations

import os

# Read by TensorFlow and Keras when they are first imported, so these lines come before every other import.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import atexit
import gc
import ipaddress
import random
import shutil
import signal
import socket
import sys
import tempfile
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

if os.environ["KERAS_BACKEND"] == "jax":  # tests make the same small models: each of their programs is compiled once
    import jax

    if not (_programs := os.environ.get("JAX_COMPILATION_CACHE_DIR", "")):
        _programs = tempfile.mkdtemp(prefix="polyak-tests-")
        atexit.register(shutil.rmtree, _programs, ignore_errors=True)
    jax.config.update("jax_compilation_cache_dir", _programs)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

# What is started in the background ignores interrupts, which tests send to themselves and to their children.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

_settings: dict[str, Any] = {
    "derandomize": True,
    "deadline": None,  # the first call into a framework takes seconds
    "suppress_health_check": [HealthCheck.too_slow],
}
settings.register_profile("ci", max_examples=60, **_settings)
settings.register_profile("thorough", max_examples=2000, **_settings)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


def pytest_sessionfinish() -> None:
    """One collection in the place of pytest's five, each of which takes seconds among thousands of graphs."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _fixed_seeds() -> None:
    """Seeds whatever is already imported; no test pays for a framework that it does not use."""
    random.seed(0)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(0)
    if tensorflow := sys.modules.get("tensorflow"):
        tensorflow.random.set_seed(0)
    if keras := sys.modules.get("keras"):
        keras.utils.set_random_seed(0)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection to anywhere but this machine fails."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6) and not _is_local(address[0]):
            raise OSError(f"tests use no network: connection to {address[0]!r} refused")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


def _is_local(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
