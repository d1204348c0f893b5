"""Writes the golden files in ``jax/`` with the real tools. Run it by hand in an environment that has them.

Orbax, Flax, Haiku, optax, Keras on JAX, and PyTorch's distributed checkpoints. Beside each file or directory ``NAME``
lies ``NAME.npz``: what the tool itself holds, under ``raw/...`` and ``average/...`` (or, for those without roles,
under the paths in the tree). Extended dtypes are stored as unsigned integers of the same width, under ``NAME|dtype``.
"""

from __future__ import annotations

import os

os.environ |= {"JAX_PLATFORMS": "cpu", "KERAS_BACKEND": "jax", "TF_CPP_MIN_LOG_LEVEL": "3"}

import importlib.metadata
import json
import pathlib
import shutil
import tempfile
from collections.abc import Mapping

import flax
import flax.serialization
import haiku
import jax
import jax.numpy as jnp
import keras
import numpy as np
import optax
import orbax.checkpoint as ocp
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing
from flax import linen, nnx
from flax.training.train_state import TrainState

HERE = pathlib.Path(__file__).resolve().parent / "jax"
TOOLS = ("jax", "flax", "optax", "orbax-checkpoint", "tensorstore", "dm-haiku", "keras", "torch", "numpy")
COMMITTED = "commit_success.txt"


def expect(name: str, arrays: Mapping[str, object]) -> None:
    """What the tool holds, beside its file."""
    stored = {}
    for path, value in arrays.items():
        array = np.asarray(value)
        known = array.dtype.isbuiltin != 2
        stored[path if known else f"{path}|{array.dtype.name}"] = (
            array if known else array.view(f"u{array.dtype.itemsize}")
        )
    np.savez_compressed(HERE / f"{name}.npz", **stored)


def flat(tree: object, role: str = "") -> dict[str, object]:
    """The leaves of a tree by path."""
    pairs = jax.tree_util.tree_flatten_with_path(tree)[0]
    names = ["/".join(str(getattr(k, "key", getattr(k, "idx", getattr(k, "name", k)))) for k in p) for p, _ in pairs]
    return {f"{role}/{n}" if role else n: leaf for n, (_, leaf) in zip(names, pairs, strict=True)}


def place(name: str) -> pathlib.Path:
    path = HERE / name
    shutil.rmtree(path, ignore_errors=True)
    return path


def anonymous(path: pathlib.Path) -> None:
    """Without the name of the folder that it was made in."""
    for note in path.rglob(COMMITTED):
        note.write_text("Checkpoint commit was successful")


def save(name: str, tree: object) -> None:
    path = place(name)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path, tree)
    anonymous(path)


def kinds() -> dict[str, object]:
    """Every dtype that Orbax stores, scalars, a list, and names with dots and slashes."""
    names = (
        "bool", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float16", "bfloat16",
        "float32", "float64", "float8_e4m3fn", "float8_e5m2", "complex64", "complex128",
    )  # fmt: skip
    made: dict[str, object] = {n: np.arange(6).reshape(2, 3).astype(n) for n in names}
    made |= {"scalar": np.float32(0.1), "big": np.int64(2**62 + 1), "on_device": jnp.ones((2, 2), jnp.bfloat16)}
    return {"kinds": made, "list": [np.float32([1]), np.float32([2, 3])], "a/b.c": {"w": np.float32([[0.5]])}}


def make_orbax() -> None:
    tree = kinds()
    save("kinds", tree)
    expect("kinds", flat(tree))
    for name, ocdbt, zarr3 in (("plain_zarr", False, False), ("plain_zarr3", False, True), ("ocdbt_zarr3", True, True)):
        few = {"w": np.arange(12, dtype=np.float32).reshape(3, 4), "b": jnp.ones(4, jnp.bfloat16), "step": 7}
        path = place(name)
        handler = ocp.PyTreeCheckpointHandler(use_ocdbt=ocdbt, use_zarr3=zarr3)
        with ocp.Checkpointer(handler) as checkpointer:
            checkpointer.save(path, {**few, "text": "hello", "none": None, "empty": {}})
        anonymous(path)
        expect(name, few)
    steps = place("steps")
    with ocp.CheckpointManager(steps, options=ocp.CheckpointManagerOptions(max_to_keep=2)) as manager:
        for step in (9, 10):
            manager.save(step, args=ocp.args.Composite(state=ocp.args.StandardSave({"w": np.float32([step])})))
    anonymous(steps)
    expect("steps", {"w": np.float32([10])})


