"""Every convention of polyak beside the tool that has it, step by step; and what tools get wrong, measured."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from tests.peers import tools
from tests.peers.tools import Tool, walk

from polyak.averaging.kernel import lerp
from polyak.averaging.parse import parse

Row = Callable[..., None]
DECAYS = (0.5, 0.9, 0.99, 0.999, 0.9999)
EPSILON = {"float32": 2.0**-24, "float64": 2.0**-53}

# tool, the package it needs, its rule; "x64": it computes in float64 when it is given that.
TOOLS: list[tuple[str, str, Tool, str, bool]] = [
    ("Keras use_ema", "keras", tools.keras_use_ema, "ema:{d},start=copy", False),
    ("tf.train.EMA", "tensorflow", tools.tf_train, "ema:{d},start=initial", False),
    ("tf.train.EMA num_updates", "tensorflow", tools.tf_train_counted, "tf:{d}", False),
    ("torch AveragedModel", "torch", tools.torch_averaged_model, "ema:{d},start=copy", True),
    ("torch AveragedModel SWALR", "torch", tools.torch_swa, "mean", True),
    ("optax.ema", "optax", tools.optax_ema, "ema:{d},start=debiased", False),
    ("optax.ema debias=False", "optax", tools.optax_biased, "ema:{d},start=zero", False),
    ("optax.incremental_update", "optax", tools.optax_incremental, "ema:{d},start=initial", False),
    ("flax nnx.EMA", "flax", tools.flax_nnx, "ema:{d},start=initial", False),
    ("torch-ema", "torch_ema", tools.torch_ema, "ema:{d},start=initial", True),
    ("torch-ema num_updates", "torch_ema", tools.torch_ema_counted, "tf:{d}", True),
    ("ema-pytorch", "ema_pytorch", tools.ema_pytorch, "inverse-gamma:{d}", False),
    ("ema-pytorch, no warm-up", "ema_pytorch", tools.ema_pytorch_constant, "ema:{d},start=copy", False),
    ("timm ModelEmaV2", "timm", tools.timm_v2, "ema:{d},start=initial", True),
    ("timm ModelEmaV3 use_warmup", "timm", tools.timm_warmup, "inverse-gamma:{d}", True),
    ("diffusers EMAModel", "diffusers", tools.diffusers, "diffusers:{d}", True),
    ("diffusers use_ema_warmup", "diffusers", tools.diffusers_warmup, "inverse-gamma:{d}", True),
    ("TF Models", "official", tools.tf_models, "ema:{d},start=zero", False),
    ("TF Models dynamic_decay", "official", tools.tf_models_dynamic, "tf-models:{d}", False),
]
# These form 1 - decay**t in float32, which cancels at the first steps.
CANCELS = {"optax.ema"}
OUTSIDE = {"torch_ema", "ema_pytorch", "timm", "diffusers", "official"}


def needed(package: str) -> list[Any]:
    """What is in the environment of the tests runs with them; the other tools run in their own (make peers)."""
    missing = pytest.mark.skipif(find_spec(package) is None, reason=f"{package} is not installed")
    return [missing, pytest.mark.peers] if package in OUTSIDE else [missing]


def polyak_s(values: np.ndarray, rule: str) -> np.ndarray:
    """The average by polyak's kernel, in the dtype of the values."""
    made = parse(rule)
    average = values[0] if made.origin == "weights" else np.zeros_like(values[0])
    found = []
    for n, value in enumerate(values[1:], 1):
        average = lerp(average, value, float(made.weight(n)))
        found.append(average)
    return np.stack(found)


def gap(tool: Tool, rule: str, decay: float, dtype: str) -> float:
    values = walk(dtype)
    theirs = tool(values, decay)
    assert theirs.dtype == dtype
    assert theirs.shape == (500, 5)
    return float(np.max(np.abs(theirs - polyak_s(values, rule))) / np.max(np.abs(values)))


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize(
    ("name", "tool", "rule", "wide"), [pytest.param(n, t, r, w, id=n, marks=needed(p)) for n, p, t, r, w in TOOLS]
)
def test_the_tool_and_polyak_agree_to_the_tool_s_own_rounding(
    name: str, tool: Tool, rule: str, wide: bool, decay: float, row: Row
) -> None:
    """Each of 500 steps may round once in the tool's dtype."""
    text = rule.format(d=decay)
    for dtype in ("float32", "float64") if wide else ("float32",):
        found = gap(tool, text, decay, dtype)
        cancels = name in CANCELS and decay > 0.999
        assert found <= EPSILON[dtype] * (4 / (1 - decay) if cancels else 500)
        remark = "agrees but for 1 - decay**t in float32" if cancels else "agrees"
        row(name, f"decay {decay}, {dtype}", text, f"{found:.1e}", remark)


