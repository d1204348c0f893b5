"""What every rule is: the array operations its formula may use, its laws, and its forms as JSON and text."""

from __future__ import annotations

import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from typing import Any, ClassVar, Literal, Protocol, TypeAlias, final

import numpy as np
import numpy.typing as npt

from polyak.errors import RuleError

Origin: TypeAlias = Literal["weights", "zeros"]
Float64: TypeAlias = npt.NDArray[np.float64]
# A float64 scalar or array of the library that the Ops belong to: NumPy, TensorFlow ...
Numbers: TypeAlias = Any

LEAST_USUAL_DECAY = 0.5
_NEGLIGIBLE = 1e-18
_CHUNK = 1 << 16
_MOST = 1 << 53


class Ops(Protocol):
    """The array operations that formulas use beside arithmetic operators and comparisons.

    ``asarray`` makes any number float64. Of the other functions the first number is a float64 array, the second may be
    a Python float, and the result is float64. ``prod`` multiplies over the last axis. ``arange(start, stop)`` is
    float64, of shape (stop - start,).
    """

    def asarray(self, x: Numbers) -> Numbers: ...
    def minimum(self, x: Numbers, y: Numbers) -> Numbers: ...
    def maximum(self, x: Numbers, y: Numbers) -> Numbers: ...
    def power(self, x: Numbers, y: Numbers) -> Numbers: ...
    def where(self, condition: Numbers, x: Numbers, y: Numbers) -> Numbers: ...
    def floor(self, x: Numbers) -> Numbers: ...
    def expm1(self, x: Numbers) -> Numbers: ...
    def log1p(self, x: Numbers) -> Numbers: ...
    def cos(self, x: Numbers) -> Numbers: ...
    def prod(self, array: Numbers) -> Numbers: ...
    def arange(self, start: int, stop: int) -> Numbers: ...


@final
class NumpyOps:
    """Ops on NumPy; a result without axes is a float64 scalar.

    Example:
        >>> float(NUMPY.where(NUMPY.asarray(2) > 1, 0.5, 1.0))
        0.5
    """

    def asarray(self, x: Numbers) -> Numbers:
        return np.float64(x)

    def minimum(self, x: Numbers, y: Numbers) -> Numbers:
        return np.minimum(x, y)

    def maximum(self, x: Numbers, y: Numbers) -> Numbers:
        return np.maximum(x, y)

    def power(self, x: Numbers, y: Numbers) -> Numbers:
        return np.power(x, y)

    def where(self, condition: Numbers, x: Numbers, y: Numbers) -> Numbers:
        picked: Numbers = np.where(condition, x, y)
        return picked[()]

    def floor(self, x: Numbers) -> Numbers:
        return np.floor(x)

    def expm1(self, x: Numbers) -> Numbers:
        return np.expm1(x)

    def log1p(self, x: Numbers) -> Numbers:
        return np.log1p(x)

    def cos(self, x: Numbers) -> Numbers:
        return np.cos(x)

    def prod(self, array: Numbers) -> Numbers:
        return np.prod(array, axis=-1)

    def arange(self, start: int, stop: int) -> Numbers:
        return np.arange(start, stop, dtype=np.float64)


NUMPY = NumpyOps()


