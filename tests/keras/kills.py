"""Runs that are killed and resumed: does the end have the bits of a run that nobody disturbed?

    KERAS_BACKEND=jax python tests/keras/kills.py fit-steps --count 30

A run trains a small model with dropout, statistics, Adam and averages, and writes checkpoints. A signal ends it at a
random moment, most often within or beside the writing of a checkpoint: SIGKILL, SIGTERM or SIGINT in turn. Another
process goes on from what lies on the disk, and may be killed, too. The order of the data follows from the number of
steps in the checkpoint: that is what makes a resumed run comparable.

With BackupAndRestore of Keras 3.15 it is exact: weights, the optimizer's state, the average and its count.
What Keras leaves to its user, and the run here therefore does itself:

- It writes in place: ``double_checkpoint=True`` is needed to survive a kill within a write. After an interrupt it
  closes the half-written file, and does not go back to the one before, because the file can be read.
- It begins the epoch again in which it was killed, with weights from the middle of it: the stream of data starts where
  ``iterations`` of the checkpoint says, and the run ends by the count of updates and not by epochs.
- Its files hold no random seeds. The average has a copy of them, which is of the last update and not of the last step
  of an accumulation: ``Seeds`` counts the steps since.
- On PyTorch dropout draws from PyTorch's own generator, which no file holds: it is seeded with the step's number.
- On TensorFlow a stream that runs out adds one to ``iterations``: the stream here is longer than the run.

Each process is a fork of one that has imported Keras and has done nothing with it yet.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import h5py
import keras
import numpy as np
import tensorflow as tf  # Keras' loops load it on every backend: once here, and not in each process

import polyak
import polyak.keras

STEPS, EPOCH, EVERY = 48, 8, 3
RULE, SLOW = "ema:0.9", "mean,every=5"
MOST_KILLS_A_RUN = 3
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
METADATA = "training_metadata.json"
INTERRUPTED = 130  # the status of a process that SIGINT has ended

Tell = Callable[[], None]


def network(accumulated: int | None = None) -> Any:
    keras.utils.set_random_seed(0)
    hidden = [keras.layers.Dense(16, "relu"), keras.layers.BatchNormalization(), keras.layers.Dropout(0.3)]
    model = keras.Sequential([keras.Input((8,)), *hidden, keras.layers.Dense(1)])
    model.compile(keras.optimizers.Adam(0.01, gradient_accumulation_steps=accumulated), "mse")
    model.optimizer.build(model.trainable_variables)
    return model


def batch(step: int) -> tuple[Any, Any]:
    draw = np.random.default_rng(step)
    x = draw.normal(size=(16, 8)).astype("float32")
    return x, x.sum(axis=1, keepdims=True)


def stream(first: int) -> Iterator[tuple[Any, Any]]:
    return (batch(step) for step in itertools.count(first))


def seed_torch(step: int) -> None:
    if keras.backend.backend() == "torch":
        import torch

        torch.manual_seed(step)


def digest(model: Any, *averages: Any) -> str:
    """Of all that must be equal at the end: weights, seeds, the optimizer's state, the averages, rules and counts."""
    optimizer = {f"optimizer/{i}": np.asarray(keras.ops.convert_to_numpy(v)) for i, v in enumerate(_state(model))}
    held = {f"average{i}/{p}": a for i, average in enumerate(averages) for p, a in average.values().items()}
    arrays = {**polyak.snapshot(model), **held, **optimizer}
    listed = [f"{path} {array.dtype} {array.tobytes().hex()}" for path, array in sorted(arrays.items())]
    states = [f"{a.rule}: {a.count} updates, {a.skipped} skipped" for a in averages]
    return f"{'; '.join(states)}, {hashlib.sha256('|'.join(listed).encode()).hexdigest()}"


def _state(model: Any) -> list[Any]:
    return [v.value for v in model.optimizer.variables]


# --- the ways to keep a run ------------------------------------------------------------------------------------------


class Steps(keras.callbacks.Callback):
    """Says after each step, before the checkpoint of it is written, that there was one; ends the run after the last."""

    def __init__(self, averaging: Any, tell: Tell) -> None:
        super().__init__()
        self._averaging, self._tell = averaging, tell

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        seed_torch(self._averaging.average.count)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self._tell()
        if self._averaging.average.count == STEPS:
            self.model.stop_training = True


class Seeds(keras.callbacks.Callback):
    """Gives random seeds back, as they were after the step of the checkpoint that BackupAndRestore has restored."""

    def __init__(self, averaging: Any) -> None:
        super().__init__()
        self._averaging = averaging

    def on_train_begin(self, logs: Any = None) -> None:
        give_seeds_back(self._averaging.average, self.model)


