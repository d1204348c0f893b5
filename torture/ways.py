"""The ways to save that the campaigns of durability try: polyak's formats, and the bare writers of other libraries.

All save the same: four arrays that hold one number, the version. Loading answers which numbers are found.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import numpy as np

import polyak
from polyak.files import npz, safetensors  # noqa: F401 - loaded before children are forked
from polyak.snapshot import Snapshot

NAMES = ("encoder/kernel", "encoder/bias", "head/kernel", "head/bias")
SMALL = 1 << 16
Save = Callable[[Path, int], None]


@dataclass(frozen=True)
class Way:
    """One way to save.

    Attributes:
        name: as tables have it.
        file: what the file, directory or prefix is called.
        saver: makes what saves a version to a path, given the bytes of all arrays; called in the child that will save.
        load: the versions that are found; raises if it is not readable.
        packages: must be imported before a child is forked.
    """

    name: str
    file: str
    saver: Callable[[int], Save]
    load: Callable[[Path], set[int]]
    packages: tuple[str, ...] = ()

    def prepare(self) -> None:
        for package in self.packages:
            import_module(package)


def arrays(version: int, size: int) -> dict[str, np.ndarray]:
    return {name: np.full((4, size // 64), version, np.float32) for name in NAMES}


def _snapshot(version: int, size: int) -> Snapshot:
    """With what Keras asks for: the place of each weight in its files."""
    from polyak.snapshot import Item
    from polyak.weights import Evidence, Kind, Weight

    def item(name: str, value: np.ndarray) -> Item:
        layer, _, own = name.partition("/")
        evidence = Evidence(name, name, name, "Dense", own, 0, "float32", f"layers/{layer}/vars/{int(own == 'bias')}")
        return Item("average", Weight(name, value.shape, "float32", Kind.TRAINABLE, evidence), lambda: value)

    return Snapshot([item(name, value) for name, value in arrays(version, size).items()])


def _by_polyak(size: int) -> Save:
    return lambda path, version: polyak.save(_snapshot(version, size), path) and None


def _found(values: object) -> set[int]:
    return {int(v) for value in values for v in np.unique(np.asarray(value))}


def _opened(path: Path) -> set[int]:
    held = polyak.open(path)
    assert len(held) == len(NAMES), list(held)
    return _found(held.values())


def _newest(path: Path) -> set[int]:
    """The weights of the newest checkpoint of a manager, without the manager's own counter."""
    return _found(polyak.open(path).select("raw").values())


def _checkpoint(size: int) -> Callable[[int], object]:
    import tensorflow as tf

    def made(version: int) -> object:
        module = tf.Module()
        module.held = {n.replace("/", "_"): tf.Variable(v) for n, v in arrays(version, size).items()}
        return tf.train.Checkpoint(module=module)

    made(0)
    return made


def _tensorflow(size: int) -> Save:
    from polyak import tensorflow

    made = _checkpoint(size)
    return lambda path, version: tensorflow.write(made(version), path) and None


def _tf1(size: int) -> Save:
    import tensorflow as tf

    from polyak import tensorflow

    tf.constant(0)
    return lambda path, version: tensorflow.save_tf1(_snapshot(version, size), path) and None


def _bare_tensorflow(size: int) -> Save:
    made = _checkpoint(size)
    return lambda path, version: made(version).write(str(path)) and None


def _managed(size: int) -> Save:
    import tensorflow as tf

    made = _checkpoint(size)

    def save(path: Path, version: int) -> None:
        checkpoint = made(version)
        tf.train.CheckpointManager(checkpoint, str(path), max_to_keep=2).save(checkpoint_number=version)

    return save


def _served(size: int) -> Callable[[int], tuple[object, object]]:
    """A module that can be served, and its signature."""
    import tensorflow as tf

    made = _checkpoint(size)
    tf.zeros(1)

    class Served(tf.Module):
        def __init__(self, version: int) -> None:
            super().__init__()
            self.held = made(version).module.held

        @tf.function
        def __call__(self, x: tf.Tensor) -> tf.Tensor:
            return x + sum(tf.reduce_sum(v) for v in self.held.values())

    return lambda version: (Served(version), tf.TensorSpec((None,), tf.float32))


def _exported(size: int) -> Save:
    """A SavedModel below the number of its version, as servers look for them."""
    from polyak import tensorflow

    made = _served(size)

    def save(path: Path, version: int) -> None:
        module, signature = made(version)
        path.mkdir(exist_ok=True)
        tensorflow.export(polyak.track(module, "ema:0.9"), path / str(version), signature)

    return save


