"""Keras' own files (``.weights.h5``, ``.keras``, sharded): weights by their place, optimizers, and averages in them.

The files name no weight: ``layers/dense_1/vars/0`` is the first variable of the second Dense. A live model knows where
Keras would store each of its weights, so these places are what the two sides are paired by.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from urllib.parse import quote, unquote

from polyak.contents import Contents
from polyak.dialects.called import roles_of
from polyak.dialects.keras_optimizer import Verdict, judge
from polyak.dialects.plain import item
from polyak.errors import DamagedFile
from polyak.manifest import AVERAGE, RAW, Manifest, Memo, State, decode_memo
from polyak.snapshot import Item, Snapshot
from polyak.weights import Evidence, Kind, Weight

OPTIMIZER = "optimizer"
FORMATS = ("hdf5", "keras", "keras_shards")
TRAINING = "training"
_KEPT = re.compile(r"(?<![^/])_polyak_[^/]*")  # an average by its name, with slashes and percent signs escaped
_PLACES = (
    "layers: the file has their classes and order, and no keys of dictionaries; layers of one class and shape that "
    "changed places are told apart only if they have names of their own"
)
_METRIC = re.compile(r"(.+/)?_?metrics/.+")  # those of Keras 2, which stores the state of its metrics
_PLACE = re.compile(r"(?:.+/)?vars/[^/]+")
_LARGEST_MEMO = 1 << 28


@dataclass(frozen=True, slots=True)
class Own:
    """An average of polyak's in the file: the object that holds it, its note and its counts."""

    path: str
    memo: Memo
    state: State


@dataclass(frozen=True)
class KerasFile:
    """The contents, sorted by what they are."""

    contents: Contents

    @cached_property
    def averages(self) -> tuple[Own, ...]:
        owners = [key.removesuffix("vars/memo") for key in self.contents.tensors if key.endswith("vars/memo")]
        return tuple(self._own(o.rstrip("/")) for o in owners if f"{o}vars/counts" in self.contents.tensors)

    @cached_property
    def optimizers(self) -> tuple[str, ...]:
        """Objects called optimizer whose first variable counts: a whole number without axes."""
        groups = {key.rpartition("/vars/")[0] for key in self.contents.tensors if "/vars/" in key}
        return tuple(sorted(g for g in groups if g.endswith(OPTIMIZER) and self._counts(f"{g}/vars/0")))

    @cached_property
    def weights(self) -> tuple[str, ...]:
        """Keys that belong to neither an average nor an optimizer, in the order of their numbers."""
        others = tuple(f"{o}/" for o in (*self.optimizers, *(a.path for a in self.averages)))
        rest = (k for k in self.contents.tensors if not _METRIC.fullmatch(k) and not (others and k.startswith(others)))
        return tuple(sorted(rest, key=natural))

    @cached_property
    def places(self) -> Mapping[str, Weight]:
        """What an average that follows the whole model says of the raw weights, by their place."""
        for own in self.averages:
            placed = {w.evidence.saved: w for w in own.memo.weights if w.evidence and w.evidence.saved}
            if placed.keys() == set(self.weights) and all(
                self.contents.tensors[k].shape == w.shape for k, w in placed.items()
            ):
                return placed
        return {}

    def raw(self, key: str) -> Item:
        tensor = self.contents.tensors[key]
        if key in self.places:
            return Item(RAW, replace(self.places[key], dtype=tensor.dtype), tensor.read)
        held = item(RAW, key, tensor)
        evidence = Evidence(key, key, key, "", "", 0, tensor.dtype, key, self._names(key))
        return replace(held, weight=replace(held.weight, evidence=evidence))

    def shadows(self, own: Own, role: str) -> Iterator[Item]:
        """The averaged values; a random seed is no part of them."""
        for weight in own.memo.weights:
            key = f"{own.path}/vars/shadows:{encoded(weight.path)}"
            tensor = self.contents.tensors.get(key)
            if tensor is None or tensor.shape != weight.shape:
                raise DamagedFile(
                    f"{self.contents.origin}: weight {weight.path!r}: expected an average of {weight.shape}, "
                    f"received {tensor.shape if tensor else 'nothing'} at {key!r}"
                )
            yield Item(role, replace(weight, dtype=tensor.dtype), tensor.read)

    def _own(self, path: str) -> Own:
        memo, counts = (self.contents.tensors[f"{path}/vars/{name}"] for name in ("memo", "counts"))
        if memo.dtype != "uint8" or len(memo.shape) != 1 or memo.shape[0] > _LARGEST_MEMO or counts.shape != (2,):
            raise DamagedFile(
                f"{self.contents.origin}: {path!r}: expected the note of an average, received something else"
            )
        note = decode_memo(memo.read().tobytes())
        count, skipped = (int(n) for n in counts.read())
        if min(count, skipped) < 0:
            raise DamagedFile(
                f"{self.contents.origin}: {path!r}: expected counts of updates, received {count}, {skipped}"
            )
        return Own(path, note, State(note.rule, count, skipped))

    def _counts(self, key: str) -> bool:
        tensor = self.contents.tensors.get(key)
        return tensor is not None and tensor.shape == () and tensor.dtype.startswith("int")

    def _names(self, key: str) -> tuple[str, ...]:
        """The names of the layers around a weight, without the model's."""
        steps = key.rpartition("/vars/")[0].split("/")
        groups = ("/".join(steps[: n + 1]) for n in range(len(steps)))
        return tuple(str(n) for n in (self.contents.facts.get(f"{g}/vars/name") for g in groups) if isinstance(n, str))


