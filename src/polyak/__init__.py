"""polyak: averaged model weights you can trust. Track, apply, transfer and combine them, with proof.

    ema = polyak.EMA(model, decay=0.999)
    ema.update()                              # after each optimizer step
    with ema.applied():
        model.evaluate(x, y)
    receipt = polyak.transfer(ema, other_model)

Importing polyak imports no framework.
"""

from importlib.metadata import version

from polyak import errors
from polyak.averaging import rules
from polyak.averaging.parse import parse
from polyak.averaging.profile import Profile, profile
from polyak.errors import PolyakError, PolyakWarning
from polyak.frameworks import Average
from polyak.snapshot import Snapshot
from polyak.transfer.plan import Plan
from polyak.transfer.receipt import Receipt
from polyak.verbs import EMA, SWA, PowerEMA, open, plan, save, snapshot, track, transfer

__version__ = version("polyak")
__all__ = [
    "EMA",
    "SWA",
    "Average",
    "Plan",
    "PolyakError",
    "PolyakWarning",
    "PowerEMA",
    "Profile",
    "Receipt",
    "Snapshot",
    "errors",
    "open",
    "parse",
    "plan",
    "profile",
    "rules",
    "save",
    "snapshot",
    "track",
    "transfer",
]
