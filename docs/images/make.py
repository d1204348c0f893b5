"""Makes the pictures of docs/which-rule.md: ``python docs/images/make.py [FOLDER]``; needs matplotlib."""

from __future__ import annotations

import sys
from pathlib import Path

from polyak.report.pictures import write_picture

PICTURES = {
    "shapes.svg": (("ema:0.999", "power:sigma_rel=0.1", "mean,after=7500", "mean"), 10_000),
    "immature.svg": (("ema:0.9999,start=initial", "ema:0.9999"), 4_000),
    "widths.svg": (("power:sigma_rel=0.05", "power:sigma_rel=0.1", "power:sigma_rel=0.2"), 10_000),
}


def make(folder: Path) -> None:
    """Write all pictures into the folder."""
    for name, (rules, steps) in PICTURES.items():
        write_picture(rules, steps, folder / name)


if __name__ == "__main__":
    make(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
