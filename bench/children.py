"""One process for each backend and set of weights, with the tools to compare with where these are installed."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

PEERS = Path(sys.prefix) / "peers" / "bin" / "python"
TOOLS = ("ema_pytorch", "torch_ema", "timm")
SECONDS = 600
ENDED = "ended"


def measured(module: str, asked: dict[str, Any], backend: str, seconds: int = SECONDS) -> dict[str, Any] | str:
    """What ``answer`` printed in ``python -m module --child``, or in a few words why there is nothing.

    Where the child came to an early end after a part, ``ENDED`` says why.
    """
    python = str(PEERS) if PEERS.exists() else sys.executable
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "KERAS_BACKEND": backend.replace("numpy", "tensorflow")}
    command = [python, "-W", "ignore", "-m", module, "--child", json.dumps(asked)]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, check=False, timeout=seconds)
    except subprocess.TimeoutExpired as late:
        return _found(late.stdout, f"not within {seconds} s")
    why = [f"ended with {done.returncode}", *done.stderr.decode(errors="replace").strip().splitlines()][-1]
    return _found(done.stdout, why if done.returncode else "")


def _found(lines: bytes | None, why: str) -> dict[str, Any] | str:
    """What was printed before the end, and why that came early."""
    found: dict[str, Any] = {}
    for line in (lines or b"").splitlines():
        if line.startswith(b"{"):
            found |= json.loads(line)
    return found | ({ENDED: why} if why else {}) if found else why


def answer(job: Callable[..., dict[str, Any] | Iterator[dict[str, Any]]], asked: str) -> None:
    """In the child: print what the job finds, each part as it comes, and the process' peak memory in bytes."""
    found = job(**json.loads(asked))
    for part in [found] if isinstance(found, dict) else found:
        print(json.dumps(part), flush=True)
    print(json.dumps({"peak": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}))


def missing() -> list[str]:
    """Tools to compare with that are not installed where the children run."""
    if PEERS.exists():
        return []
    return [tool for tool in TOOLS if find_spec(tool) is None]
