"""Found variables as described weights: paths, kinds, evidence, and the objects that they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from polyak.errors import ModelError
from polyak.frameworks.keras_anatomy import dtype_name
from polyak.frameworks.keras_saved import Saved
from polyak.frameworks.walk import Found
from polyak.weights import Evidence, Kind, Weight, glob_match, is_floating, is_numeric, unmatched_globs

_UNSAVED = Saved("")


@dataclass(frozen=True, slots=True)
class Described:
    """The weights of a model in its own order, and the variable behind each path."""

    label: str
    weights: tuple[Weight, ...]
    variables: Mapping[str, Any]


def described(
    model: object,
    found: Sequence[Found],
    ordered: Sequence[Any],
    kinds: Mapping[str, Kind],
    saved: Mapping[int, Saved],
) -> Described:
    """What the walk found, as weights.

    Args:
        ordered: the variables in the framework's own order.
        kinds: kinds by glob that override those found.
        saved: where Keras stores each variable, by its id.

    Raises:
        ModelError: there are no weights, two have one path, a glob of ``kinds`` matches none, or one asks for an
            average of what has none.
    """
    if all(f.own.kind is Kind.SEED for f in found):
        raise ModelError(
            f"{describe(model)}: expected at least one weight, received none",
            hint="give the object that owns the variables in its attributes, or call the model once on a batch first",
        )
    _refuse_unmatched_kinds(kinds, found, model)
    _refuse_other_than_numbers(found, model)
    position = _positions(found, ordered)
    weights = [_weight(f, position(f), kinds, saved.get(id(f.own.variable), _UNSAVED)) for f in found]
    _refuse_duplicates(weights, model)
    variables = {w.path: f.own.variable for w, f in zip(weights, found, strict=True)}
    ranked = sorted(weights, key=lambda w: w.evidence.position if w.evidence else 0)
    return Described(describe(model), tuple(ranked), variables)


def describe(model: object) -> str:
    """What errors and receipts call a model: its class, and its name where it has one."""
    name = getattr(model, "name", None)
    kind = type(model).__name__
    return f"{kind} {name!r}" if isinstance(name, str) else kind


def _positions(found: Sequence[Found], ordered: Sequence[Any]) -> Any:
    """The index of a found variable in the framework's order, random seeds not counted."""
    seeds = {id(f.own.variable) for f in found if f.own.kind is Kind.SEED}
    order = {id(v): i for i, v in enumerate(v for v in ordered if id(v) not in seeds)}
    return lambda f: order.get(id(f.own.variable), len(order))


def _weight(found: Found, position: int, kinds: Mapping[str, Kind], saved: Saved) -> Weight:
    step, variable = found.step, found.own.variable
    dtype = dtype_name(variable)
    evidence = Evidence(
        step.structure,
        step.name,
        step.creation,
        found.layer,
        found.own.local,
        position,
        dtype,
        saved.path,
        saved.names,
        saved.again,
    )
    kind = next((k for glob, k in kinds.items() if glob_match(step.path, glob)), found.own.kind)
    if kind is Kind.TRAINABLE and not is_floating(dtype):
        raise ModelError(
            f"weight {step.path!r}: expected real floating-point values to average, received {dtype}",
            hint=f'name it before the glob that reaches it: kinds={{"{step.path}": "counter", ...}} copies it',
        )
    return Weight(step.path, _shape(variable, step.path), dtype, kind, evidence)


def _shape(variable: Any, path: str) -> tuple[int, ...]:
    """A weight's shape; that of the value which it holds, where TensorFlow lets a variable take values of several."""
    is_fixed = getattr(variable.shape, "is_fully_defined", lambda: True)
    if is_fixed():
        return tuple(variable.shape)
    value = variable.read_value().shape
    if not value.is_fully_defined():
        raise ModelError(
            f"weight {path!r}: expected a shape, received one that is unknown while a function is traced",
            hint="do this outside of the function, where the weight has a value",
        )
    return tuple(value)


def _refuse_other_than_numbers(found: Sequence[Found], model: object) -> None:
    """Raise ModelError for what TensorFlow keeps in variables beside numbers: texts, quantised values, handles."""
    for f in found:
        if not is_numeric(dtype_name(f.own.variable)):
            raise ModelError(
                f"{describe(model)}: weight {f.step.path!r}: expected numbers, received a variable of dtype "
                f"{dtype_name(f.own.variable)}, which is no weight",
                hint="hold it outside of what is tracked, or as a constant: tf.constant(...) is no variable",
            )


def _refuse_unmatched_kinds(kinds: Mapping[str, Kind], found: Sequence[Found], model: object) -> None:
    for glob in unmatched_globs([f.step.path for f in found], tuple(kinds)):
        raise ModelError(
            f"kinds={glob!r}: expected a glob of weights, received one that matches none of {describe(model)}",
            hint=f"the paths look like {found[0].step.path!r}; a star also crosses slashes",
        )


def _refuse_duplicates(weights: Sequence[Weight], model: object) -> None:
    seen: dict[str, Weight] = {}
    for w in weights:
        if w.path in seen:
            raise ModelError(
                f"{describe(model)}: weight {w.path!r} exists twice, {seen[w.path].shape} and {w.shape}",
                hint="give the two other names or keys; where a checkpoint was restored before the model was built, "
                "build it first, then restore",
            )
        seen[w.path] = w
