"""What the walk needs to know of Keras: Keras 3 and the legacy tf_keras, which differ in few names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import compress
from types import ModuleType
from typing import Any

from polyak.errors import ModelError
from polyak.frameworks.keras_wrapped import Buffer, tensors_of
from polyak.frameworks.walk import Anatomy, Found, Own, Sibling, Step, called, entries, leaves, numbered, steps, walk
from polyak.weights import Kind, is_floating, is_numeric

_UNNAMED = re.compile(r"(variable|Variable)(_\d+)?(:0)?")


@dataclass(frozen=True, slots=True)
class Flavour:
    """One of the two Keras packages.

    Attributes:
        module: the package.
        lists: names of a layer's lists of its own trainable and other variables.
        own_names: attributes that belong to Keras, not to the user.
    """

    module: ModuleType
    lists: tuple[str, str]
    own_names: frozenset[str]

    @classmethod
    def keras3(cls, keras: ModuleType) -> Flavour:
        return cls(keras, ("_trainable_variables", "_non_trainable_variables"), _own_names(keras))

    @classmethod
    def legacy(cls, tf_keras: ModuleType) -> Flavour:
        return cls(tf_keras, ("_trainable_weights", "_non_trainable_weights"), _own_names(tf_keras))

    def is_layer(self, obj: object) -> bool:
        """Metrics are no part of the model: their variables are neither averaged nor moved."""
        return isinstance(obj, self.module.layers.Layer) and not isinstance(obj, self.module.metrics.Metric)

    def is_chain(self, obj: object) -> bool:
        """Sequential and functional models, whose layers are told apart by their order alone."""
        if not isinstance(obj, self.module.Model):
            return False
        return isinstance(obj, self.module.Sequential) or self._is_functional(obj)

    def anatomy(self) -> Anatomy:
        return Anatomy(self.own, self.children)

    def own(self, layer: Any) -> list[Own]:
        """A layer's own variables, random seeds included, under names that are unique in it."""
        trainable, others = (list(getattr(layer, name)) for name in self.lists)
        inner = tensors_of(layer)
        known = set(map(id, inner.values()))
        listed = [(v, True) for v in trainable] + [(v, False) for v in others]
        variables = [(v, trained) for v, trained in listed if id(v) not in known]
        held = _attribute_names(layer, self.own_names)
        names = [self._without_number(v.name, layer) for v, _ in variables]
        _refuse_orphans(layer, names, [id(v) in held for v, _ in variables])
        locals_ = _local_names(names, [held.get(id(v), "variable") for v, _ in variables])
        own = [_inner(name, v) for name, v in inner.items()]
        own += [Own(name, v, kind_of(v, moved)) for name, (v, moved) in zip(locals_, variables, strict=True)]
        return own + [
            Own(f"{held.get(id(s), 'seed_generator')}/state", s.state, Kind.SEED)
            for s in getattr(layer, "_seed_generators", ())
        ]

    def children(self, layer: Any) -> Iterator[tuple[Step, Any]]:
        """Layers in a chain, then layers in attributes, lists and dictionaries, then what only Keras knows of."""
        seen: set[int] = set()
        for step, child in (*self._chain(layer), *self._attributes(layer)):
            seen.add(id(child))
            yield step, child
        rest = [x for x in _sublayers(layer) if id(x) not in seen and self.is_layer(x)]
        yield from zip(steps(self._unnamed(rest)), rest, strict=True)

    def _chain(self, layer: Any) -> list[tuple[Step, Any]]:
        layers = [x for x in layer.layers if self.is_layer(x)] if self.is_chain(layer) else []
        return list(zip(steps(self._unnamed(layers)), layers, strict=True))

    def _attributes(self, layer: Any) -> Iterator[tuple[Step, Any]]:
        attributes = sorted(user_attributes(layer, self.own_names), key=lambda kv: (kv[0].startswith("_"), kv[0]))
        held = [(key, self._short(key, value, layer), value) for key, value in attributes if self._holds(value)]
        for name, (_, _, value) in zip(called(held), held, strict=True):
            if self.is_layer(value):
                yield Step.named(name, self._named_within(layer, value)), value
            else:
                yield from contained(name, value, self.is_layer, self.sibling)

    def _holds(self, value: object) -> bool:
        """Whether an attribute is a layer, or a container with one in it."""
        return self.is_layer(value) or any(True for _ in contained("", value, self.is_layer, self.sibling))

    def _short(self, key: str, value: object, owner: Any) -> str:
        """An attribute without leading underscores; of a private one the explicit name of the layer that it holds."""
        if not key.startswith("_"):
            return key
        return (self._named_within(owner, value) if self.is_layer(value) else None) or key.lstrip("_")

    def _named_within(self, owner: Any, layer: Any) -> str | None:
        explicit = self.explicit_name(layer)
        return None if explicit is None else self._without_number(explicit, owner)

    def _unnamed(self, layers: Sequence[Any]) -> list[Sibling]:
        """Siblings of a chain: called by their explicit name, else by class and number."""
        explicit = [self.explicit_name(x) for x in layers]
        families = [snake_case(type(x).__name__) for x, name in zip(layers, explicit, strict=True) if name is None]
        auto = iter(numbered(families, taken=[n for n in explicit if n]))
        return [self.sibling(name or next(auto), x) for name, x in zip(explicit, layers, strict=True)]

    def sibling(self, key: str, layer: Any) -> Sibling:
        family = snake_case(type(layer).__name__)
        explicit = self.explicit_name(layer)
        born = None if explicit else _number(layer.name)
        return Sibling(key, explicit, family, born, owns=bool(layer.weights))

    def explicit_name(self, layer: Any) -> str | None:
        """The layer's name if the user gave it; None for ``dense`` and ``dense_7`` on a Dense."""
        name: str = layer.name
        family = snake_case(type(layer).__name__)
        # tf_keras calls its functional models after the class that the user called, Model.
        prefix = "(functional|model)" if family == "functional" else re.escape(family)
        return None if re.fullmatch(rf"{prefix}(_\d+)?", name) else name

    def _without_number(self, name: str, owner: Any) -> str:
        """A name that was made from its owner's automatic one (``block_3_kernel``), less the number in it."""
        if self.explicit_name(owner) is not None:
            return name
        return re.sub(rf"(?<![^\W_]){re.escape(owner.name)}(?![^\W_])", re.sub(r"_\d+$", "", owner.name), name)

    def _is_functional(self, model: Any) -> bool:
        functional = getattr(model, "_is_graph_network", None)
        if functional is not None:
            return bool(functional)
        return (
            isinstance(model, self.module.Model) and "_functional" not in vars(model) and "_operations" in vars(model)
        )


