"""Write the small TensorFlow files of ``tensorflow/`` with the expected values: python tests/golden/make_tensorflow.py.

``NAME.npz`` holds what TensorFlow's own reader finds under each key; ``NAME.sets.npz`` what the live variables held,
as ``role:path``. Dtypes that NumPy's format does not know are stored as their bits under ``name|dtype``.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

os.environ["KERAS_BACKEND"] = "tensorflow"

import keras
import numpy as np
import tensorflow as tf
import tf_keras

HERE = Path(__file__).parent / "tensorflow"
X = np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3)
tf1 = tf.compat.v1
Sets = Mapping[str, Any]


def storable(values: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Arrays as NumPy's format can hold them."""
    arrays = {name: np.asarray(value) for name, value in values.items()}
    numbers = {n: a for n, a in arrays.items() if a.dtype.kind in "biufcV"}
    return {n if a.dtype.isbuiltin == 1 else f"{n}|{a.dtype.name}": _bits(a) for n, a in numbers.items()}


def _bits(a: np.ndarray) -> np.ndarray:
    return a if a.dtype.isbuiltin == 1 else a.view(f"u{a.itemsize}")


def expect(name: str, prefix: str, **sets: Sets) -> None:
    """Keep what TensorFlow reads, and the sets of weights that polyak has to find."""
    reader = tf.train.load_checkpoint(prefix)
    np.savez_compressed(
        f"{name}.npz", **storable({k: reader.get_tensor(k) for k in reader.get_variable_to_shape_map()})
    )
    if sets:
        flat = {f"{role}:{path}": value for role, values in sets.items() for path, value in values.items()}
        np.savez_compressed(f"{name}.sets.npz", **storable(flat))


def graph_of_tf1() -> tuple[dict[str, Any], dict[str, Any]]:
    """Variables of a small net after three steps of momentum, and their averages, by name."""
    kernel = tf1.get_variable("net/kernel", (3, 2), initializer=tf1.initializers.ones())
    wide = tf1.get_variable(
        "net/embedding", (5, 2), partitioner=tf1.fixed_size_partitioner(2), initializer=tf1.initializers.ones()
    )
    step = tf1.train.get_or_create_global_step()
    loss = tf.reduce_sum(tf.square(X @ kernel - 2.0)) + tf.reduce_sum(tf.square(tf.concat(list(wide), 0) - 3.0))
    trained = tf1.train.MomentumOptimizer(0.01, 0.9).minimize(loss, global_step=step)
    ema = tf1.train.ExponentialMovingAverage(0.5)
    with tf.control_dependencies([trained]):
        averaged = ema.apply([kernel, *wide])
    moving = tf1.get_variable("net/moving_mean", (2,), initializer=tf1.initializers.constant(0.25), trainable=False)
    raw = {"net/kernel": kernel, "net/embedding": tf.concat(list(wide), 0)}
    average = {"net/kernel": ema.average(kernel), "net/embedding": tf.concat([ema.average(w) for w in wide], 0)}
    return {"train": averaged, "step": step, "moving": moving}, {"raw": raw, "average": average}


def tf1_saver(name: str, version: int) -> None:
    """The Saver of TensorFlow 1, with momentum, averages, partitions and a step counter."""
    with tf.Graph().as_default(), tf1.Session() as session:
        ops, sets = graph_of_tf1()
        session.run(tf1.global_variables_initializer())
        for _ in range(3):
            session.run(ops["train"])
        saver = tf1.train.Saver(write_version=version)
        saver.save(session, name, write_meta_graph=False, write_state=False)
        # TensorFlow reads no partitioned variables from V1 files; the V2 file of the same steps says what they hold.
        expect(name, "tf1_v2", **session.run(sets))


def kinds() -> None:
    """A tensor of each dtype, scalars and empty ones."""
    integers = [f"{sign}int{width}" for sign in ("", "u") for width in (8, 16, 32, 64)]
    dtypes = ["float16", "float32", "float64", "bfloat16", "bool", "complex64", "complex128", *integers]
    held = {f"kind/{d}": tf.cast([[0, 1], [2, 3]], d) for d in dtypes}
    held |= {f"kind/{d}": tf.cast([0.5, 1.0], d) for d in ("float8_e5m2", "float8_e4m3fn")}
    held |= {
        "scalar": tf.constant(-0.0),
        "empty": tf.zeros((0, 3)),
        "text": tf.constant("a word"),
        "none": tf.zeros(()),
    }
    tf.raw_ops.SaveV2(
        prefix="kinds", tensor_names=list(held), shape_and_slices=[""] * len(held), tensors=list(held.values())
    )
    expect("kinds", "kinds")


