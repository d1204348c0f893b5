"""Throughput of each reader and writer beside a plain copy of the same bytes and beside the format's own library.

python -m bench.files [--size MB] [--repeats N] [--only WORD]
"""

# ruff: noqa: D103 - the functions come in pairs whose names say what they do
from __future__ import annotations

import argparse
import io
import os
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module
from pathlib import Path

import numpy as np

from bench.measure import Cost, cost, keep, table
from polyak import files
from polyak.snapshot import Snapshot
from polyak.weights import Evidence, Kind, Weight

MEBI = 1 << 20
COUNT = 16
Write = Callable[[Path, int], object]
Read = Callable[[Path], object]


@dataclass(frozen=True)
class Format:
    """A format: its file's name, how its own library writes and reads it, and the module of polyak that writes it."""

    name: str
    file: str
    write: Write
    read: Read
    writer: str | None = None


@cache
def arrays(size: int) -> dict[str, np.ndarray]:
    """So many bytes of random float32, which hardly compress, under names as Keras has them."""
    dice = np.random.default_rng(0)
    return {f"layers/dense_{i}/vars/0": dice.standard_normal(size // COUNT // 4, np.float32) for i in range(COUNT)}


def plain_copy(source: Path, target: Path) -> None:
    """What ``cp`` does, and the wait for the disk that every writer of polyak has, too."""
    for path in parts(source):
        with path.open("rb") as read, (target.with_name(f"copy-{path.name}")).open("wb") as written:
            shutil.copyfileobj(read, written, MEBI)
            written.flush()
            os.fsync(written.fileno())


def plain_read(source: Path) -> None:
    """All bytes, piece by piece, into memory that is not kept."""
    for path in parts(source):
        with path.open("rb") as file:
            while len(np.fromfile(file, np.uint8, 16 * MEBI)):
                pass


def parts(path: Path) -> Iterator[Path]:
    """The files that a path stands for."""
    if path.name.endswith(".index.json"):
        yield from path.parent.rglob("*.safetensors")
    held = path.rglob("*") if path.is_dir() else path.parent.glob(f"{path.name}*")
    yield from sorted(p for p in held if p.is_file())


def polyak_read(path: Path) -> None:
    """Array by array, none kept; checksums are verified where the format has them."""
    for tensor in files.read(path).tensors.values():
        tensor.read()


def polyak_write(path: Path, size: int, module: str) -> None:
    import_module(f"polyak.files.{module}").write(_snapshot(size), path)


@cache
def _snapshot(size: int) -> Snapshot:
    held = Snapshot.from_arrays(arrays(size))
    return Snapshot(replace(i, weight=_placed(i.weight)) for i in held.items_by_path.values())


def _placed(weight: Weight) -> Weight:
    """With the place that Keras' own files would have it in."""
    evidence = Evidence(weight.path, weight.path, weight.path, "Dense", "kernel", 0, weight.dtype, weight.path)
    return Weight(weight.path, weight.shape, weight.dtype, Kind.TRAINABLE, evidence)


def safetensors_write(path: Path, size: int) -> None:
    from safetensors.numpy import save_file

    save_file(arrays(size), path)


def safetensors_read(path: Path) -> None:
    from safetensors import safe_open

    with safe_open(path, "np") as held:
        for name in held.keys():  # noqa: SIM118 - the library's object is no mapping
            held.get_tensor(name)


def sharded_write(path: Path, size: int) -> None:
    """The Hub's writer belongs to a framework; polyak's own makes the file that is read."""
    polyak_write(path, size, "safetensors_sharded")


def sharded_read(path: Path) -> None:
    for shard in path.parent.rglob("*.safetensors"):
        safetensors_read(shard)


def npz_write(path: Path, size: int) -> None:
    np.savez(path, **arrays(size))  # type: ignore[arg-type]


def npz_read(path: Path) -> None:
    with np.load(path) as held:
        for name in held.files:
            _ = held[name]


def hdf5_write(path: Path, size: int) -> None:
    import h5py

    with h5py.File(path, "w") as file:
        for name, array in arrays(size).items():
            file[name] = array


def hdf5_read(path: Path) -> None:
    import h5py

    with h5py.File(path) as file:
        for i in range(COUNT):
            _ = file[f"layers/dense_{i}/vars/0"][()]


def torch_write(path: Path, size: int, legacy: bool = False) -> None:
    import torch

    tree = {name: torch.from_numpy(array) for name, array in arrays(size).items()}
    torch.save(tree, path, _use_new_zipfile_serialization=not legacy)


def torch_legacy_write(path: Path, size: int) -> None:
    torch_write(path, size, legacy=True)


def torch_read(path: Path) -> None:
    import torch

    torch.load(path)


def tensorflow_write(path: Path, size: int) -> None:
    import tensorflow as tf

    held = arrays(size)
    tf.raw_ops.SaveV2(
        prefix=str(path), tensor_names=list(held), shape_and_slices=[""] * COUNT, tensors=list(held.values())
    )


def tensorflow_v1_write(path: Path, size: int) -> None:
    import tensorflow as tf

    held = {name: tf.constant(array) for name, array in arrays(size).items()}
    tf.raw_ops.Save(filename=str(path), tensor_names=list(held), data=list(held.values()))


def tensorflow_read(path: Path) -> None:
    import tensorflow as tf

    held = tf.train.load_checkpoint(str(path))
    for name in held.get_variable_to_shape_map():
        held.get_tensor(name)


def archive_write(path: Path, size: int) -> None:
    """A ``.keras`` as Keras makes it: a weights file in a zip, not compressed."""
    inner = path.with_name("inside.weights.h5")
    hdf5_write(inner, size)
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(inner, "model.weights.h5")
        archive.writestr("config.json", "{}")
        archive.writestr("metadata.json", "{}")
    inner.unlink()


def archive_read(path: Path) -> None:
    import h5py

    with zipfile.ZipFile(path) as archive, h5py.File(io.BytesIO(archive.read("model.weights.h5"))) as file:
        file.visititems(lambda name, held: held[()] if isinstance(held, h5py.Dataset) else None)


def orbax_write(path: Path, size: int) -> None:
    import orbax.checkpoint

    with orbax.checkpoint.StandardCheckpointer() as writer:
        writer.save(path.absolute(), {name.replace("/", "_"): a for name, a in arrays(size).items()}, force=True)


def orbax_read(path: Path) -> None:
    import orbax.checkpoint

    with orbax.checkpoint.StandardCheckpointer() as reader:
        reader.restore(path.absolute())


def flax_write(path: Path, size: int) -> None:
    from flax.serialization import msgpack_serialize

    path.write_bytes(msgpack_serialize(dict(arrays(size))))


def flax_read(path: Path) -> None:
    from flax.serialization import msgpack_restore

    msgpack_restore(path.read_bytes())


def distributed_write(path: Path, size: int) -> None:
    import torch
    import torch.distributed.checkpoint as dcp

    tree = {name: torch.from_numpy(array) for name, array in arrays(size).items()}
    dcp.save(tree, checkpoint_id=path, no_dist=True)


def distributed_read(path: Path) -> None:
    import torch
    import torch.distributed.checkpoint as dcp

    described = dcp.FileSystemReader(path).read_metadata().state_dict_metadata
    tree = {name: torch.empty(held.size) for name, held in described.items()}
    dcp.load(tree, checkpoint_id=path, no_dist=True)


FORMATS = (
    Format("safetensors", "model.safetensors", safetensors_write, safetensors_read, "safetensors"),
    Format("sharded", "model.safetensors.index.json", sharded_write, sharded_read, "safetensors_sharded"),
    Format("npz", "model.npz", npz_write, npz_read, "npz"),
    Format("weights.h5", "model.weights.h5", hdf5_write, hdf5_read, "keras_write"),
    Format("keras archive", "model.keras", archive_write, archive_read),
    Format("torch zip", "model.pt", torch_write, torch_read, "torch_write"),
    Format("torch legacy", "model.pt", torch_legacy_write, torch_read),
    Format("tensorflow v2", "model", tensorflow_write, tensorflow_read),
    Format("tensorflow v1", "model", tensorflow_v1_write, tensorflow_read),
    Format("orbax", "model.orbax", orbax_write, orbax_read, "orbax"),
    Format("torch distributed", "model", distributed_write, distributed_read),
    Format("flax msgpack", "model.msgpack", flax_write, flax_read),
)


def readers(form: Format, size: int, repeats: int, place: Path) -> dict[str, Cost | None]:
    """polyak, the library, and the limit, on the file that the library wrote and on polyak's own."""
    path = place / form.file
    if cost(form.write, path, size, repeats=0) is None:
        return {}
    made = {
        f"read {form.name}: limit": cost(plain_read, path, repeats=repeats),
        f"read {form.name}: polyak": cost(polyak_read, path, repeats=repeats),
        f"read {form.name}: library": cost(form.read, path, repeats=repeats),
    }
    if form.writer:
        cost(polyak_write, path, size, form.writer, repeats=0)
        made[f"read {form.name}: polyak, its own file"] = cost(polyak_read, path, repeats=repeats)
    return made


def writers(form: Format, size: int, repeats: int, place: Path) -> dict[str, Cost | None]:
    if form.writer is None:
        return {}
    path = place / form.file
    cost(form.write, path, size, repeats=0)
    made = {
        f"write {form.name}: limit": cost(plain_copy, path, place / "copy", repeats=repeats),
        f"write {form.name}: library": cost(form.write, path, size, repeats=repeats),
    }
    return made | {f"write {form.name}: polyak": cost(polyak_write, path, size, form.writer, repeats=repeats)}


def throughput(size: int, repeats: int, only: str) -> dict[str, Cost | None]:
    found: dict[str, Cost | None] = {}
    for form in FORMATS:
        for jobs in (readers, writers):
            if only in f"{jobs.__name__} {form.name}":
                with tempfile.TemporaryDirectory() as place:
                    found |= jobs(form, size, repeats, Path(place))
                print(".", end="", flush=True, file=sys.stderr)
    print(file=sys.stderr)
    return found


def rows(found: dict[str, Cost | None], size: int) -> list[list[str]]:
    """Each job beside its limit: a plain read for readers, a plain copy with the wait for the disk for writers."""
    made = []
    for name, one in found.items():
        limit = found[f"{name.partition(':')[0]}: limit"]
        if one is None or limit is None:
            made.append([name, *["-"] * 4])
            continue
        speed, ratio = size / one.seconds / 1e9, one.seconds / limit.seconds
        made.append([name, f"{one.seconds:.3f}", f"{speed:.2f}", f"{ratio:.1f}", f"{one.peak / MEBI:.0f}"])
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=256, help="megabytes of weights")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", default="", help="a part of the name of a job, such as 'readers npz'")
    parser.add_argument("--quick", action="store_true", help="a megabyte, once: whether it runs, not how fast")
    asked = parser.parse_args()
    if asked.quick:
        asked.size, asked.repeats = 1, 1
    size = asked.size * 1_000_000 // (4 * COUNT) * 4 * COUNT
    found = throughput(size, asked.repeats, asked.only)
    print(table(["job", "s", "GB/s", "x limit", "peak MiB"], rows(found, size)))
    print(f"kept in {keep('files' + '-quick' * asked.quick, {'bytes': size, **found})}")


if __name__ == "__main__":
    main()
