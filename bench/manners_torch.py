"""Ways to update averages of a Keras layer's weights on PyTorch. The tools follow a module of the same parameters."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.optim import swa_utils

from bench.manners import DECAY, together, use_ema
from bench.turns import Manner


def manners(layer: Any, averages: int, few: bool) -> dict[str, Callable[[], Manner]]:
    """By tool and mode, a function that makes the manner. A tool that is not installed raises ImportError."""
    del few
    made = {"polyak eager": lambda: _done(together(layer, averages).update)}
    if averages > 1:
        return made
    module = torch.nn.Module()
    module.held = torch.nn.ParameterList([v.value for v in layer.trainable_variables])
    tools = {
        "loop": lambda: _loop(module),
        "use_ema": lambda: _without_gradients(use_ema(layer)[1]),
        "AveragedModel": lambda: _averaged_model(module),
        "ema-pytorch": lambda: _ema_pytorch(module),
        "torch-ema": lambda: _torch_ema(module),
        "timm": lambda: _timm(module),
    }
    return made | {f"{name} eager": lambda make=make: _done(make()) for name, make in tools.items()}


def _done(update: Manner) -> Manner:
    """On an accelerator a call only asks for the work."""
    if not torch.cuda.is_available():
        return update
    return lambda: (update(), torch.cuda.synchronize())


def _without_gradients(update: Manner) -> Manner:
    return torch.no_grad()(update)


def _loop(module: Any) -> Manner:
    """The answer that circulates."""
    shadows = [p.detach().clone() for p in module.held]

    def update() -> None:
        for shadow, p in zip(shadows, module.held, strict=True):
            shadow.copy_(DECAY * shadow + (1 - DECAY) * p)

    return _without_gradients(update)


def _averaged_model(module: Any) -> Manner:
    tool = swa_utils.AveragedModel(module, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(DECAY))
    return lambda: tool.update_parameters(module)


def _ema_pytorch(module: Any) -> Manner:
    from ema_pytorch import EMA

    tool = EMA(module, beta=DECAY, update_after_step=0, update_every=1, use_foreach=True)
    return tool.update


def _torch_ema(module: Any) -> Manner:
    from torch_ema import ExponentialMovingAverage

    return ExponentialMovingAverage(module.parameters(), DECAY, use_num_updates=False).update


def _timm(module: Any) -> Manner:
    """One file of the package: the rest asks for torchvision."""
    found = importlib.util.find_spec("timm")
    if found is None or not found.submodule_search_locations:
        raise ImportError("No module named 'timm'")
    path = Path(found.submodule_search_locations[0], "utils", "model_ema.py")
    described = importlib.util.spec_from_file_location("bench_timm", path)
    made = importlib.util.module_from_spec(described)
    described.loader.exec_module(made)
    tool = made.ModelEmaV3(module, decay=DECAY)
    return lambda: tool.update(module)
