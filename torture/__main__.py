"""``python -m torture``: runs the campaigns, each in its own process, two at a time, and writes docs/reliability.md.

``--only ROW`` runs one row (``--only 9``) or one campaign of it (``--only 9b``) and may be given several times;
``--short`` runs the short counts and writes nothing; ``--page`` writes the page anew from what was found before;
``--minutes`` bounds the whole: those whose figures are oldest come first, and what would not end in time keeps its own.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import pkgutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path

import torture
from torture import page
from torture.campaign import Campaign, Outcome

ROOT = Path(__file__).resolve().parents[1]
AT_ONCE = 2
PATIENCE = 1500  # seconds for a campaign


def campaigns() -> Iterator[Campaign]:
    """The campaigns of every module beside this one."""
    for found in sorted(pkgutil.iter_modules(torture.__path__), key=lambda m: m.name):
        if not found.name.startswith("_"):
            yield from getattr(importlib.import_module(f"torture.{found.name}"), "CAMPAIGNS", ())


def chosen(all_of_them: Iterable[Campaign], only: list[str]) -> list[Campaign]:
    """Those asked for, by row or by campaign; all, unasked."""
    found = sorted(all_of_them, key=lambda c: page.order(c.row))
    return [c for c in found if not only or c.row in only or c.row.rstrip("abcdefghij") in only]


def in_its_process(campaign: Campaign, *, short: bool) -> Outcome:
    """Run a campaign in a fresh interpreter; one that ends without an answer is broken."""
    command = [sys.executable, "-m", "torture", "--one", campaign.row, *(["--short"] if short else [])]
    environment = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "", **os.environ}
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False
        )
        found = json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        return Outcome(0, (f"no answer after {PATIENCE} s",), "no answer")
    except (IndexError, ValueError):
        print(done.stderr[-2000:], file=sys.stderr, flush=True)
        # Not the traceback: what is found is kept, and that names files of the machine.
        return Outcome(0, tuple(done.stderr.strip().splitlines()[-1:]) or ("no word",), "ended without an answer")
    return Outcome(**{**found, "broken": tuple(found["broken"])})


def oldest_first(wanted: list[Campaign], known: Mapping[str, Outcome]) -> list[Campaign]:
    """What has no figure, then the oldest figures; of one day what takes longest, so that no core waits at the end."""
    none = Outcome(0, (), "")
    return sorted(wanted, key=lambda c: (c.row in known, known.get(c.row, none).day, -known.get(c.row, none).seconds))


def in_time(campaign: Campaign, known: Mapping[str, Outcome], end: float, *, short: bool) -> Outcome | None:
    """Run a campaign if it will have ended at that time, as far as one knows."""
    took = known[campaign.row].seconds if campaign.row in known else 0.0
    begun = time.monotonic()
    if begun + took > end:
        return None
    outcome = in_its_process(campaign, short=short)
    return replace(outcome, seconds=round(time.monotonic() - begun, 1), day=f"{datetime.now(UTC):%Y-%m-%d}")


def run_all(wanted: list[Campaign], *, short: bool, minutes: float = math.inf) -> dict[str, Outcome]:
    """Run campaigns, two at a time, and tell of each as it ends."""
    found: dict[str, Outcome] = {}
    begun, known = time.monotonic(), page.figures()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        running = {
            pool.submit(in_time, campaign, known, begun + 60 * minutes, short=short): campaign for campaign in wanted
        }
        for done in as_completed(running):
            campaign, outcome = running[done], done.result()
            if outcome is None:
                print("no time for", campaign, flush=True)
                continue
            found[campaign.row] = outcome
            if not short:
                page.keep({campaign.row: outcome})  # what ends early has found something, too
            told = f"[{len(found)}/{len(running)} {time.monotonic() - begun:4.0f} s]"
            print(told, "ok    " if outcome.holds else "BROKEN", campaign, "-", outcome.figure, flush=True)
            for text in outcome.broken[:5]:
                print("        ", text, flush=True)
    return found


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m torture", description=__doc__)
    parser.add_argument("--only", action="append", default=[], metavar="ROW")
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--page", action="store_true")
    parser.add_argument("--minutes", type=float, default=math.inf)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    asked = arguments()
    if asked.one:
        (campaign,) = (c for c in campaigns() if c.row == asked.one)
        print(json.dumps(asdict(campaign.run(campaign.short if asked.short else campaign.full))))
        return 0
    wanted = [] if asked.page else oldest_first(chosen(campaigns(), asked.only), page.figures())
    found = run_all(wanted, short=asked.short, minutes=asked.minutes)
    if not asked.short:
        page.PAGE.write_text(page.page(campaigns()))
    return 0 if all(outcome.holds for outcome in found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
