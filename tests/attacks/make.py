"""The hostile files, all of them: python -m tests.attacks.make DIRECTORY writes each into a folder of its own.

A new format gets one line in ``GOOD``, from which the damaged files are made, and a module ``cases_*.py`` with what
only somebody with an intention writes.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

from tests.attacks import cases_bypasses, cases_keras, cases_npz, cases_safetensors, cases_tensorflow, cases_torch
from tests.attacks.attack import GOLDEN, Attack, Build

ATTACKS: tuple[Attack, ...] = (
    *cases_safetensors.ATTACKS,
    *cases_npz.ATTACKS,
    *cases_torch.ATTACKS,
    *cases_tensorflow.ATTACKS,
    *cases_keras.ATTACKS,
    *cases_bypasses.ATTACKS,
)


def kept(*names: str) -> Build:
    """Copies of golden files; the first is what is opened."""

    def build(directory: Path) -> Path:
        for name in names:
            shutil.copy(GOLDEN / name, directory / Path(name).name)
        return directory / Path(names[0]).name

    return build


def whole(name: str) -> Build:
    """A copy of a golden directory."""
    return lambda directory: Path(shutil.copytree(GOLDEN / name, directory / Path(name).name))


# One small good file, or set of files, of each format.
GOOD: dict[str, Build] = {
    "safetensors": cases_safetensors.plain,
    "safetensors of polyak": cases_safetensors.own,
    "safetensors sharded": cases_safetensors.own_sharded,
    "npz": cases_npz.plain,
    "npz of polyak": cases_npz.own,
    "tensorflow v2": cases_tensorflow.copied("module"),
    "tensorflow v1": cases_tensorflow.copied("tf1_v1"),
    "tensorflow saved model": cases_tensorflow.copied("saved_model"),
    "tensorflow directory": cases_tensorflow.copied("managed"),
    "keras weights": kept("keras/holder.weights.h5"),
    "keras archive": kept("keras/use_ema.keras"),
    "keras sharded": cases_keras.good_sharded,
    "torch zip": kept("torch/plain.pt"),
    "torch deflated": kept("torch/deflated.pt"),
    "torch legacy": kept("torch/plain_legacy.pt"),
    "torch distributed": whole("jax/dcp"),
    "flax msgpack": kept("jax/variables.msgpack"),
}


def main(directory: Path) -> None:
    for attack in ATTACKS:
        folder = directory / re.sub(r"\W+", "-", attack.name)
        folder.mkdir(parents=True)
        print(attack.build(folder))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