def _bare_export(size: int) -> Save:
    made = _served(size)

    def save(path: Path, version: int) -> None:
        import tensorflow as tf

        module, signature = made(version)
        signatures = {"serving_default": tf.function(module, input_signature=[signature])}
        tf.saved_model.save(module, str(path / str(version)), signatures)

    return save


def _last_served(path: Path) -> set[int]:
    """The weights of the newest version, as a server would load it."""
    import tensorflow as tf

    newest = max((p for p in path.iterdir() if p.name.isdigit()), key=lambda p: int(p.name))
    tf.saved_model.load(str(newest)).signatures["serving_default"]
    held = polyak.open(newest)
    return _found(held.select(held.roles[0]).values())


def _bare_safetensors(size: int) -> Save:
    from safetensors.numpy import save_file

    return lambda path, version: save_file(arrays(version, size), path)


def _bare_torch(size: int) -> Save:
    import torch

    return lambda path, version: torch.save({n: torch.from_numpy(a) for n, a in arrays(version, size).items()}, path)


def _bare_npz(size: int) -> Save:
    return lambda path, version: np.savez(path, **arrays(version, size))


def _bare_h5(size: int) -> Save:
    """As Keras' ``save_weights`` does it: h5py on the path itself."""
    import h5py

    def save(path: Path, version: int) -> None:
        with h5py.File(path, "w") as file:
            for name, value in arrays(version, size).items():
                file.create_dataset(f"layers/{name}", data=value)

    return save


def _load_safetensors(path: Path) -> set[int]:
    from safetensors.numpy import load_file

    return _found(load_file(path).values())


def _load_torch(path: Path) -> set[int]:
    import torch

    return _found(t.numpy() for t in torch.load(path, weights_only=True).values())


def _load_npz(path: Path) -> set[int]:
    with np.load(path) as held:
        return _found(held[n] for n in held.files)


def _load_h5(path: Path) -> set[int]:
    import h5py

    with h5py.File(path) as file:
        return _found(file[f"layers/{n}"][()] for n in NAMES)


POLYAK = (
    Way("safetensors", "m.safetensors", _by_polyak, _opened),
    Way("sharded", "m.safetensors.index.json", _by_polyak, _opened),
    Way("npz", "m.npz", _by_polyak, _opened),
    Way(
        ".weights.h5",
        "m.weights.h5",
        _by_polyak,
        _opened,
        ("h5py", "polyak.files.keras_write", "polyak.files.keras_h5"),
    ),
    Way(".pt", "m.pt", _by_polyak, _opened, ("polyak.files.torch_write", "polyak.files.torch_pt")),
    Way("Orbax", "m.orbax", _by_polyak, _opened, ("tensorstore", "polyak.files.orbax")),
)
TENSORFLOW = (
    Way("polyak.tensorflow.write", "m", _tensorflow, _opened, ("polyak.tensorflow",)),
    Way("save_tf1", "m", _tf1, _opened, ("polyak.tensorflow",)),
    Way("CheckpointManager", "m", _managed, _newest, ("polyak.tensorflow",)),
)
OTHERS = (
    Way("safetensors", "m.safetensors", _bare_safetensors, _load_safetensors, ("safetensors.numpy",)),
    Way("torch.save", "m.pt", _bare_torch, _load_torch, ("torch",)),
    Way("np.savez", "m.npz", _bare_npz, _load_npz),
    Way("h5py in place, as Keras", "m.weights.h5", _bare_h5, _load_h5, ("h5py",)),
)
EXPORTS = (Way("polyak.tensorflow.export", "served", _exported, _last_served, ("polyak.tensorflow",)),)
OTHERS_EXPORTS = (Way("tf.saved_model.save", "served", _bare_export, _last_served, ("polyak.tensorflow",)),)
OTHERS_TENSORFLOW = (Way("tf.train.Checkpoint.write", "m", _bare_tensorflow, _opened, ("polyak.tensorflow",)),)


def start(way: Way, directory: Path, size: int) -> None:
    """A directory that holds version 1, and nothing else."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    way.saver(size)(directory / way.file, 1)


def found(way: Way, directory: Path) -> set[int] | str:
    """The versions that a directory holds, or why it cannot be loaded."""
    try:
        return way.load(directory / way.file)
    except Exception as error:  # whatever a library says of it, the file is lost
        return f"{type(error).__name__}: {error!s:.200}"
