"""The real tools, each as a function: a trajectory in, the average after each step out. Imported when called."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

Path_ = np.ndarray
# values: (steps + 1, size), the initial weights first; the answer: (steps, size)
Tool = Callable[[Path_, float], Path_]


def walk(dtype: str = "float32", steps: int = 500, seed: int = 7) -> Path_:
    """A random walk with drift: one weight may go far while another stays."""
    rng = np.random.default_rng(seed)
    return np.cumsum(rng.normal(0.02, 0.1, (steps + 1, 5)), axis=0).astype(dtype)


def module_file(package: str, *path: str) -> Any:
    """One file of a package as a module, without its package's other needs."""
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.submodule_search_locations
    file = Path(spec.submodule_search_locations[0]).joinpath(*path)
    name = f"peer_{package}_{file.stem}"
    made = importlib.util.spec_from_file_location(name, file)
    assert made is not None
    assert made.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(made)
    made.loader.exec_module(module)
    return module


# --- TensorFlow ---


def keras_use_ema(values: Path_, decay: float) -> Path_:
    import keras

    variable = keras.Variable(values[0])
    optimizer = keras.optimizers.SGD(0.0, use_ema=True, ema_momentum=decay)
    optimizer.build([variable])
    found = []
    for value in values[1:]:
        variable.assign(value)
        optimizer.apply([keras.ops.zeros_like(variable)], [variable])
        found.append(keras.ops.convert_to_numpy(optimizer._model_variables_moving_average[0].value))
    return np.stack(found)


def tf_train(values: Path_, decay: float, counted: bool = False) -> Path_:
    import tensorflow as tf

    variable, count = tf.Variable(values[0]), tf.Variable(0, dtype=tf.int64)
    tool = tf.train.ExponentialMovingAverage(decay, num_updates=count if counted else None)
    tool.apply([variable])  # its first call makes the average, of the initial weights
    found = []
    for n, value in enumerate(values[1:], 1):
        count.assign(n)
        variable.assign(value)
        tool.apply([variable])
        found.append(tool.average(variable).numpy())
    return np.stack(found)


def tf_train_counted(values: Path_, decay: float) -> Path_:
    return tf_train(values, decay, counted=True)


def tf_models(values: Path_, decay: float, dynamic: bool = False) -> Path_:
    import tensorflow as tf
    import tf_keras

    tool = module_file("official", "modeling", "optimization", "ema_optimizer.py").ExponentialMovingAverage
    model = tf_keras.Sequential([tf_keras.layers.Dense(values.shape[1], use_bias=False, dtype=values.dtype.name)])
    model.build((None, 1))
    (variable,) = model.trainable_variables
    variable.assign(values[:1])
    inner = tf_keras.optimizers.legacy.SGD(0.0)
    optimizer = tool(inner, average_decay=decay, dynamic_decay=dynamic)
    optimizer.shadow_copy(model)
    found = []
    for value in values[1:]:
        variable.assign(value[None])
        optimizer.apply_gradients([(tf.zeros_like(variable), variable)])
        found.append(optimizer.get_slot(variable, "average").numpy()[0])
    return np.stack(found)


def tf_models_dynamic(values: Path_, decay: float) -> Path_:
    return tf_models(values, decay, dynamic=True)


# --- PyTorch ---


def torch_steps(values: Path_) -> tuple[Any, Iterator[None]]:
    """A module with one parameter, and an iterator that walks it along the trajectory."""
    import torch

    module = torch.nn.Module()
    module.w = torch.nn.Parameter(tensor(values[0]))

    def going() -> Iterator[None]:
        for value in values[1:]:
            module.w.data.copy_(tensor(value))
            yield

    return module, going()


def tensor(value: np.ndarray) -> Any:
    """PyTorch takes no bfloat16 of NumPy's, and gives none."""
    import torch

    narrow = value.dtype.name == "bfloat16"
    return torch.tensor(value.astype("float32")).bfloat16() if narrow else torch.tensor(value)


def array(held: Any) -> np.ndarray:
    """A copy of what a tensor holds; bfloat16 as float32."""
    import torch

    found: np.ndarray = (held.detach().float() if held.dtype == torch.bfloat16 else held.detach()).numpy().copy()
    return found


def torch_averaged_model(values: Path_, decay: float) -> Path_:
    from torch.optim import swa_utils

    module, steps = torch_steps(values)
    average = swa_utils.AveragedModel(module, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(decay))
    return np.stack([(average.update_parameters(module), array(average.module.w))[1] for _ in steps])


