"""TensorFlow checkpoints and SavedModel variables as contents."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from polyak.contents import Contents, Slot, Tensor
from polyak.errors import DamagedFile
from polyak.files.object_graph import ObjectGraph
from polyak.files.tensorbundle import TensorBundle
from polyak.manifest import Manifest

NOTE = Path("assets.extra") / "polyak.json"
_LARGEST_NOTE = 1 << 27


def recognises(path: Path) -> bool:
    """Whether the path is a checkpoint's prefix or index, a checkpoint directory, or a SavedModel."""
    if path.is_dir():
        return any((path / name).is_file() for name in ("checkpoint", "saved_model.pb"))
    return path.suffix == ".index" or Path(f"{path}.index").is_file()


def read(path: Path) -> Contents:
    """Open a checkpoint; the index is verified, tensors when they are read. Raises FileError, DamagedFile."""
    bundle = TensorBundle(path)
    graph = bundle.graph
    numeric = {k: e for k, e in bundle.entries.items() if e.numeric}
    return Contents(
        origin=f"checkpoint {str(path)!r}",
        format="tensorbundle",
        tensors={k: Tensor(e.shape, e.dtype, partial(bundle.read, k)) for k, e in numeric.items()},
        integrity="crc32c",
        manifest=_note(path),
        texts={k: _text(bundle, k) for k, e in bundle.entries.items() if e.dtype == "string" and e.shape == ()},
        paths={} if graph is None else {k: t.paths for k, t in graph.tensors.items()},
        full_names={} if graph is None else {k: t.full_name for k, t in graph.tensors.items()},
        slots=() if graph is None else _slots(graph),
    )


def _text(bundle: TensorBundle, key: str) -> Callable[[], bytes]:
    return partial(bundle.read_string, key)


def _slots(graph: ObjectGraph) -> tuple[Slot, ...]:
    return tuple(Slot(k, t.slot.variable, t.slot.name) for k, t in graph.tensors.items() if t.slot is not None)


def _note(path: Path) -> Manifest | None:
    """The manifest that polyak leaves in the SavedModels it exports."""
    note = path / NOTE
    if not note.is_file():
        return None
    if (size := note.stat().st_size) > _LARGEST_NOTE:
        raise DamagedFile(f"file {str(note)!r}: expected a manifest, received {size:,} bytes")
    return Manifest.from_json(note.read_bytes(), f"file {str(note)!r}")
