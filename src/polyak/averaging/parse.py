"""Rules as text ("ema:0.999,every=10") and decays as people give them (decay, half_life or tau)."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from typing import Any

from polyak.averaging.base import LEAST_USUAL_DECAY, Rule, plain, real
from polyak.averaging.rules import RULES, WRAPPERS, PowerEMA, build
from polyak.errors import RuleError

_ALIASES = {"swa": "mean"}
_USUAL = {"decay": "[0.5, 1)", "half_life": "[1, inf)", "tau": "(0, 0.5]"}


def decay_from(*, decay: float | None = None, half_life: float | None = None, tau: float | None = None) -> float:
    """The decay from exactly one of three ways to give it; values that probably mean something else are refused.

    Args:
        decay: share of the average kept at each update, in [0.5, 1). Keras calls it ``ema_momentum``.
        half_life: number of updates after which half is left, at least 1: decay = 2**(-1 / half_life).
        tau: share of the newest value, in (0, 0.5]: decay = 1 - tau. mmcv calls it ``momentum``.

    Raises:
        RuleError: none or several are given, or the value is out of range, or suspicious; the hint says its likely
            meaning and how to insist.

    Example:
        >>> decay_from(decay=0.999), decay_from(tau=0.25), round(decay_from(half_life=500), 9)
        (0.999, 0.75, 0.998614666)
        >>> decay_from(decay=99.9)
        Traceback (most recent call last):
        polyak.errors.RuleError: decay=99.9 is above 1
        hint: if you mean 99.9 percent write decay=0.999
    """
    pairs = {"decay": decay, "half_life": half_life, "tau": tau}
    key, value = _single({key: value for key, value in pairs.items() if value is not None})
    number = real(key, value, _USUAL[key], lambda x: x > 0 or (key == "decay" and x == 0))
    {"decay": _check_decay, "half_life": _check_half_life, "tau": _check_tau}[key](number)
    return _convert(key, number)


def _single(given: dict[str, Any]) -> tuple[str, Any]:
    if len(given) != 1:
        received = " and ".join(given) or "none of them"
        raise RuleError(f"expected exactly one of decay, half_life and tau; received {received}")
    return next(iter(given.items()))


def _convert(key: str, number: float) -> float:
    decay = {"decay": number, "half_life": 2.0 ** (-1.0 / number) if number else 0.0, "tau": 1.0 - number}[key]
    if decay == 1.0 and key != "decay":
        raise RuleError(f"{key}={plain(number)} is a decay of 1 in float64: the average would never move")
    return decay


def _insist(decay: float) -> str:
    return f"to insist, construct polyak.rules.EMA({plain(decay)}) directly or write 'ema:{plain(decay)},check=off'"


def _forgets(key: str, number: float, decay: float) -> str:
    return f"{key}={plain(number)} would forget {100 * (1 - decay):.10g}% of the average at each update"


def _check_decay(decay: float) -> None:
    if decay == 0.0:
        raise RuleError("decay=0 is a copy of the newest weights", hint=f"write the rule 'copy'; {_insist(decay)}")
    if decay < LEAST_USUAL_DECAY:
        meant = f"if you mean tau={plain(decay)} write tau={plain(decay)}, i.e. decay={1 - decay:.12g}"
        raise RuleError(_forgets("decay", decay, decay), hint=f"{meant}; {_insist(decay)}")
    if decay == 1.0:
        raise RuleError("decay=1 would never move the average", hint="write a decay below 1, such as decay=0.999")
    if decay > 1.0:
        percent = f"if you mean {plain(decay)} percent write decay={decay / 100:.12g}"
        updates = f"if you mean {plain(decay)} updates write half_life={plain(decay)}"
        raise RuleError(f"decay={plain(decay)} is above 1", hint=percent if 50 <= decay < 100 else updates)


def _check_tau(tau: float) -> None:
    if tau > 1.0:
        raise RuleError(f"tau={plain(tau)} is above 1", hint="tau is the share of the newest value, such as tau=0.001")
    if tau == 1.0:
        raise RuleError("tau=1 is a copy of the newest weights", hint=f"write the rule 'copy'; {_insist(0.0)}")
    if tau > 1.0 - LEAST_USUAL_DECAY:
        meant = f"if you mean decay={plain(tau)} write decay={plain(tau)}, i.e. tau={1 - tau:.12g}"
        raise RuleError(_forgets("tau", tau, 1 - tau), hint=f"{meant}; {_insist(1 - tau)}")


def _check_half_life(half_life: float) -> None:
    if half_life < 1.0:
        meant = f"if you mean decay={plain(half_life)} write decay={plain(half_life)}"
        insist = _insist(_convert("half_life", half_life))
        raise RuleError(f"half_life={plain(half_life)} is less than one update", hint=f"{meant}; {insist}")


def parse(text: str | Rule) -> Rule:
    """The rule that a text describes; a Rule is returned as it is.

    The name, then settings after ``:`` or ``,`` as ``key=value``; a decay needs no key and may be given as
    ``half_life`` or ``tau``. ``every=k`` and ``after=n`` wrap what stands before them. A decay below 0.5 is taken for
    a mistake unless ``check=off`` stands beside it, which ``str(rule)`` writes where it is needed.

    Raises:
        RuleError: the name or a setting is unknown, missing, repeated, out of range or suspicious.

    Example:
        >>> parse("ema:half_life=500,start=copy")
        EMA(decay=0.9986146661010289, start='copy')
        >>> parse("ema:0.999,every=10,after=1000")
        Delayed(rule=Every(rule=EMA(decay=0.999, start='warm'), k=10), after=1000)
        >>> round(parse("power:sigma_rel=0.1").gamma, 6)
        6.937204
    """
    if isinstance(text, Rule):
        return text
    if not isinstance(text, str):
        raise RuleError(f"expected a rule or its text, like 'ema:0.999'; received {text!r:.80}")
    try:
        return _parse(text)
    except RuleError as error:
        shown = text if len(text) <= 80 else f"{text[:77]}..."
        raise RuleError(f"{shown!r}: {error.message}", hint=error.hint) from None


def _parse(text: str) -> Rule:
    name, *rest = re.split("[:,]", text, maxsplit=1)
    name = _rule_name(name.strip())
    settings: dict[str, Any] = {}
    wrappers: list[tuple[str, int]] = []
    for key, value in _pairs(name, rest[0] if rest else None):
        if key in WRAPPERS:
            wrappers.append((key, _count(key, value)))
        elif key in settings:
            raise RuleError(f"setting {key!r} is given twice")
        else:
            settings[key] = _value(value)
    rule = _plain_rule(name, settings)
    for key, count in wrappers:
        rule = build(key, {"rule": rule, "k" if key == "every" else key: count})
    return rule


def _pairs(name: str, rest: str | None) -> Iterator[tuple[str, str]]:
    for item in [] if rest is None else rest.split(","):
        key, equals, value = (part.strip() for part in item.partition("="))
        if equals:
            yield key, value
        elif "decay" in RULES[name].__dataclass_fields__ and key:
            yield "decay", key
        else:
            raise RuleError(f"expected settings as key=value; received {key!r}", hint=_example(name))


def _rule_name(name: str) -> str:
    known = sorted([*RULES, *_ALIASES])
    plain_name = name.lower().replace("_", "-")
    plain_name = _ALIASES.get(plain_name, plain_name)
    if plain_name in RULES:
        return plain_name
    if isinstance(_value(name), float):
        raise RuleError(f"unknown rule {name[:40]!r}", hint=f"did you mean 'ema:{name}'?")
    nearest = difflib.get_close_matches(plain_name[:40], known, n=1, cutoff=0.5)
    guess = f"did you mean {nearest[0]!r}? " if nearest else ""
    raise RuleError(f"unknown rule {name[:40]!r}", hint=f"{guess}known rules: {', '.join(known)}")


def _value(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _count(key: str, value: str) -> int:
    try:
        return int(value)
    except ValueError:
        raise RuleError(f"{key}={value}: expected a whole number of updates") from None


def _example(name: str) -> str:
    texts = {"power": "power:sigma_rel=0.1", "mean": "mean,every=100", "copy": "copy,every=1000"}
    return f"for example {texts.get(name, f'{name}:0.999')!r}"


def _plain_rule(name: str, settings: dict[str, Any]) -> Rule:
    if name == "power" and "sigma_rel" in settings:
        if len(settings) > 1:
            raise RuleError("expected sigma_rel or gamma alone", hint=_example(name))
        return PowerEMA.from_sigma_rel(settings["sigma_rel"])
    if "decay" in RULES[name].__dataclass_fields__:
        _settle_decay(settings)
    try:
        return build(name, settings)
    except RuleError as error:
        raise RuleError(error.message, hint=error.hint or _example(name)) from None


def _settle_decay(settings: dict[str, Any]) -> None:
    given = {key: settings.pop(key) for key in _USUAL if key in settings}
    check = settings.pop("check", "on")
    if check not in ("on", "off"):
        raise RuleError(f"check={plain(check)}: expected on or off")
    if given and check == "on":
        settings["decay"] = decay_from(**given)
    elif given:
        key, value = _single(given)
        settings["decay"] = _convert(key, real(key, value, "[0, inf)", lambda x: x >= 0))