# --- where a tool does not do what its name says, polyak follows the definition ---


# K4: tool, the package it needs, its rule.
NARROW: list[tuple[str, str, Tool, str]] = [
    ("torch AveragedModel", "torch", tools.torch_averaged_model, "ema:{d},start=copy"),
    ("Keras use_ema", "keras", tools.keras_use_ema, "ema:{d},start=copy"),
    ("tf.train.EMA", "tensorflow", tools.tf_train, "ema:{d},start=initial"),
    ("optax.incremental_update", "optax", tools.optax_incremental, "ema:{d},start=initial"),
    ("flax nnx.EMA", "flax", tools.flax_nnx, "ema:{d},start=initial"),
    ("torch-ema", "torch_ema", tools.torch_ema, "ema:{d},start=initial"),
    ("ema-pytorch, no warm-up", "ema_pytorch", tools.ema_pytorch_constant, "ema:{d},start=copy"),
]


@pytest.mark.parametrize(
    ("name", "tool", "rule"), [pytest.param(n, t, r, id=n, marks=needed(p)) for n, p, t, r in NARROW]
)
def test_an_average_in_bfloat16_stands_still_and_polyak_s_moves(name: str, tool: Tool, rule: str, row: Row) -> None:
    """K4: the weights go from 1 to 1.25 and stay there. polyak's shadow is float32 and follows the float64 oracle."""
    updates, decay = 1500, 0.999
    values = np.full((updates + 1, 1), 1.25).astype(ml_dtypes.bfloat16)
    values[:2] = 1.0
    made = parse(rule.format(d=decay))
    ours, exact = np.ones(1, np.float32), 1.0
    for n, value in enumerate(values[1:], 1):
        w = float(made.weight(n))
        ours = lerp(ours, value, w)
        exact += w * (float(value[0]) - exact)
    theirs = float(tool(values, decay)[-1, 0])
    assert float(ours[0]) == pytest.approx(exact, abs=2e-5)
    assert exact > 1.15
    assert theirs == 1.0
    row(name, "bfloat16, 0.999", rule.format(d=decay), f"{exact - theirs:.2f}", "does not move")


def test_torch_averages_integer_buffers_and_polyak_copies_them(row: Row) -> None:
    torch = pytest.importorskip("torch")
    from torch.optim import swa_utils

    layer = torch.nn.BatchNorm1d(2)
    model = torch.nn.Sequential(layer)
    tool = swa_utils.AveragedModel(model, use_buffers=True)
    for _ in range(50):
        model(torch.ones(3, 2))
        tool.update_parameters(model)
    theirs = int(tool.module[0].num_batches_tracked)
    assert theirs < 50 == int(layer.num_batches_tracked)
    row("torch AveragedModel", "integer buffer", "mean", f"{50 - theirs}", f"{theirs} batches counted of 50")


@pytest.mark.peers
@pytest.mark.skipif(find_spec("ema_pytorch") is None, reason="ema_pytorch is not installed")
def test_ema_pytorch_forgets_its_interval_in_the_decay_and_polyak_corrects_for_it(row: Row) -> None:
    """theta(t) = t, an update at every tenth step: the mean age of a decay of 0.9 is 9 steps, not 90."""
    values = np.arange(501, dtype=np.float64)[:, None] * np.ones((1, 5))
    theirs = tools.ema_pytorch(values, 0.9, every=10)[-1, 0]
    ours = polyak_s(values, "ema:0.9,start=initial,every=10")[-1, 0]
    exact = polyak_s(values, "ema:0.9,start=initial")[-1, 0]
    assert abs(ours - exact) < 10
    assert abs(theirs - exact) > 40
    row("ema-pytorch", "update_every=10", "ema:0.9,every=10", f"{abs(theirs - exact) / 500:.2f}", "decay per interval")


@pytest.mark.peers
def test_every_tool_is_installed_where_all_are_asked_for() -> None:
    """``make peers`` sets the variable: there no tool may be passed over."""
    missing = [package for _, package, *_ in TOOLS if find_spec(package) is None]
    assert not (missing and os.environ.get("POLYAK_PEERS")), missing
