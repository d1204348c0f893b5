"""Legacy Keras ``.h5`` files: weights by layer and name, and the only Keras files in which averages have names.

``use_ema`` of Keras 3 stores the average of ``net/conv/kernel`` as ``adam/net_conv_kernel_average``, and Keras 2 that
of ``conv/kernel:0`` as ``Adam/average/conv/kernel:0``. The first cannot tell ``a_b/c`` from ``a/b_c``: where a model
has both, no average is taken.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from polyak.contents import Contents
from polyak.dialects.autonumber import creation_keys
from polyak.dialects.keras_file import OPTIMIZER
from polyak.dialects.plain import item
from polyak.errors import DamagedFile
from polyak.manifest import AVERAGE, RAW, Manifest
from polyak.snapshot import Item, Snapshot
from polyak.weights import Evidence, Kind, Weight, is_floating

_ROOTS = ("model_weights/", "")
_OPTIMIZERS = "optimizer_weights/"
_LARGEST = 100_000


@dataclass(frozen=True, slots=True)
class Named:
    """A weight of the file: its key, its layer, and the name that Keras gave it."""

    key: str
    layer: str
    name: str

    @property
    def local(self) -> str:
        return self.name.rsplit("/", 1)[-1].removesuffix(":0")

    @property
    def path(self) -> str:
        """The name from the layer on; a scope before it is dropped, a layer that it lacks is put before it."""
        steps = self.name.removesuffix(":0").split("/")
        inner = steps[steps.index(self.layer) + 1 :] if self.layer in steps[:-1] else steps
        return "/".join([self.layer, *inner])


def interpret(contents: Contents) -> Snapshot | None:
    """None unless the file lists its layers."""
    root = next((r for r in _ROOTS if _listed(contents, f"{r}layer_names")), None)
    if contents.format != "hdf5" or root is None:
        return None
    weights = list(_weights(contents, root))
    if not weights:
        return None
    described = _described(weights, contents)
    raw = [Item(RAW, described[w.key], contents.tensors[w.key].read) for w in weights]
    averages, why = _averages(weights, contents)
    items = raw + [_averaged(i, w, averages, contents) for i, w in zip(raw, weights, strict=True) if averages]
    items += [item(OPTIMIZER, k.removeprefix(_OPTIMIZERS), t) for k, t in contents.tensors.items() if _of_optimizer(k)]
    confidence = "inferred" if averages else "unknown"
    written = Manifest("Keras", {}, (), source=contents.origin, evidence=(why,), confidence=confidence)
    return Snapshot(items, None, contents.origin, contents.integrity, written)


def _of_optimizer(key: str) -> bool:
    return key.startswith(_OPTIMIZERS)


def _listed(contents: Contents, name: str) -> tuple[str, ...]:
    """A list of texts; Keras cuts long ones into ``name0``, ``name1`` ..."""
    whole = contents.facts.get(name)
    parts = [whole] if isinstance(whole, tuple) else []
    for i in range(_LARGEST if not parts else 0):
        part = contents.facts.get(f"{name}{i}")
        if not isinstance(part, tuple):
            break
        parts.append(part)
    return tuple(str(text) for part in parts for text in part)


def _weights(contents: Contents, root: str) -> Iterator[Named]:
    for layer in (*_listed(contents, f"{root}layer_names"), "top_level_model_weights"):
        for name in _listed(contents, f"{root}{layer}/weight_names"):
            key = f"{root}{layer}/{name}"
            if key not in contents.tensors:
                raise DamagedFile(f"{contents.origin}: weight {key!r}: expected by the list of names, received nothing")
            yield Named(key, layer, name)


def _described(weights: list[Named], contents: Contents) -> Mapping[str, Weight]:
    """Paths as polyak gives them to a live model with automatic names; the names of the layers are evidence."""
    families: Counter[str] = Counter()
    numbers: dict[str, tuple[int, str]] = {}
    for w in weights:
        if w.layer not in numbers:
            family = re.sub(r"_\d+$", "", w.layer)
            step = f"{family}_{families[family]}" if families[family] else family
            families[family] += 1
            numbers[w.layer] = len(numbers), step
    times = Counter((w.layer, w.local) for w in weights)
    created = creation_keys(f"{w.layer}/{w.local}" for w in weights)
    described = {}
    for position, w in enumerate(weights):
        number, step = numbers[w.layer]
        # A layer of layers has each local name several times; its path is not in the file.
        local = w.local if times[w.layer, w.local] == 1 else w.name
        tensor = contents.tensors[w.key]
        evidence = Evidence(
            f"#{number}/{local}", w.path, created[f"{w.layer}/{w.local}"], "", w.local, position, tensor.dtype
        )
        kind = Kind.TRAINABLE if is_floating(tensor.dtype) else Kind.COUNTER
        described[w.key] = Weight(f"{step}/{local}", tensor.shape, tensor.dtype, kind, evidence)
    return described


def _averages(weights: list[Named], contents: Contents) -> tuple[Mapping[str, str], str]:
    """The key of the average of each weight that has one, and what is known of them."""
    stored = [k for k in contents.tensors if _of_optimizer(k)]
    found: dict[str, str] = {}
    for key in stored:
        fitting = [w for w in weights if _is_average(key, w.name) and _same_shape(contents, key, w.key)]
        if len(fitting) > 1 or (fitting and fitting[0].key in found):
            return {}, f"optimizer_weights: {key!r} may be the average of several weights, so none is taken"
        if fitting:
            found[fitting[0].key] = key
    if not found:
        return {}, "optimizer_weights: no averages by name; Keras may have written averaged values into the layers"
    return found, (
        f"optimizer_weights: {len(found)} averages by name; Keras writes the average over the layers at the end of fit "
        "with use_ema, and SwapEMAWeights exchanges the two: the file cannot tell"
    )


def _is_average(key: str, name: str) -> bool:
    return key.endswith((f"/{name.replace('/', '_')}_average", f"/average/{name}"))


def _same_shape(contents: Contents, a: str, b: str) -> bool:
    return contents.tensors[a].shape == contents.tensors[b].shape


def _averaged(raw: Item, named: Named, averages: Mapping[str, str], contents: Contents) -> Item:
    """The average of a weight; a weight without one belongs to both sets, as a statistic."""
    key = averages.get(named.key)
    if key is None:
        kind = Kind.STATISTIC if raw.weight.kind is Kind.TRAINABLE else raw.weight.kind
        return replace(raw, role=AVERAGE, weight=replace(raw.weight, kind=kind))
    tensor = contents.tensors[key]
    return Item(AVERAGE, replace(raw.weight, dtype=tensor.dtype), tensor.read)
