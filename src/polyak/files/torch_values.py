"""What a pickle can hold here: names, inert notes of objects, and a limit on the work that it may ask for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from polyak.files.limits import FREE_STEPS

_PLAIN_KEYS = (str, int, float, bool, bytes, type(None))
_WIDEST_KEY = 2**64
_LONGEST_KEY = 8


@dataclass(frozen=True, slots=True)
class Name:
    """A global that a pickle names. It is never imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(slots=True, eq=False)
class Stub:
    """An object of a class that is not known here: what the file says of it, and nothing that could run."""

    name: str
    args: tuple[Any, ...] = ()
    state: Any = None
    items: dict[Any, Any] = field(default_factory=dict)
    entries: list[Any] = field(default_factory=list)


class Refused(Exception):
    """The pickle asks for something that is not done here; the message says for what."""


class Budget:
    """How much work a pickle may ask for, so that a small file cannot make work without end."""

    def __init__(self, steps: int = FREE_STEPS) -> None:
        self.most = self.left = steps

    def charge(self, steps: int = 1) -> None:
        self.left -= steps
        if self.left < 0:
            raise Refused(f"more than {self.most:,} steps")


def set_key(held: dict[Any, Any], key: Any, value: Any) -> None:
    """Enter a value under a plain key. The hash of other keys can be slow or deep, and no file of weights has them."""
    parts = key if isinstance(key, tuple) else (key,)
    if len(parts) > _LONGEST_KEY or not all(isinstance(p, (*_PLAIN_KEYS, Name)) for p in parts):
        key = Stub("key", (key,))
    elif any(isinstance(p, int) and abs(p) >= _WIDEST_KEY for p in parts):
        raise Refused("a key wider than 64 bits")
    if key in held:
        raise Refused(f"two values of the key {shown(key)}")
    held[key] = value


def shown(value: Any) -> str:
    """A value for an error. Containers only by their sort: their text can be endless, though they are small."""
    if isinstance(value, (str, bytes)):
        return repr(value[:60])
    return repr(value)[:60] if isinstance(value, _PLAIN_KEYS) else f"a {type(value).__name__}"