@dataclass(frozen=True, slots=True)
class Rule(ABC):
    """How an average moves: ``average <- lerp(average, value, w)`` with ``w = rule.weight(n)`` at update n = 1, 2, ...

    A rule is pure data: equal fields make equal rules, and ``parse(str(rule)) == rule == from_json(rule.to_json())``.
    A subclass gives ``name`` and ``_at``; all else follows from the weights and is overridden where a closed form is
    simpler or more exact.

    Example:
        >>> from polyak.averaging.rules import EMA
        >>> rule = EMA(0.9, start="initial")
        >>> round(float(rule.weight(7)), 12), round(float(rule.merged(7, 2)), 12), round(rule.immaturity(7), 6)
        (0.1, 0.19, 0.478297)
    """

    name: ClassVar[str]

    @abstractmethod
    def _at(self, n: Numbers, ops: Ops) -> Numbers:
        """The formula of ``weight``; n is float64 already."""

    def weight(self, n: Numbers, ops: Ops = NUMPY) -> Numbers:
        """Weight of the newest value at update ``n`` (n >= 1, scalar or array): float64 in [0, 1], of n's shape."""
        return self._at(ops.asarray(n), ops)

    def merged(self, n: Numbers, k: int, ops: Ops = NUMPY) -> Numbers:
        """Weight of the newest value when updates n-k+1 ... n (n >= k) act as one: 1 - prod(1 - w_i).

        For k = 1 these are the bits of ``weight(n)``.
        """
        return self._at(ops.asarray(n), ops) if k == 1 else self._merge(ops.asarray(n), k, ops)

    def _merge(self, n: Numbers, k: int, ops: Ops) -> Numbers:
        steps = n[..., None] + ops.arange(1 - k, 1)
        return 1.0 - ops.prod(1.0 - self._at(steps, ops))

    @property
    def inner(self) -> tuple[Rule, ...]:
        """The rules that this one is made of; none for a plain rule."""
        return ()

    @property
    def rests(self) -> bool:
        """Whether it leaves the average as it is at most updates, so that it pays to ask before weights are read."""
        return any(rule.rests for rule in self.inner)

    @property
    def origin(self) -> Origin:
        """What the shadow holds before the first update: the model's weights, or zeros."""
        return "weights"

    @property
    def anchor(self) -> int:
        """The update whose value counts as the one the average started from; 0 is the initial value itself."""
        return 0

    def anchor_at(self, n: int) -> int:
        """The anchor as it is after ``n`` updates: what begins only later is not known then."""
        return self.anchor

    def span(self, first: int, last: int) -> Float64:
        """Weights of updates ``first`` ... ``last``, shape (last - first + 1,)."""
        return np.asarray(self.weight(NUMPY.arange(first, last + 1)))

    def kept(self, first: int, last: int) -> float:
        """Share of what the average held before update ``first`` that it still holds after ``last``: prod(1 - w_i)."""
        share = 1.0
        while last >= first and share >= _NEGLIGIBLE:
            low = max(first, last - _CHUNK + 1)
            share *= float(np.prod(1.0 - self.span(low, last)))
            last = low - 1
        return share

    def immaturity(self, n: int) -> float:
        """Share of the average after ``n`` updates that still is the value it started from, in [0, 1].

        That is the initial value, or the value of update ``anchor`` where the first update copies. It is 1.0 for n = 0.
        """
        return self.kept(self.anchor_at(n) + 1, n)

    def scaled(self, kappa: float) -> Rule:
        """The rule for updates that stand for ``kappa`` of this rule's each, as with a ``kappa`` times larger batch.

        By samples its shares are those of this rule: a decay becomes decay**kappa, what is relative to the run's length
        stays as it is, numbers of updates are divided by kappa. A rule without such a form is wrapped in ``Scaled``.

        Args:
            kappa: new batch size / old batch size, in [1e-6, 1e6].

        Raises:
            RuleError: kappa is out of range.

        Source: Busbridge et al., How to scale your EMA, arXiv 2307.13813, definition 1.2.

        Example:
            >>> from polyak.averaging.rules import EMA
            >>> round(EMA(0.9999).scaled(8).decay, 10)
            0.9992002799
        """
        kappa = real(f"rule '{self.name}': kappa", kappa, "[1e-6, 1e6]", lambda k: 1e-6 <= k <= 1e6)
        return self if kappa == 1.0 else self._scale(kappa)

    def _scale(self, kappa: float) -> Rule:
        # The wrapper is made of rules, so it cannot be known when this module is read.
        from polyak.averaging.wrappers import Scaled

        return Scaled(self, kappa)

    def to_json(self) -> dict[str, Any]:
        """The rule as JSON data, read back by ``polyak.averaging.rules.from_json``."""
        return {"rule": self.name} | {field.name: getattr(self, field.name) for field in fields(self)}

    def __str__(self) -> str:
        changed = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
        settings = [plain(v) if key == "decay" else f"{key}={plain(v)}" for key, v in changed.items()]
        if "decay" in changed and changed["decay"] < LEAST_USUAL_DECAY:
            settings.append("check=off")
        return ":".join([self.name, ",".join(settings)]) if settings else self.name