class Net(linen.Module):
    """Small, with a BatchNorm, so that there are statistics."""

    @linen.compact
    def __call__(self, x: jax.Array, train: bool = True) -> jax.Array:
        x = linen.BatchNorm(use_running_average=not train)(linen.Dense(3)(x))
        return linen.Dense(2)(x)


class Averaged(TrainState):
    """As users write it."""

    batch_stats: object
    ema_params: object


def trained() -> Averaged:
    net, x = Net(), jax.random.normal(jax.random.key(1), (4, 2))
    variables = net.init(jax.random.key(0), x)
    params, stats = variables["params"], variables["batch_stats"]
    tx = optax.chain(optax.ema(0.9), optax.adam(0.1))
    state = Averaged.create(apply_fn=net.apply, params=params, tx=tx, batch_stats=stats, ema_params=params)
    for _ in range(3):

        def loss(params: object, stats: object = state.batch_stats) -> tuple[jax.Array, object]:
            y, changed = net.apply({"params": params, "batch_stats": stats}, x, mutable=["batch_stats"])
            return (y**2).sum(), changed["batch_stats"]

        grads, stats = jax.grad(loss, has_aux=True)(state.params)
        state = state.apply_gradients(grads=grads, batch_stats=stats)
        ema = optax.incremental_update(state.params, state.ema_params, 0.1)
        state = state.replace(ema_params=ema)
    return state


def make_flax() -> None:
    state = trained()
    wanted = {
        **flat({**state.params}, "raw"), **flat({**state.batch_stats}, "raw"),
        **flat({**state.ema_params}, "average"), **flat({**state.batch_stats}, "average"),
    }  # fmt: skip
    save("train_state", state)
    expect("train_state", wanted)
    (HERE / "train_state.msgpack").write_bytes(flax.serialization.to_bytes(state))
    expect("train_state.msgpack", wanted)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    (HERE / "variables.msgpack").write_bytes(flax.serialization.to_bytes(variables))
    expect("variables.msgpack", {**flat({**state.params}, "raw"), **flat({**state.batch_stats}, "raw")})
    tree = kinds() | {"empty": np.zeros((0, 3), np.int64), "number": np.float64(0.1)}
    plain = {"int": -3, "float": 0.5, "yes": True, "none": None, "complex": 1 + 2j, "text": "hello"}
    (HERE / "kinds.msgpack").write_bytes(flax.serialization.msgpack_serialize({**tree, "plain": plain}))
    expect("kinds.msgpack", flat(tree))
    most, flax.serialization.MAX_CHUNK_SIZE = flax.serialization.MAX_CHUNK_SIZE, 16
    whole = {"a": {"w": np.arange(15, dtype=np.float32).reshape(3, 5)}}
    (HERE / "chunked.msgpack").write_bytes(flax.serialization.msgpack_serialize(whole))
    flax.serialization.MAX_CHUNK_SIZE = most
    expect("chunked.msgpack", {"a/w": np.arange(15, dtype=np.float32).reshape(3, 5)})
    optax_state(state)
    nnx_state()


def optax_state(state: Averaged) -> None:
    """``optax.ema`` of the weights themselves, outside of an optimizer. The average is stored biased."""
    ema = optax.ema(0.9)
    held = ema.init(state.params)
    for _ in range(3):
        _, held = ema.update(state.params, held)
    save("optax", {"params": state.params, "ema_state": held})
    expect("optax", {**flat({**state.params}, "raw"), **flat({**held.ema}, "average")})


def nnx_state() -> None:
    model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    ema = nnx.EMA(model, decay=0.9)
    model.kernel[...] = model.kernel + 1.0
    ema.update(model)
    save("nnx", {"model": nnx.state(model), "ema": nnx.state(ema)})
    raw = {"raw/kernel": model.kernel[...], "raw/bias": model.bias[...]}
    expect("nnx", {**raw, "average/kernel": ema.params["kernel"][...], "average/bias": ema.params["bias"][...]})


