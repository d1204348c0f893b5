"""One process for each backend and set of weights, with the tools to compare with where these are installed."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

PEERS = Path(sys.prefix) / "peers" / "bin" / "python"
TOOLS = ("ema_pytorch", "torch_ema", "timm")
SECONDS = 600


def measured(module: str, asked: dict[str, Any], backend: str, seconds: int = SECONDS) -> dict[str, Any] | str:
    """What ``answer`` printed in ``python -m module --child``, or in a few words why there is nothing."""
    python = str(PEERS) if PEERS.exists() else sys.executable
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "KERAS_BACKEND": backend.replace("numpy", "tensorflow")}
    command = [python, "-W", "ignore", "-m", module, "--child", json.dumps(asked)]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=seconds)
    except subprocess.TimeoutExpired:
        return f"not within {seconds} s"
    if done.returncode:
        return ([f"ended with {done.returncode}", *done.stderr.strip().splitlines()])[-1]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def answer(job: Callable[..., dict[str, Any]], asked: str) -> None:
    """In the child: do the job and print what it found as one line, with the process' peak memory in bytes."""
    found = job(**json.loads(asked))
    print(json.dumps(found | {"peak": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}))


def missing() -> list[str]:
    """Tools to compare with that are not installed where the children run."""
    if PEERS.exists():
        return []
    return [tool for tool in TOOLS if find_spec(tool) is None]
