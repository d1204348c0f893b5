"""Rules as text: "ema:0.999,every=10", "ema:half_life=2000samples,batch=64", "ema:0.9 until 1000 then mean"."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

from polyak.averaging.base import Rule, plain, real
from polyak.averaging.decays import USUAL, converted, decay_from, paced, single, usual
from polyak.averaging.means import Mean
from polyak.averaging.rules import RULES, WRAPPERS, PowerEMA, build
from polyak.averaging.splice import Splice
from polyak.averaging.units import PACE, Pace, Quantity, quantity, refuse_idle
from polyak.averaging.wrappers import Delayed
from polyak.errors import RuleError

__all__ = ["decay_from", "parse"]

_ALIASES = {"swa": "mean", "edm2": "power"}
_TAIL = "tail"
_COUNTS = ("steps", "freq")
_EXAMPLES = {
    "power": "power:sigma_rel=0.1",
    "mean": "mean,every=100",
    "copy": "copy,every=1000",
    "polynomial": "polynomial:eta=3",
    "cosine": "cosine:0.996,steps=100000",
    "linear": "linear:0.999,steps=1000",
    "inverse-power": "inverse-power:power=0.5,lag=10,freq=400",
    _TAIL: "tail:last=0.25,steps=10000",
}
_UNTIL = re.compile(r"\s+until\s+(\S+)\s+then\s+")
_DEEPEST = 8


def parse(text: str | Rule) -> Rule:
    """The rule that a text describes; a Rule is returned as it is.

    The name, then settings after ``:`` or ``,`` as ``key=value``; a decay needs no key and may be given as
    ``half_life``, ``horizon`` or ``tau``. ``every=k``, ``after=n`` and ``scaled=kappa`` wrap what stands before them.
    A decay below 0.5 is taken for a mistake unless ``check=off`` stands beside it, which ``str(rule)`` writes where it
    is needed. ``A until 1000 then B`` is rule A up to update 1000 and rule B, with the same count, after it.

    A number counts updates, unless a unit follows it: ``half_life=2000samples``, ``after=2epochs``,
    ``decay=0.9999/sample``. The run's pace then stands beside it: ``batch`` (samples in a step), ``steps_per_epoch``,
    ``tokens_per_step``, and ``accumulate`` (steps in one update of the optimizer). The rule itself knows updates alone.

    Raises:
        RuleError: the name or a setting is unknown, missing, repeated, out of range or suspicious.

    Example:
        >>> parse("ema:half_life=500,start=copy")
        EMA(decay=0.9986146661010289, start='copy')
        >>> parse("ema:0.999,every=10,after=1000")
        Delayed(rule=Every(rule=EMA(decay=0.999, start='warm'), k=10), after=1000)
        >>> round(parse("power:sigma_rel=0.1").gamma, 6)
        6.937204
        >>> parse("ema:half_life=2000samples,batch=64") == parse("ema:half_life=31.25")
        True
        >>> print(parse("tail:last=0.25,steps=10000"))
        mean,after=7500
    """
    if isinstance(text, Rule):
        return text
    if not isinstance(text, str):
        raise _no_rule(text)
    try:
        return _parse(text)
    except RuleError as error:
        shown = text if len(text) <= 80 else f"{text[:77]}..."
        raise RuleError(f"{shown!r}: {error.message}", hint=error.hint) from None


def _no_rule(given: object) -> RuleError:
    meant = f"did you mean 'ema:{plain(given)}'?" if isinstance(given, float) else None
    return RuleError(f"expected a rule or its text, like 'ema:0.999'; received {given!r:.80}", hint=meant)


def _parse(text: str) -> Rule:
    masked = _masked(text)
    found = list(_UNTIL.finditer(masked))
    if not found:
        return _one(text)
    starts = [0, *(m.end() for m in found)]
    ends = [*(m.start() for m in found), len(text)]
    rules = [_one(text[start:end]) for start, end in zip(starts, ends, strict=True)]
    after = [0, *(_count("until", m.group(1)) for m in found)]
    return Splice(tuple(zip(after, rules, strict=True)))


def _masked(text: str) -> str:
    """The text with what stands in parentheses made blank-free, so that only the outermost words are seen."""
    depth, shown = 0, []
    for letter in text:
        depth += letter == "("
        shown.append("." if depth else letter)
        depth -= letter == ")"
        if not 0 <= depth <= _DEEPEST:
            raise RuleError("expected balanced parentheses, at most eight deep")
    if depth:
        raise RuleError("expected balanced parentheses, at most eight deep")
    return "".join(shown)


def _one(text: str) -> Rule:
    text = text.strip()
    if text.startswith("("):
        end = len(text) - len(_masked(text).lstrip("."))
        return _wrapped(_parse(text[1 : end - 1]), _Settings("", text[end:].lstrip(",:") or None))
    if re.search(r"\s(until|then)\b", text):
        raise RuleError("expected RULE until NUMBER then RULE", hint="for example 'ema:0.9 until 1000 then mean'")
    name, *rest = re.split("[:,]", text, maxsplit=1)
    name = _rule_name(name.strip())
    settings = _Settings(name, rest[0] if rest else None)
    rule = _tail(settings) if name == _TAIL else _plain_rule(name, settings)
    return _wrapped(rule, settings)


class _Settings:
    """The settings of one text: those of the rule, the wrappers in their order, and the run's pace."""

    def __init__(self, name: str, text: str | None) -> None:
        self.plain: dict[str, Any] = {}
        self.wrappers: list[tuple[str, str]] = []
        given: dict[str, Any] = {}
        for key, value in _pairs(name, text):
            if key in WRAPPERS:
                self.wrappers.append((key, value))
                continue
            into = given if key in PACE else self.plain
            if key in into:
                raise RuleError(f"setting {key!r} is given twice")
            into[key] = _value(value)
        if not name and self.plain:
            raise RuleError(f"expected every, after or scaled after parentheses, received {next(iter(self.plain))!r}")
        units = {q.unit for q in self.plain.values() if isinstance(q, Quantity)}
        units |= {q.unit for _, v in self.wrappers if isinstance(q := _value(v), Quantity)}
        self.pace = Pace(**given)
        refuse_idle(given, units)