def make_haiku() -> None:
    net = haiku.without_apply_rng(haiku.transform(lambda x: haiku.nets.MLP([3, 2])(x)))
    params = net.init(jax.random.PRNGKey(0), jnp.ones((1, 2)))
    ema = haiku.transform_with_state(lambda tree: haiku.EMAParamsTree(0.9)(tree))
    _, state = ema.init(None, params)
    for _ in range(3):
        params = jax.tree.map(lambda w: w + 1.0, params)
        average, state = ema.apply(None, state, None, params)
    save("haiku", {"params": params, "ema_state": state})
    expect("haiku", {**flat(params, "raw"), **flat(average, "average")})


def make_keras() -> None:
    keras.utils.set_random_seed(0)
    layers = [keras.Input((3,)), keras.layers.Dense(4), keras.layers.BatchNormalization(), keras.layers.Dense(2)]
    model = keras.Sequential(layers, name="net")
    model.compile(keras.optimizers.Adam(0.1, use_ema=True, ema_momentum=0.9), "mse")
    held: dict[str, object] = {}

    class Remember(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: object = None) -> None:
            state = model.get_state_tree(value_format="numpy_array")
            held.update(flat({**state["trainable_variables"]["net"]}, "raw"))
            held.update(flat({**state["non_trainable_variables"]["net"]}, "raw"))
            held.update(flat({**state["non_trainable_variables"]["net"]}, "average"))
            for variable in model.trainable_variables:
                name = variable.path.replace("/", "_") + "_average"
                average = state["optimizer_variables"]["adam"][name]
                held[f"average/{variable.path.removeprefix('net/')}"] = average

    path = place("keras")
    saved = keras.callbacks.OrbaxCheckpoint(str(path), monitor="loss", max_to_keep=1, save_on_background=False)
    rng = np.random.default_rng(0)
    data = rng.normal(size=(8, 3)).astype("f4"), rng.normal(size=(8, 2)).astype("f4")
    model.fit(*data, epochs=1, batch_size=4, callbacks=[saved, Remember()], verbose=0)
    anonymous(path)
    expect("keras", held)


def make_dcp() -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    follow = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
    follow.update_parameters(model)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    follow.update_parameters(model)
    state = {"model": model.state_dict(), "ema": follow.state_dict(), "optim": optimizer.state_dict(), "step": 3}
    extras = {"bfloat16": torch.ones(3, dtype=torch.bfloat16), "empty": torch.zeros(0, 3), "int64": torch.tensor(2**40)}
    place("dcp")
    dcp.save({**state, "extras": extras, "note": "hello"}, checkpoint_id="dcp", no_dist=True)
    wanted = {f"raw/{n}": t.numpy() for n, t in model.state_dict().items()}
    wanted |= {f"average/{n}": t.detach().numpy() for n, t in follow.module.state_dict().items()}
    expect("dcp", wanted)
    place("dcp_sharded")
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(_shard, (f"{folder}/meeting",), nprocs=2)
    whole = np.arange(35, dtype=np.float32).reshape(7, 5)
    expect("dcp_sharded", {"rows": whole, "columns": whole, "whole": whole})


def _shard(rank: int, meeting: str) -> None:
    """One of two processes, each of which writes its part."""
    os.chdir(HERE)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (2,))
    whole = torch.arange(35, dtype=torch.float32).reshape(7, 5)
    shard = torch.distributed.tensor.Shard
    state = {
        "rows": torch.distributed.tensor.distribute_tensor(whole, mesh, [shard(0)]),
        "columns": torch.distributed.tensor.distribute_tensor(whole, mesh, [shard(1)]),
        "whole": whole,
    }
    dcp.save(state, checkpoint_id="dcp_sharded")
    dist.destroy_process_group()


def main() -> None:
    HERE.mkdir(exist_ok=True)
    os.chdir(HERE)
    for make in (make_orbax, make_flax, make_haiku, make_keras, make_dcp):
        make()
    versions = {tool: importlib.metadata.version(tool) for tool in TOOLS}
    (HERE / "versions.json").write_text(json.dumps(versions, indent=1) + "\n")


if __name__ == "__main__":
    main()