def give_seeds_back(average: Any, model: Any) -> None:
    """Each step draws once, which adds one to the second number of the state."""
    dropout = next(layer for layer in model.layers if isinstance(layer, keras.layers.Dropout))
    accumulated = model.optimizer.gradient_accumulation_steps or 1
    drawn = int(model.optimizer._iterations) % accumulated if keras.backend.backend() != "torch" else 0
    dropout.seed_generator.state.assign(average.values()["dropout/seed_generator/state"] + np.array([0, drawn]))


def fitted(place: Path, tell: Tell, save_freq: str | int, accumulated: int | None = None) -> str:
    """With ``accumulated``, a checkpoint lies within an accumulation, and within the interval of a second average."""
    model = network(accumulated)
    averaging = polyak.keras.Averaging(RULE)
    several = [averaging, *([polyak.keras.Averaging(SLOW, name="slow")] if accumulated else [])]
    backup = keras.callbacks.BackupAndRestore(
        place, save_freq=save_freq, double_checkpoint=True, delete_checkpoint=False
    )
    callbacks = [*several, Steps(averaging, tell), backup, Seeds(averaging)]
    for each in several:
        each.set_model(model)  # the model holds the averages from here on
    refuse_half(place, model)
    files = [place / "latest.weights.h5", place / "latest.weights.h5.bkp"]
    first = next((done for done in map(_iterations, files) if done is not None), 0)
    steps = STEPS * (accumulated or 1)
    if first < steps:
        model.fit(stream(first), epochs=steps // EPOCH, steps_per_epoch=EPOCH, verbose=0, callbacks=callbacks)
    else:  # killed after the last checkpoint, which has all
        model.load_weights(files[0])
        give_seeds_back(averaging.average, model)
    return digest(model, *(each.average for each in several))


def refuse_half(place: Path, model: Any) -> None:
    """Put the file before it in the place of one that an interrupt has left half written, and Keras has closed."""
    latest, before, notes = (place / name for name in ("latest.weights.h5", "latest.weights.h5.bkp", METADATA))
    probe = place / "probe.weights.h5"
    model.save_weights(probe)
    held, expected = _datasets(latest), _datasets(probe)
    probe.unlink()
    if held is not None and held != expected:
        latest.unlink()
        if before.exists():
            shutil.copy(before, latest)
    if notes.exists() and not notes.read_text().endswith("}"):
        notes.unlink()


def _datasets(path: Path) -> set[str] | None:
    """The arrays in a file of Keras; None for one that cannot be read."""
    found: set[str] = set()
    try:
        with h5py.File(path) as file:
            file.visititems(lambda name, item: found.add(name) if isinstance(item, h5py.Dataset) else None)
    except OSError:
        return None
    except RuntimeError:  # what HDF5 says of a group that points beyond the end of the file: half written as well
        return set()
    return found


def _iterations(path: Path) -> int | None:
    """The steps behind a checkpoint of Keras, those that only accumulate included; None for one that cannot be read."""
    try:
        with h5py.File(path) as file:
            return int(file["optimizer/vars/0"][()])
    except (OSError, KeyError):
        return None


def by_steps(place: Path, tell: Tell) -> str:
    return fitted(place, tell, EVERY)


def by_epochs(place: Path, tell: Tell) -> str:
    return fitted(place, tell, "epoch")


def several(place: Path, tell: Tell) -> str:
    return fitted(place, tell, EVERY, accumulated=2)


def skipping(model: Any, *averages: Any) -> None:
    """Updates that are skipped, because a weight is not finite for a moment."""
    variable = model.trainable_variables[0]
    held = np.array(keras.ops.convert_to_numpy(variable.value))
    variable.assign(np.full_like(held, np.nan))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", polyak.errors.NonFiniteWarning)
        for average in averages:
            average.update()
    variable.assign(held)


def managed(place: Path, tell: Tell) -> str:
    """A loop of one's own with TensorFlow's CheckpointManager."""
    model = network()
    average = polyak.track(model, RULE)
    checkpoint = tf.train.Checkpoint(model=model, optimizer=model.optimizer, average=average)
    manager = tf.train.CheckpointManager(checkpoint, str(place), max_to_keep=2)
    checkpoint.restore(manager.latest_checkpoint)
    for step in range(int(model.optimizer.iterations), STEPS):
        seed_torch(step)
        model.train_on_batch(*batch(step))
        average.update()
        if step % 7 == 0:
            skipping(model, average)
        tell()
        if (step + 1) % EVERY == 0:
            manager.save()
    return digest(model, average)


def saved(place: Path, tell: Tell, end: str = ".safetensors") -> str:
    """A loop of one's own with polyak.save for weights and averages, and a folder that takes its name when complete."""
    model = network()
    average, slow = polyak.track(model, RULE), polyak.track(model, SLOW, compensated=True)
    kept = sorted(place.glob("step-*"))
    held = {"model": model, "average": average, "slow": slow}
    if kept:
        for name, live in held.items():
            polyak.transfer(kept[-1] / f"{name}{end}", live)
        model.optimizer.load_own_variables(dict(np.load(kept[-1] / "optimizer.npz")))
    for step in range(int(model.optimizer.iterations), STEPS):
        seed_torch(step)
        model.train_on_batch(*batch(step))
        average.update()
        slow.update()
        if step % 7 == 0:
            skipping(model, average, slow)
        tell()
        if (step + 1) % EVERY == 0:
            _save(held, place / f"step-{step + 1:06}", end)
    return digest(model, average, slow)


def _save(held: dict[str, Any], folder: Path, end: str) -> None:
    beside = Path(tempfile.mkdtemp(dir=folder.parent))
    for name, live in held.items():
        polyak.save(live, beside / f"{name}{end}")
    store: dict[str, Any] = {}
    held["model"].optimizer.save_own_variables(store)
    np.savez(beside / "optimizer.npz", **{key: np.asarray(keras.ops.convert_to_numpy(v)) for key, v in store.items()})
    beside.rename(folder)


FORMATS = (".npz", ".pt", ".orbax", ".weights.h5", ".safetensors.index.json")
VARIANTS: dict[str, Callable[[Path, Tell], str]] = {
    "fit-steps": by_steps,
    "fit-epochs": by_epochs,
    "fit-several": several,
    "saved": saved,
    "managed": managed,
    **{f"saved{end}": partial(saved, end=end) for end in FORMATS},
}

# --- processes -------------------------------------------------------------------------------------------------------


class Run:
    """A forked process that trains; ``steps`` has a byte for each step, ``answer`` the digest at the end."""

    def __init__(self, variant: str, place: Path) -> None:
        self.steps, told = os.pipe()
        self.answer, answered = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            _in_child(variant, place, told, answered)
        os.close(told)
        os.close(answered)

    def kill_after(self, steps: int, delay: float, by: signal.Signals) -> bool:
        """Send a signal so many steps and seconds from now; False if the run ended before."""
        for _ in range(steps):
            if not os.read(self.steps, 1):
                break
        time.sleep(delay)
        os.kill(self.pid, by)
        return self.ended() is None

    def ended(self) -> str | None:
        """The digest; None where the process was killed. Raises RuntimeError for one that failed."""
        while os.read(self.steps, 4096):
            pass
        with os.fdopen(self.answer) as answer:
            text = answer.read()
        os.close(self.steps)
        _, status = os.waitpid(self.pid, 0)
        if os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == INTERRUPTED:
            return None
        if os.WEXITSTATUS(status):
            raise RuntimeError(f"a run failed with status {os.WEXITSTATUS(status)}; its error stands above")
        return text


def _in_child(variant: str, place: Path, told: int, answered: int) -> None:
    status = 1
    try:
        text = VARIANTS[variant](place, lambda: os.write(told, b"."))
        os.write(answered, text.encode())
        status = 0
    except KeyboardInterrupt:
        status = INTERRUPTED
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(status)


def campaign(variant: str, count: int, seed: int) -> dict[str, Any]:
    """So many kills, in runs that are killed up to three times each; how many ends equal the undisturbed one."""
    draw = random.Random(seed)
    kills, ends = 0, []
    expected, seconds_a_step = _undisturbed(variant)
    while kills < count:
        with tempfile.TemporaryDirectory() as folder:
            killed, end = _disturbed(variant, Path(folder), min(MOST_KILLS_A_RUN, count - kills), draw, seconds_a_step)
        kills += killed
        ends.append(end)
    equal = sum(end == expected for end in ends)
    return {"variant": variant, "backend": keras.backend.backend(), "kills": kills, "runs": len(ends), "equal": equal}


def _undisturbed(variant: str) -> tuple[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        run = Run(variant, Path(folder))
        os.read(run.steps, 1)
        began = time.monotonic()
        end = run.ended()
        assert end is not None
        return end, (time.monotonic() - began) / STEPS


def _disturbed(
    variant: str, place: Path, most: int, draw: random.Random, seconds_a_step: float
) -> tuple[int, str | None]:
    killed = 0
    for _ in range(most):
        run = Run(variant, place)
        by = draw.choice(SIGNALS)
        killed += run.kill_after(draw.randint(1, STEPS // 2), draw.uniform(0.0, 2.0 * seconds_a_step), by)
    return killed, Run(variant, place).ended()


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("variant", choices=VARIANTS)
    arguments.add_argument("--count", type=int, default=30)
    arguments.add_argument("--seed", type=int, default=0)
    asked = arguments.parse_args()
    found = campaign(asked.variant, asked.count, asked.seed)
    print(json.dumps(found))
    return 0 if found["equal"] == found["runs"] else 1


if __name__ == "__main__":
    sys.exit(main())
