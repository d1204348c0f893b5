"""TensorFlow checkpoints and SavedModel variables as contents."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

from polyak.contents import Contents, Slot, Tensor
from polyak.errors import DamagedFile
from polyak.files.bundle_entries import Entry, no_numbers
from polyak.files.bundle_path import AGAIN, is_data
from polyak.files.object_graph import GRAPH_KEY, ObjectGraph
from polyak.files.tensorbundle import TensorBundle
from polyak.manifest import Manifest, decode_note, longest_manifest

NOTE = Path("assets.extra") / "polyak.json"


def recognises(path: Path) -> bool:
    """Whether the path is a checkpoint's prefix or one of its files, a checkpoint directory, or a SavedModel."""
    if path.is_dir():
        return any((path / name).is_file() for name in ("checkpoint", "saved_model.pb"))
    return path.suffix == ".index" or is_data(path) or Path(f"{path}.index").is_file()


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
        manifest=_note(path, len(bundle.entries)),
        texts={k: _text(bundle, k) for k, e in bundle.entries.items() if _is_text(e) and k != GRAPH_KEY},
        paths={} if graph is None else {k: t.paths for k, t in graph.tensors.items()},
        names=frozenset() if graph is None else graph.names,
        full_names={} if graph is None else {k: t.full_name for k, t in graph.tensors.items()},
        slots=() if graph is None else tuple(_slots(graph, numeric, f"checkpoint {str(path)!r}")),
        unread={k: no_numbers(what) for k, what in bundle.skipped.items() if not _is_text(bundle.entries[k])},
    )


def _is_text(entry: Entry) -> bool:
    return entry.dtype == "string" and entry.shape == ()


def _text(bundle: TensorBundle, key: str) -> Callable[[], bytes]:
    return partial(bundle.read_string, key)


def _slots(graph: ObjectGraph, numeric: Mapping[str, Entry], origin: str) -> Iterator[Slot]:
    for key, tensor in graph.tensors.items():
        if tensor.slot is None:
            continue
        if key not in numeric:
            raise DamagedFile(
                f"{origin}: tensor {key!r:.120}: expected numbers by the object graph, received none", hint=AGAIN
            )
        yield Slot(key, tensor.slot.variable, tensor.slot.name)


def _note(path: Path, count: int) -> Manifest | None:
    """The manifest that polyak leaves in the SavedModels it exports."""
    note = path / NOTE
    if not note.is_file():
        return None
    if (size := note.stat().st_size) > 2 * longest_manifest(count):  # quotes in it are escaped
        raise DamagedFile(f"file {str(note)!r}: expected a manifest, received {size:,} bytes")
    return decode_note(note.read_bytes(), f"file {str(note)!r}", count)
