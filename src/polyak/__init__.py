"""polyak: averaged model weights you can trust. Track, apply, transfer and combine them, with proof.

    ema = polyak.EMA(model, decay=0.999)
    ema.update()                              # after each optimizer step
    with ema.applied():
        model.evaluate(x, y)
    receipt = polyak.transfer(ema, other_model)

Importing polyak imports no framework; NumPy comes with the first name that is used, so that ``polyak --help`` is quick.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from importlib.metadata import version

    from polyak import derived, errors, rules, testing
    from polyak.averaging.parse import parse
    from polyak.averaging.profile import Profile, profile
    from polyak.combine.average import Member
    from polyak.combine.difference import Difference
    from polyak.combine.finding import Finding
    from polyak.combine.synthesis import Synthesis
    from polyak.errors import PolyakError, PolyakWarning
    from polyak.file_verbs import average, convert, diff, distances, doctor, greedy_soup, open
    from polyak.frameworks import Average
    from polyak.frameworks.adopting import adopt
    from polyak.periodic import Snapshots
    from polyak.plan_verbs import plan, read_plan, transfer
    from polyak.posthoc_verbs import synthesize
    from polyak.recalibrating import recalibrate
    from polyak.report.pictures import plot_profile
    from polyak.saving import Saver, Saving
    from polyak.several import Averages
    from polyak.snapshot import Snapshot
    from polyak.targets import Target
    from polyak.transfer.plan import Plan
    from polyak.transfer.receipt import Receipt
    from polyak.transfer.stored import StoredPlan
    from polyak.verbs import EMA, SWA, PowerEMA, save, snapshot, track

    __version__ = version("polyak")

# Where each public name lives; read when it is used first.
_HOMES = {
    "averaging.parse": ("parse",),
    "averaging.profile": ("Profile", "profile"),
    "combine.average": ("Member",),
    "combine.difference": ("Difference",),
    "combine.finding": ("Finding",),
    "combine.synthesis": ("Synthesis",),
    "errors": ("PolyakError", "PolyakWarning"),
    "file_verbs": ("average", "convert", "diff", "distances", "doctor", "greedy_soup", "open"),
    "frameworks": ("Average",),
    "frameworks.adopting": ("adopt",),
    "periodic": ("Snapshots",),
    "plan_verbs": ("plan", "read_plan", "transfer"),
    "posthoc_verbs": ("synthesize",),
    "recalibrating": ("recalibrate",),
    "report.pictures": ("plot_profile",),
    "saving": ("Saver", "Saving"),
    "snapshot": ("Snapshot",),
    "several": ("Averages",),
    "targets": ("Target",),
    "transfer.plan": ("Plan",),
    "transfer.receipt": ("Receipt",),
    "transfer.stored": ("StoredPlan",),
    "verbs": ("EMA", "SWA", "PowerEMA", "save", "snapshot", "track"),
}
_MODULES = ("derived", "errors", "rules", "testing")
_HOME = {name: home for home, names in _HOMES.items() for name in names}


class _Face(ModuleType):
    """The import system binds a submodule to its package. ``polyak.transfer`` and ``snapshot`` are verbs, not those."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (isinstance(value, ModuleType) and name in _HOME):
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *__all__})


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("polyak")
    elif name in _MODULES:
        value = import_module(f"polyak.{name}")
    elif name in _HOME:
        value = getattr(import_module(f"polyak.{_HOME[name]}"), name)
    else:
        raise AttributeError(f"module 'polyak' has no attribute {name!r}")
    globals()[name] = value
    return value


sys.modules[__name__].__class__ = _Face
__all__ = [
    "EMA",
    "SWA",
    "Average",
    "Averages",
    "Difference",
    "Finding",
    "Member",
    "Plan",
    "PolyakError",
    "PolyakWarning",
    "PowerEMA",
    "Profile",
    "Receipt",
    "Saver",
    "Saving",
    "Snapshot",
    "Snapshots",
    "StoredPlan",
    "Synthesis",
    "Target",
    "adopt",
    "average",
    "convert",
    "derived",
    "diff",
    "distances",
    "doctor",
    "errors",
    "greedy_soup",
    "open",
    "parse",
    "plan",
    "plot_profile",
    "profile",
    "read_plan",
    "recalibrate",
    "rules",
    "save",
    "snapshot",
    "synthesize",
    "testing",
    "track",
    "transfer",
]