class Averaged(tf_keras.optimizers.legacy.Adam):  # type: ignore[misc]
    """Adam that keeps a slot "average" beside each variable, as TensorFlow Addons and TF Models do."""

    def _create_slots(self, var_list: Any) -> None:
        super()._create_slots(var_list)
        for variable in var_list:
            self.add_slot(variable, "average", initializer=variable.read_value())

    def _resource_apply_dense(self, grad: Any, var: Any, apply_state: Any = None) -> Any:
        done = super()._resource_apply_dense(grad, var, apply_state)
        self.get_slot(var, "average").assign(0.5 * (self.get_slot(var, "average") + var))
        return done


class Net(tf.Module):
    """Weights in attributes, in a list and in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.head = tf.Variable(np.linspace(0, 1, 6, dtype=np.float32).reshape(3, 2))
        self.blocks = [tf.Variable(np.float32([1, 2])), tf.Variable(np.float32([3, 4]))]
        self.named = {"scale": tf.Variable(np.float32(0.5))}

    def paths(self) -> dict[str, Any]:
        blocks = {f"blocks/{i}": block for i, block in enumerate(self.blocks)}
        return {"head": self.head, **blocks, "named/scale": self.named["scale"]}


def stepped(net: Net, optimizer: Any) -> None:
    variables = list(net.paths().values())
    optimizer.apply_gradients([(tf.ones_like(v) * (i + 1), v) for i, v in enumerate(variables)])


def numbers(variables: Mapping[str, Any], root: str = "") -> dict[str, np.ndarray]:
    return {f"{root}{path}": v.numpy() for path, v in variables.items()}


def module() -> None:
    """``tf.train.Checkpoint`` of a module and of an optimizer with slots."""
    net, optimizer = Net(), Averaged(0.1)
    for _ in range(3):
        stepped(net, optimizer)
    prefix = tf.train.Checkpoint(net=net, optimizer=optimizer).write("module")
    averages = {p: optimizer.get_slot(v, "average") for p, v in net.paths().items()}
    expect("module", prefix, raw=numbers(net.paths(), "net/"), average=numbers(averages, "net/"))


def trained(framework: Any) -> Any:
    """A small model of Keras 2 or 3 after some steps with ``use_ema``."""
    layers = framework.layers
    model = framework.Sequential(
        [framework.Input((3,)), layers.Dense(2, name="first"), layers.BatchNormalization(name="norm"), layers.Dense(2)]
    )
    model.compile(framework.optimizers.Adam(0.1, use_ema=True, ema_momentum=0.5), "mse")
    for _ in range(3):
        model.train_on_batch(X, X[:, :2])
    return model


def keras_model(name: str, framework: Any) -> None:
    framework.utils.set_random_seed(0)
    model = trained(framework)
    expect(name, tf.train.Checkpoint(model=model, optimizer=model.optimizer).write(name))


def saved_model() -> None:
    net = Net()
    stepped(net, tf_keras.optimizers.legacy.SGD(0.1))
    tf.saved_model.save(net, "saved_model")
    (Path("saved_model") / "fingerprint.pb").unlink()
    shutil.rmtree(Path("saved_model") / "assets", ignore_errors=True)
    expect("saved_model", "saved_model/variables/variables", raw=numbers(net.paths()))


def managed() -> None:
    """A directory of a CheckpointManager, with one older checkpoint beside the latest."""
    net, optimizer = Net(), tf_keras.optimizers.legacy.SGD(0.1)
    manager = tf.train.CheckpointManager(tf.train.Checkpoint(net=net), "managed", max_to_keep=2)
    for number in (900, 1000):
        stepped(net, optimizer)
        manager.save(number)
    expect("managed", "managed/ckpt-1000", raw=numbers(net.paths(), "net/"))


MAKERS: tuple[Callable[[], None], ...] = (
    lambda: tf1_saver("tf1_v2", tf1.train.SaverDef.V2),
    lambda: tf1_saver("tf1_v1", tf1.train.SaverDef.V1),
    kinds,
    module,
    lambda: keras_model("keras3", keras),
    lambda: keras_model("keras2", tf_keras),
    saved_model,
    managed,
)


def main() -> None:
    HERE.mkdir(exist_ok=True)
    os.chdir(HERE)  # no file may hold the directory that it was made in
    for make in MAKERS:
        make()
    versions = {m.__name__: m.__version__ for m in (tf, keras, tf_keras, np)}
    (HERE / "versions.json").write_text(json.dumps(versions, indent=1) + "\n")


if __name__ == "__main__":
    main()