def _wrapped(rule: Rule, settings: _Settings) -> Rule:
    for key, value in settings.wrappers:
        if key == "scaled":
            rule = build(key, {"rule": rule, "kappa": _value(value)})
        else:
            number = _count(key, value, settings.pace)
            rule = build(key, {"rule": rule, "k" if key == "every" else key: number})
    return rule


def _pairs(name: str, rest: str | None) -> Iterator[tuple[str, str]]:
    for item in [] if rest is None else rest.split(","):
        key, equals, value = (part.strip() for part in item.partition("="))
        if equals:
            yield key, value
        elif name in RULES and "decay" in RULES[name].__dataclass_fields__ and key:
            yield "decay", key
        else:
            raise RuleError(f"expected settings as key=value; received {key!r}", hint=_example(name or "mean"))


def _rule_name(name: str) -> str:
    known = sorted([*RULES, *_ALIASES, _TAIL])
    plain_name = name.lower().replace("_", "-")
    plain_name = _ALIASES.get(plain_name, plain_name)
    if plain_name in RULES or plain_name == _TAIL:
        return plain_name
    if isinstance(_value(name), float):
        raise RuleError(f"unknown rule {name[:40]!r}", hint=f"did you mean 'ema:{name}'?")
    nearest = difflib.get_close_matches(plain_name[:40], known, n=1, cutoff=0.5)
    guess = f"did you mean {nearest[0]!r}? " if nearest else ""
    raise RuleError(f"unknown rule {name[:40]!r}", hint=f"{guess}known rules: {', '.join(known)}")


