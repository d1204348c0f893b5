"""Pictures of what rules remember, by matplotlib, which is imported when the first one is drawn."""

from __future__ import annotations

import html
import io
import os
from collections.abc import Sequence
from importlib import import_module
from typing import Any, Literal

import numpy as np

from polyak.averaging.base import Rule
from polyak.averaging.parse import parse
from polyak.averaging.profile import profile
from polyak.errors import PolyakError, RuleError
from polyak.files.atomic import replacing
from polyak.report.shares import in_stretches
from polyak.report.tables import number, percent

# Okabe and Ito's colours, told apart by most eyes, and dashes for those who see none.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)), (0, (6, 1.5, 1.5, 1.5)))
_POINTS = 200
_SEEN = 0.005
_SIZE = (7.2, 3.6)  # inches
_HEAD = ("rule", "mean age", "half-life", "effective samples", "immaturity %")


def plot_profile(rules: Rule | str | Sequence[Rule | str], steps: int = 10_000, ax: Any = None) -> Any:
    """Draw what rules remember: the share that each hundredth of the run has in the average, oldest left.

    A dot is the share of the value that the average started from, where that is more than half a per cent.

    Args:
        rules: one rule or several, or their texts.
        steps: length of the run, in updates, at least 1.
        ax: a matplotlib Axes to draw into; a new figure's by default. No window is opened.

    Returns:
        The matplotlib Axes; ``ax.figure.savefig(path)`` writes it.

    Raises:
        RuleError: the text is no rule, or steps is no number of updates.
        PolyakError: matplotlib is not installed.

    Example:
        >>> ax = plot_profile(["ema:0.999", "mean"], 5000)  # doctest: +SKIP
        >>> ax.figure.savefig("rules.svg")  # doctest: +SKIP
    """
    listed = [rules] if isinstance(rules, (str, Rule)) else list(rules)
    if not listed:
        raise RuleError("expected at least one rule, received none")
    if profile(listed[0], steps).shares.size == 1:
        raise RuleError("steps=0: expected at least one update", hint="before the first there is nothing to draw")
    ax = _new_axes() if ax is None else ax
    for i, rule in enumerate(listed):
        _draw(ax, rule, steps, {"color": _COLOURS[i % len(_COLOURS)], "linestyle": _DASHES[i % len(_DASHES)]})
    _dress(ax, steps)
    return ax


def write_picture(
    rules: Sequence[Rule | str], steps: int, path: str | os.PathLike[str], format: Literal["png", "svg"] = "svg"
) -> None:
    """Write the picture; with equal versions of matplotlib, equal bytes.

    Raises:
        PolyakError: matplotlib is not installed.
    """
    with replacing(path) as file:
        file.write(_drawn(rules, steps, format))


def write_page(rules: Sequence[Rule | str], steps: int, path: str | os.PathLike[str]) -> None:
    """Write a page of HTML with the picture, as SVG within it, and the table of figures. It needs no other file.

    Raises:
        PolyakError: matplotlib is not installed.
    """
    svg = _drawn(rules, steps, "svg").decode()
    title = f"What each rule remembers after {steps:,} updates"
    rows = "".join(f"<tr>{_cells('td', _figures(rule, steps))}</tr>\n" for rule in rules)
    page = (
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{title}</title>\n<style>{_STYLE}</style>\n'
        f"<h1>{title}</h1>\n{svg[svg.index('<svg') :]}"
        f"<table>\n<tr>{_cells('th', _HEAD)}</tr>\n{rows}</table>\n"
        "<p>Ages are in updates. Effective samples: how many equally weighted values would be as smooth. "
        "Immaturity: the share that still is the value the average started from.</p>\n</html>\n"
    )
    with replacing(path) as file:
        file.write(page.encode())


_STYLE = (
    "body{font-family:system-ui,sans-serif;max-width:50em;margin:2em auto;padding:0 1em}"
    "svg{max-width:100%;height:auto}td,th{padding:.2em .8em;text-align:right}"
    "td:first-child,th:first-child{text-align:left}"
)


def _cells(tag: str, texts: Sequence[str]) -> str:
    return "".join(f"<{tag}>{html.escape(text)}</{tag}>" for text in texts)


def _figures(rule: Rule | str, steps: int) -> list[str]:
    made = profile(rule, steps)
    ages = [number(x) for x in (made.mean_age, made.half_life, made.effective_samples)]
    return [str(rule), *ages, percent(made.immaturity)]


def _drawn(rules: Sequence[Rule | str], steps: int, format: str) -> bytes:
    matplotlib, stream = _matplotlib("matplotlib"), io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "polyak", "svg.fonttype": "none"}):
        figure = plot_profile(rules, steps).figure
        figure.savefig(stream, format=format, dpi=150, metadata={"Date": None} if format == "svg" else {})
    return stream.getvalue()


def _new_axes() -> Any:
    """Axes of a figure that no window and no global list knows of."""
    return _matplotlib("matplotlib.figure").Figure(figsize=_SIZE, layout="constrained").subplots()


def _draw(ax: Any, rule: Rule | str, steps: int, style: dict[str, Any]) -> None:
    """The shares of the values as a line; that of the start, where there is much of it, as a dot of its own."""
    parsed, made = parse(rule), profile(rule, steps)
    later = made.shares.copy()
    later[: parsed.anchor_at(steps) + 1] = 0.0
    parts = min(_POINTS, steps)
    told = f"mean age {number(made.mean_age)}, effective samples {number(made.effective_samples)}"
    if made.immaturity > _SEEN:
        told += f", start {percent(made.immaturity)} %"
        ax.plot([0], [100 * made.immaturity], "o", color=style["color"], clip_on=False, zorder=3)
    sums = in_stretches(later, parts) * parts  # per cent of the average in one per cent of the run: the mean's are 1
    label = f"{_shortened(str(rule))}: {told}"
    ax.stairs(sums, np.linspace(0, steps, parts + 1), label=label, linewidth=1.8, baseline=None, **style)


def _shortened(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:37]}..."


def _dress(ax: Any, steps: int) -> None:
    ax.set_title(f"What an average holds after {steps:,} updates", loc="left", fontsize=11)
    ax.set_xlabel("update at which the value was taken (right: now)")
    ax.set_ylabel("% of the average,\nfor each 1 % of the run")
    ax.set_xlim(0, steps)
    ax.set_ylim(bottom=0)
    ax.xaxis.set_major_formatter("{x:,.0f}")
    ax.grid(visible=True, alpha=0.25)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(loc="upper left", bbox_to_anchor=(0.02, 1.0), fontsize=9, frameon=False)  # beside the dots


def _matplotlib(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise PolyakError(
            f"expected matplotlib for a picture, received {error}",
            hint="pip install 'polyak[plot]'; `polyak profile RULE` plots in the terminal without it",
        ) from error
