"""The rules by name, to be constructed or extended; public as ``polyak.rules``."""

from __future__ import annotations

from polyak.averaging import rules as _named
from polyak.averaging.rules import *  # noqa: F403 - all that it names, and nothing else

__all__: list[str] = []
__all__ += _named.__all__