def found_in(model: Any, flavour: Flavour) -> Iterator[Found]:
    """Every variable of a Keras 3 model, random seeds included. Raises ModelError for one that no attribute holds."""
    found = list(walk(model, flavour.anatomy()))
    reached = {id(f.own.variable) for f in found}
    for variable in model.variables:
        if id(variable) not in reached:
            raise ModelError(
                f"{type(model).__name__} {model.name!r}: weight {variable.path!r} is in no attribute, list or "
                "dictionary of the model",
                hint="hold the layer that owns it in an attribute",
            )
    yield from found


def paths_in(model: Any, flavour: Flavour) -> dict[int, str]:
    """Structural paths of a model's variables, by the variable's identity."""
    return {id(f.own.variable): f.step.path for f in found_in(model, flavour)}


def contained(
    key: str,
    value: object,
    wanted: Callable[[object], bool],
    sibling: Callable[[str, Any], Sibling],
    above: frozenset[int] = frozenset(),
) -> Iterator[tuple[Step, Any]]:
    """Wanted objects in nested lists, tuples and dictionaries, with the steps that lead to them.

    Args:
        above: ids of the containers around this one: one that holds itself is gone into once.
    """
    held = entries(value)
    if held is None or id(value) in above:
        return
    within = above | {id(value)}
    if isinstance(value, Mapping):
        for step, x in held:
            at = f"{key}/{step}"
            named = [(Step.named(at, sibling(at, x).explicit), x)] if wanted(x) else None
            yield from named or contained(at, x, wanted, sibling, within)
        return
    direct = [(step, x) for step, x in held if wanted(x)]
    listed = steps([sibling(step, x) for step, x in direct])
    yield from ((Step.named(key) / step, child) for step, (_, child) in zip(listed, direct, strict=True))
    for step, x in held:
        if not wanted(x):
            yield from contained(f"{key}/{step}", x, wanted, sibling, within)