def plain(value: object) -> str:
    """A setting as people write it, read back exactly.

    Example:
        >>> plain(1000.0), plain(0.1), plain("copy")
        ('1000', '0.1', 'copy')
    """
    return repr(value).removesuffix(".0") if isinstance(value, float) else str(value)


def real(what: str, value: object, interval: str, within: Callable[[float], bool]) -> float:
    """The value as a float.

    Raises:
        RuleError: it is no finite number, or not ``within`` the interval.

    Example:
        >>> real("tau", 1, "(0, 1]", lambda tau: 0 < tau <= 1)
        1.0
    """
    try:
        number = math.nan if isinstance(value, bool | np.bool_ | str | bytes) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not (math.isfinite(number) and within(number)):
        shown = plain(value) if math.isnan(number) else plain(number)
        raise RuleError(f"{what}={shown:.40}: expected a number in {interval}")
    return number


def set_real(rule: Rule, field: str, interval: str, within: Callable[[float], bool]) -> None:
    """Make a field of a new rule a float; RuleError as ``real``."""
    number = real(f"rule '{rule.name}': {field}", getattr(rule, field), interval, within)
    object.__setattr__(rule, field, number)


def count(what: str, value: object, least: int) -> int:
    """The value as an int.

    Raises:
        RuleError: it is no whole number from ``least`` to 2**53, the largest that float64 counts exactly.

    Example:
        >>> count("k", np.int64(10), 1)
        10
    """
    try:
        number = -1 if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = -1
    if not least <= number <= _MOST:
        # A float is shown as such, since 2.0 is refused, too.
        shown = repr(float(value)) if isinstance(value, float) else str(value)
        raise RuleError(f"{what}={shown:.40}: expected a whole number of updates, at least {least}")
    return number


def set_count(rule: Rule, field: str, least: int) -> None:
    """Make a field of a new rule an int; RuleError as ``count``."""
    object.__setattr__(rule, field, count(f"rule '{rule.name}': {field}", getattr(rule, field), least))


def kept_smoothly(rule: Rule, first: int, last: int, edges: Float64) -> float:
    """``rule.kept`` over a long stretch, by the midpoints of blocks in which the weight hardly changes.

    Args:
        edges: numbers at which blocks may begin, ascending; those within the stretch are used.

    Example:
        >>> from polyak.averaging.rules import Mean
        >>> round(kept_smoothly(Mean(), 1001, 2000, np.arange(1.0, 3000.0)), 9)
        0.5
    """
    inner = np.floor(edges[(edges > first) & (edges <= last)])
    edges = np.unique(np.concatenate([[first], inner, [last + 1.0]]))
    middle = (edges[:-1] + edges[1:] - 1.0) / 2.0
    with np.errstate(divide="ignore"):
        return float(np.exp(np.sum(np.diff(edges) * np.log1p(-rule.weight(middle)))))


def last_multiple(n: Numbers, k: int, ops: Ops) -> Numbers:
    """The largest multiple of ``k`` up to the whole number ``n``, also where the quotient is rounded.

    Compilers make a product with 1 / k of a division by k, and 49 * (1 / 49) is below 1. Half an update more never
    reaches the next multiple, and keeps the quotient away from whole numbers.

    Example:
        >>> last_multiple(np.arange(48.0, 51.0), 49, NUMPY).tolist()
        [0.0, 49.0, 49.0]
    """
    return ops.floor((n + 0.5) / float(k)) * float(k)


def required(rule: type[Rule]) -> list[str]:
    """Names of the fields that have no default.

    Example:
        >>> from polyak.averaging.rules import EMA
        >>> required(EMA)
        ['decay']
    """
    return [field.name for field in fields(rule) if field.default is MISSING]