def _value(text: str) -> float | str | Quantity:
    try:
        return float(text)
    except ValueError:
        return quantity(text) or text


def _count(key: str, value: str, pace: Pace | None = None) -> int:
    try:
        return int(value)
    except ValueError:
        given = _value(value)
    if isinstance(given, Quantity):
        return (pace or Pace()).whole(key, given)
    if isinstance(given, str) or not given.is_integer():
        raise RuleError(f"{key}={value}: expected a whole number of updates")
    return int(given)


def _example(name: str) -> str:
    return f"for example {_EXAMPLES.get(name, f'{name}:0.999')!r}"


def _plain_rule(name: str, given: _Settings) -> Rule:
    settings = given.plain
    if name == "power" and "sigma_rel" in settings:
        if len(settings) > 1:
            raise RuleError("expected sigma_rel or gamma alone", hint=_example(name))
        return PowerEMA.from_sigma_rel(settings["sigma_rel"])
    _check_known(name, settings)
    _settle_counts(settings, given.pace)
    if "decay" in RULES[name].__dataclass_fields__:
        _settle_decay(name, settings, given.pace)
    try:
        return build(name, settings)
    except RuleError as error:
        raise RuleError(error.message, hint=error.hint or _example(name)) from None


def _check_known(name: str, settings: dict[str, Any]) -> None:
    """Raise RuleError for a setting that a text of this rule does not have."""
    own = [field.name for field in fields(RULES[name])]
    known = own + [key for key in (*USUAL, "check") if "decay" in own and key not in own]
    known += ["sigma_rel"] * (name == "power")
    for key in settings:
        if key not in known:
            raise RuleError(f"rule '{name}': unknown setting {key!r}", hint=_nearest_setting(key, known))


def _nearest_setting(key: str, known: list[str]) -> str:
    near = difflib.get_close_matches(key.lower()[:40], [*known, *WRAPPERS], n=1)
    guess = f"did you mean {near[0]!r}? " if near else ""
    return f"{guess}its settings: {', '.join(known) or 'none'}; those of every rule: {', '.join(WRAPPERS)}"


def _tail(given: _Settings) -> Rule:
    """The mean of the last share of a run of known length."""
    settings = given.plain
    _settle_counts(settings, given.pace)
    if set(settings) != {"last", "steps"}:
        received = ", ".join(settings) or "none"
        raise RuleError(f"expected last= and steps=, received {received}", hint=_example(_TAIL))
    steps = settings["steps"]
    if not isinstance(steps, int) or steps < 1:
        raise RuleError(f"steps={plain(steps)}: expected a whole number of updates, at least 1")
    share = real("last", settings["last"], "(0, 1]", lambda x: 0 < x <= 1)
    return Delayed(Mean(), round(steps * (1.0 - share)))


def _settle_counts(settings: dict[str, Any], pace: Pace) -> None:
    for key in _COUNTS:
        value = settings.get(key)
        if isinstance(value, Quantity):
            settings[key] = pace.whole(key, value)
        elif isinstance(value, float) and value.is_integer():
            settings[key] = int(value)


def _settle_decay(name: str, settings: dict[str, Any], pace: Pace) -> None:
    given = {key: settings.pop(key) for key in USUAL if key in settings}
    check = settings.pop("check", "on")
    if check not in ("on", "off"):
        raise RuleError(f"check={plain(check)}: expected on or off")
    if not given:
        return
    key, value = single(given)
    if isinstance(value, Quantity):
        key, value = paced(key, value, pace)
    if name == "linear" and (key, value) == ("decay", 1.0):  # where the ramp ends: usual, as for teachers
        settings["decay"] = value
    elif check == "on":
        settings["decay"] = usual(key, value, lambda decay: "to insist, write check=off beside it")
    else:
        settings["decay"] = converted(key, real(key, value, "[0, inf)", lambda x: x >= 0))