def kind_of(variable: Any, trained: bool) -> Kind:
    """What a variable is for. A frozen weight stays trainable: freezing is a state of training, not of the weight."""
    name = dtype_name(variable)
    if not (is_numeric(name) and is_floating(name)):
        return Kind.COUNTER
    return Kind.TRAINABLE if trained else Kind.STATISTIC


def dtype_name(variable: Any) -> str:
    """The name of the dtype that a variable holds, whether the framework gives a name or an object.

    Within a layer of mixed precision both Keras give another for ``dtype``: that of what is read there.
    """
    given = (getattr(variable, name, None) for name in ("true_dtype", "_dtype", "dtype"))
    dtype = next(d for d in given if d is not None)
    return dtype if isinstance(dtype, str) else str(dtype.name)


def snake_case(name: str) -> str:
    """The class name as Keras writes it into automatic layer names.

    Example:
        >>> snake_case("BatchNormalization"), snake_case("Conv2DTranspose")
        ('batch_normalization', 'conv2d_transpose')
    """
    name = re.sub(r"\W+", "", name)
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()


def _number(auto_name: str) -> int:
    digits = re.search(r"_(\d+)$", auto_name)
    return int(digits.group(1)) if digits else 0


def _sublayers(layer: Any) -> Iterable[Any]:
    return getattr(layer, "_layers", None) or getattr(layer, "_self_tracked_trackables", None) or ()


@cache
def _own_names(keras: ModuleType) -> frozenset[str]:
    """Attributes of a bare layer and a bare model: what is not among them, the user made.

    The two have names, so that they use up no automatic number of the user's layers.
    """
    bare = (keras.layers.Layer(name="polyak"), keras.Model(name="polyak"))
    return frozenset({*vars(bare[0]), *vars(bare[1]), "_functional", "_operations", "optimizer", "_torch_params"})


def _inner(name: str, variable: Any) -> Own:
    """A tensor of a module of PyTorch, whose parameters are weights also while they are frozen."""
    *within, local = name.split(".")
    return Own(local, variable, kind_of(variable, not isinstance(variable, Buffer)), "/".join(within))


def _attribute_names(layer: Any, own_names: frozenset[str]) -> dict[int, str]:
    """Attribute path of everything that the layer's user attributes hold."""
    names: dict[int, str] = {}
    for key, value in user_attributes(layer, own_names):
        for path, leaf in leaves(key.lstrip("_"), value):
            names.setdefault(id(leaf), path)
    return names


def is_complete(model: Any) -> bool:
    """Whether a Keras model has its weights: it is built, or all layers in it are and it makes none of its own.

    A model whose ``train_step`` calls the models in it, as in a GAN, is never called itself, and so never built.
    """
    if model.built:
        return True
    makes_none = getattr(type(model).build, "_is_default", False)
    # Asked last: a Sequential of Keras 2 raises while one of its layers is not built.
    return makes_none and all(x.built for x in model._flatten_layers(include_self=False)) and bool(model.weights)


def user_attributes(layer: Any, own_names: frozenset[str]) -> list[tuple[str, Any]]:
    """The attributes that neither Keras nor TensorFlow's tracking (``_self_...``) made.

    Where Keras runs on PyTorch, a layer is a module, which keeps the layers in it beside its attributes.
    """
    modules = vars(layer).get("_modules") or {}
    held = {**vars(layer), **modules} if isinstance(modules, dict) else vars(layer)
    return [(k, v) for k, v in held.items() if k not in own_names and not k.startswith("_self_")]


def _refuse_orphans(layer: Any, names: Sequence[str], held: Sequence[bool]) -> None:
    """Refuse a variable that the layer lists and does not use, beside one of its name that it uses."""
    in_use = set(compress(names, held))
    for name, used in zip(names, held, strict=True):
        if not used and name in in_use:
            raise ModelError(
                f"{type(layer).__name__} {layer.name!r}: weight {name!r} exists twice, and the layer uses only one",
                hint="a checkpoint restored before the model was built does this: build it first, then restore",
            )


def _local_names(names: Sequence[str], held: Sequence[str]) -> list[str]:
    """A variable's own name where that tells it apart in its layer, else the attribute that holds it."""
    plain = [n.rsplit("/", 1)[-1].removesuffix(":0") for n in names]
    clear = {n for n, times in Counter(plain).items() if times == 1 and not _UNNAMED.fullmatch(n)}
    first = [n if n in clear else attribute for n, attribute in zip(plain, held, strict=True)]
    return numbered(first) if len(set(first)) < len(first) else first