def torch_swa(values: Path_, decay: float) -> Path_:
    """The equal mean, beside the schedule that PyTorch gives it."""
    import torch
    from torch.optim import swa_utils

    module, steps = torch_steps(values)
    average, optimizer = swa_utils.AveragedModel(module), torch.optim.SGD([module.w], lr=0.0)
    schedule = swa_utils.SWALR(optimizer, swa_lr=0.05)
    found = []
    for _ in steps:
        optimizer.step()
        schedule.step()
        average.update_parameters(module)
        found.append(array(average.module.w))
    return np.stack(found)


def torch_ema(values: Path_, decay: float, counted: bool = False) -> Path_:
    from torch_ema import ExponentialMovingAverage

    module, steps = torch_steps(values)
    tool = ExponentialMovingAverage([module.w], decay, use_num_updates=counted)
    return np.stack([(tool.update(), array(tool.shadow_params[0]))[1] for _ in steps])


def torch_ema_counted(values: Path_, decay: float) -> Path_:
    return torch_ema(values, decay, counted=True)


def ema_pytorch(values: Path_, decay: float, every: int = 1, least: float = 0.0) -> Path_:
    from ema_pytorch import EMA

    module, steps = torch_steps(values)
    warm_up = {"inv_gamma": 1.0, "power": 2 / 3, "min_value": least}
    tool = EMA(module, beta=decay, update_after_step=0, update_every=every, **warm_up)
    return np.stack([(tool.update(), array(tool.ema_model.w))[1] for _ in steps])


def ema_pytorch_constant(values: Path_, decay: float) -> Path_:
    return ema_pytorch(values, decay, least=decay)


def timm_v2(values: Path_, decay: float) -> Path_:
    tool = module_file("timm", "utils", "model_ema.py").ModelEmaV2
    module, steps = torch_steps(values)
    average = tool(module, decay=decay)
    return np.stack([(average.update(module), array(average.module.w))[1] for _ in steps])


def timm_warmup(values: Path_, decay: float) -> Path_:
    tool = module_file("timm", "utils", "model_ema.py").ModelEmaV3
    module, steps = torch_steps(values)
    average = tool(module, decay=decay, use_warmup=True, warmup_gamma=1.0, warmup_power=2 / 3)
    found = []
    for n, _ in enumerate(steps, 1):
        average.update(module, step=n)
        found.append(array(average.module.w))
    return np.stack(found)


def diffusers(values: Path_, decay: float, warmup: bool = False) -> Path_:
    from diffusers.training_utils import EMAModel

    module, steps = torch_steps(values)
    tool = EMAModel([module.w], decay=decay, use_ema_warmup=warmup)
    return np.stack([(tool.step([module.w]), array(tool.shadow_params[0]))[1] for _ in steps])


def diffusers_warmup(values: Path_, decay: float) -> Path_:
    return diffusers(values, decay, warmup=True)


# --- JAX ---


def optax_ema(values: Path_, decay: float, debias: bool = True) -> Path_:
    import jax.numpy as jnp
    import optax

    tool = optax.ema(decay, debias=debias)
    state, found = tool.init(jnp.asarray(values[0])), []
    for value in values[1:]:
        average, state = tool.update(jnp.asarray(value), state)
        found.append(np.asarray(average))
    return np.stack(found)


def optax_biased(values: Path_, decay: float) -> Path_:
    return optax_ema(values, decay, debias=False)


def optax_incremental(values: Path_, decay: float) -> Path_:
    import jax.numpy as jnp
    import optax

    average, found = jnp.asarray(values[0]), []
    for value in values[1:]:
        average = optax.incremental_update(jnp.asarray(value), average, 1 - decay)
        found.append(np.asarray(average))
    return np.stack(found)


def flax_nnx(values: Path_, decay: float) -> Path_:
    import jax.numpy as jnp
    from flax import nnx

    class Model(nnx.Module):
        def __init__(self) -> None:
            self.w = nnx.Param(jnp.asarray(values[0]))

    model, found = Model(), []
    tool = nnx.EMA(model, decay=decay)
    for value in values[1:]:
        model.w[...] = jnp.asarray(value)
        tool.update(model)
        found.append(np.asarray(tool.apply_to(model).w[...]))
    return np.stack(found)
