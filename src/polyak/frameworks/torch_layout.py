"""How shadows lie in PyTorch's memory: small ones of one rule one after another, so that they move as one tensor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from polyak.frameworks.engine import Arrays, Program
from polyak.frameworks.torch_kernel import is_served

# Numbers of a small tensor: a call for each costs more than a copy of its value.
SMALL = 2**12
# Numbers of a run of tensors that are moved by one call, which makes a tensor of distances for each.
TOGETHER = 2**18

Paths = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Layout:
    """The shadows of one rule.

    Attributes:
        packs: by the paths of small shadows the flat tensor in which they lie one after another.
        blocked: those in host memory that are moved by blocks.
        chunks: those elsewhere, some at a time.
    """

    packs: Mapping[Paths, Any]
    blocked: Paths
    chunks: tuple[Paths, ...]


class Shadows(dict[str, Any]):
    """Shadows by path, as they lie for one program. Another tensor in the place of one ends the order.

    Attributes:
        program: None once the order has ended.
        layouts: one for each rule of the program.
        loose: guarded paths that lie in no pack.
    """

    def __init__(self, shadows: Mapping[str, Any], program: Program, layouts: Sequence[Layout]) -> None:
        super().__init__(shadows)
        self.program: Program | None = program
        self.layouts = tuple(layouts)
        packed = {path for paths in self.packs() for path in paths}
        self.loose = tuple(path for path in program.guarded if path not in packed)

    def __setitem__(self, path: str, shadow: Any) -> None:
        super().__setitem__(path, shadow)
        self.program = None

    def packs(self) -> Iterator[Paths]:
        """The paths of each pack."""
        return (paths for layout in self.layouts for paths in layout.packs)


def laid_out(program: Program, shadows: Mapping[str, Any], values: Arrays) -> Shadows:
    """The shadows in the order that the program asks for: as they are, if they lie so already."""
    if isinstance(shadows, Shadows) and shadows.program is program:
        return shadows
    made = {path: shadow.contiguous() for path, shadow in shadows.items()}
    return Shadows(made, program, [_laid(paths, made, values) for _, paths in program.moved])


def _laid(paths: Paths, shadows: dict[str, Any], values: Arrays) -> Layout:
    """The layout of one rule; small shadows become views of their pack."""
    small = [path for path in paths if 0 < values[path].numel() <= SMALL]
    packs = {alike: _pack(alike, shadows) for alike in _alike(small, shadows, values)}
    packed = {path for alike in packs for path in alike}
    left = [path for path in paths if path not in packed]
    here = {path: is_served(values[path]) and is_served(shadows[path]) for path in left}
    blocked, elsewhere = ([path for path in left if here[path] is where] for where in (True, False))
    return Layout(packs, tuple(blocked), tuple(_chunks(elsewhere, values)))


def _alike(paths: Sequence[str], shadows: Mapping[str, Any], values: Arrays) -> list[Paths]:
    """Paths of one dtype and device."""
    found: dict[Any, list[str]] = {}
    for path in paths:
        shadow, value = shadows[path], values[path]
        found.setdefault((shadow.dtype, shadow.device, value.dtype, value.device), []).append(path)
    return [tuple(alike) for alike in found.values() if len(alike) > 1]


def _pack(paths: Paths, shadows: dict[str, Any]) -> Any:
    parts = [shadows[path].reshape(-1) for path in paths]
    flat = torch.cat(parts)
    for path, view in zip(paths, flat.split([part.numel() for part in parts]), strict=True):
        shadows[path] = view.view(shadows[path].shape)
    return flat


def _chunks(paths: Sequence[str], arrays: Arrays) -> Iterator[Paths]:
    """Paths in runs of about so many elements."""
    chunk: list[str] = []
    size = 0
    for path in paths:
        chunk.append(path)
        size += arrays[path].numel()
        if size >= TOGETHER:
            yield tuple(chunk)
            chunk, size = [], 0
    if chunk:
        yield tuple(chunk)