def interpret(contents: Contents) -> Snapshot | None:
    """None unless every array lies where Keras puts it."""
    if contents.format not in FORMATS or not contents.tensors or not all(map(_PLACE.fullmatch, contents.tensors)):
        return None
    file = KerasFile(contents)
    verdict = judge(contents, file.weights, file.optimizers)
    items = [file.raw(key) for key in file.weights]
    items += (item(TRAINING, key, contents.tensors[key]) for key in contents.tensors if _METRIC.fullmatch(key))
    states: dict[str, State | None] = {}
    roles = _roles([own.path for own in file.averages])
    for own in file.averages:
        items += file.shadows(own, roles[own.path])
        states[roles[own.path]] = own.state
    if verdict.average:
        role = AVERAGE if not file.averages else f"{AVERAGE}:{OPTIMIZER}"
        items += (_averaged(file.raw(key), role, verdict, contents) for key in file.weights)
        states[role] = verdict.state
    of_optimizers = (k for k in contents.tensors if k.startswith(tuple(f"{o}/" for o in file.optimizers)))
    items += (
        item(OPTIMIZER, key, contents.tensors[key]) for key in sorted(of_optimizers, key=natural) if file.optimizers
    )
    return Snapshot(items, states, contents.origin, contents.integrity, _written(file, verdict))


def _roles(paths: list[str]) -> dict[str, str]:
    """The roles of averages by their paths, with the names that users gave them."""
    named = {path: _KEPT.sub(_unescaped, path) for path in paths}
    if len(set(named.values())) < len(paths):
        named = {path: path for path in paths}
    roles = roles_of(named.values())
    return {path: roles[name] for path, name in named.items()}


def _unescaped(found: re.Match[str]) -> str:
    """A name as it was before ``polyak.Averages`` made an attribute of it; other attributes stay as they are."""
    name = unquote(found[0])
    return name if encoded(name) == found[0] else found[0]


def natural(key: str) -> list[tuple[int, str]]:
    """Order in which 10 comes after 9."""
    return [(int(s), "") if s.isdigit() else (0, s) for s in re.split(r"(\d+)", key)]


def encoded(path: str) -> str:
    """A path as one name, as averages store it: only the percent sign and the slash are written otherwise."""
    return path.replace("%", quote("%")).replace("/", quote("/", safe=""))


def _averaged(raw: Item, role: str, verdict: Verdict, contents: Contents) -> Item:
    """The average of a weight; a weight without one belongs to both sets, as a statistic."""
    assert raw.weight.evidence is not None
    key = verdict.average.get(raw.weight.evidence.saved)
    if key is None:
        kind = Kind.STATISTIC if raw.weight.kind is Kind.TRAINABLE else raw.weight.kind
        return replace(raw, role=role, weight=replace(raw.weight, kind=kind))
    tensor = contents.tensors[key]
    return Item(role, replace(raw.weight, dtype=tensor.dtype), tensor.read)


def _written(file: KerasFile, verdict: Verdict) -> Manifest:
    version = _version(file.contents)
    stated = tuple(
        f"{own.path}: an average of polyak's, by the note beside its values: stated" for own in file.averages
    )
    evidence = (*stated, *verdict.evidence, *(() if file.places else (_PLACES,)))
    return Manifest(version, {}, (), source=file.contents.origin, evidence=evidence, confidence=verdict.confidence)


def _version(contents: Contents) -> str:
    read = contents.texts.get("metadata.json")
    found = re.search(rb'"keras_version"\s*:\s*"([\w.]{1,30})"', read()) if read else None
    return f"Keras {found.group(1).decode()}" if found else "Keras"
