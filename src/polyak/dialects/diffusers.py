"""A folder that diffusers' ``EMAModel.save_pretrained`` wrote: the average as a model, and its settings.

The names of the weights are those of the raw model's folder; only the configuration tells the two apart.
"""

from __future__ import annotations

from polyak.contents import Contents
from polyak.dialects.torch_sets import Reading, bare, sets, snapshot
from polyak.manifest import AVERAGE
from polyak.snapshot import Snapshot

_SAID = ("decay", "optimization_step", "min_decay", "use_ema_warmup", "inv_gamma", "power", "update_after_step")


def interpret(contents: Contents) -> Snapshot | None:
    """None unless the configuration has both a decay and a count of optimization steps."""
    said = {name: contents.facts.get(f"config/{name}") for name in _SAID}
    found = sets(contents)
    step = said["optimization_step"]
    if not isinstance(said["decay"], float) or not isinstance(step, int) or len(found) != 1:
        return None
    held = next(iter(found.values()))
    words = ", ".join(f"{name} = {value}" for name, value in said.items() if value is not None)
    evidence = (f"config.json says {words}, as diffusers' EMAModel.save_pretrained writes it beside an average",)
    return snapshot(contents, Reading("diffusers", {AVERAGE: bare(held.tensors)}, held.stored, evidence, "stated"))
