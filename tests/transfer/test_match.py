"""Pairing as a law: no source goes twice, no shape is crossed, names that can be undone are undone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from polyak.errors import AmbiguousMatch, MissingWeight, PolyakError, WeightError
from polyak.manifest import State
from polyak.renaming import apply_rename
from polyak.snapshot import Array, Item, Snapshot
from polyak.transfer.match import Pairing, key_of, pair
from polyak.transfer.nearest import nearest
from polyak.transfer.plan import make_plan
from polyak.transfer.target import PutBack, Target
from polyak.weights import Evidence, Kind, Weight

STEPS = st.sampled_from(["a", "b", "net", "blocks", "0", "1", "2", "kernel"])
PATHS = st.lists(STEPS, min_size=1, max_size=4).map("/".join)
SHAPES = st.sampled_from([(), (2,), (3,), (2, 3)])
KINDS = st.sampled_from([Kind.TRAINABLE, Kind.TRAINABLE, Kind.STATISTIC, Kind.SEED])
BY = st.sampled_from(["path", "structure", "name", "creation", "position"])


@st.composite
def weights(draw: st.DrawFn) -> list[Weight]:
    """A model's weights: unique paths and positions; other evidence may be shared, contradictory or absent."""
    made = []
    for position, path in enumerate(draw(st.lists(PATHS, unique=True, max_size=6))):
        structure, name, creation = draw(PATHS), draw(PATHS), draw(PATHS)
        evidence = Evidence(structure, name, creation, "Dense", path.split("/")[-1], position, "float32")
        known = draw(st.booleans())
        made.append(Weight(path, draw(SHAPES), "float32", draw(KINDS), evidence if known else None))
    return made


@st.composite
def two_models(draw: st.DrawFn) -> tuple[list[Weight], list[Weight]]:
    """A model and what became of it: in another order, perhaps in a scope, less some, with other evidence."""
    source = draw(weights())
    other = {w.path: w.evidence for w in draw(weights())}
    scope, dropped = draw(st.sampled_from(["", "", "outer/"])), draw(st.sampled_from([0, 0, 0, 1]))
    kept = draw(st.permutations(source))[dropped:]
    target = [
        replace(w, path=scope + w.path, evidence=other.get(w.path, w.evidence), shape=draw(st.just(w.shape) | SHAPES))
        for w in kept
    ]
    return (source, target) if draw(st.booleans()) else (target, source)


class Memory(Target):
    """Arrays in memory as a target."""

    label = "memory"

    def __init__(self, held: list[Weight]) -> None:
        self._weights = tuple(held)
        self.values = {w.path: np.zeros(w.shape, w.dtype) for w in held}

    @property
    def weights(self) -> tuple[Weight, ...]:
        return self._weights

    def read(self, path: str) -> Array:
        return self.values[path].copy()

    def write(self, path: str, value: Array) -> None:
        self.values[path] = value.copy()

    def hold(self, path: str) -> PutBack:
        old = self.values[path]
        return lambda: self.values.update({path: old})


def snapshot(held: list[Weight], state: State | None = None) -> Snapshot:
    """Every weight holds a number of its own."""
    items = [
        Item("raw", w, lambda w=w, n=n: np.full(w.shape, n, w.dtype))  # type: ignore[misc]
        for n, w in enumerate(held, start=1)
    ]
    return Snapshot(items, {"raw": state}, "snapshot")


def assert_partition(pairing: Pairing, source: list[Weight], target: list[Weight]) -> None:
    """Each weight is in one pair, or among those without a partner."""
    assert sorted(w.path for w in source) == sorted(
        [p.source.path for p in pairing.pairs] + [w.path for w in pairing.unexpected]
    )
    assert sorted(w.path for w in target) == sorted(
        [p.target.path for p in pairing.pairs] + [w.path for w in pairing.missing]
    )


@given(weights(), weights(), BY)
def test_pairs_are_one_to_one(source: list[Weight], target: list[Weight], by: Any) -> None:
    try:
        pairing = pair(source, target, by)
    except AmbiguousMatch:
        sides = [[getattr(w.evidence, by) for w in side if w.evidence is not None] for side in (source, target)]
        assert any(len(set(keys)) < len(keys) for keys in sides)
    else:
        assert_partition(pairing, source, target)


@given(weights(), st.dictionaries(PATHS | st.just("a/*") | st.just("*/0/*") | st.just("*"), PATHS, max_size=3))
def test_renamed_pairs_are_one_to_one(source: list[Weight], rename: dict[str, str]) -> None:
    stars = {old: new + "/*" * old.count("*") for old, new in rename.items()}
    target = [Weight(p, (), "float32", Kind.TRAINABLE) for p in {apply_rename(w.path, stars) for w in source}]
    try:
        pairing = pair(source, target, "path", stars)
    except AmbiguousMatch:
        assert len(target) < len(source)
    else:
        assert_partition(pairing, source, target)
        assert {p.source.path: p.target.path for p in pairing.pairs} == {
            w.path: apply_rename(w.path, stars) for w in source
        }


@given(two_models(), BY | st.none(), st.sampled_from([{}, {}, {"exclude": "*a*"}, {"include": "*/*"}]))
def test_a_plan_never_crosses_shapes_and_moves_what_it_says(
    models: tuple[list[Weight], list[Weight]], by: Any, asked: dict[str, Any]
) -> None:
    """Any two models: either an error, or every value is where the plan said, and nothing else moved."""
    source, target = models
    held = Memory(target)
    try:
        plan = make_plan(snapshot(source), held, {"by": by, **asked})  # type: ignore[typeddict-item]
    except PolyakError as error:
        event(type(error).__name__)
        return
    event("moved")
    numbers = {w.path: n for n, w in enumerate(source, start=1)}
    shapes = {w.path: w.shape for w in source}
    targets = {m.target: m.source for m in plan.moves}
    assert len(targets) == len(plan.moves) == len(set(targets.values())) > 0
    plan.apply()
    for w in target:
        expected = numbers[targets[w.path]] if w.path in targets else 0
        assert np.array_equal(held.values[w.path], np.full(w.shape, expected, w.dtype))
        assert w.path in (*targets, *plan.skipped, *plan.left)
        assert w.path not in targets or shapes[targets[w.path]] == w.shape


@given(weights().filter(lambda held: any(w.kind is not Kind.SEED for w in held)))
def test_a_model_pairs_with_itself_whatever_its_evidence_shares(held: list[Weight]) -> None:
    plan = make_plan(snapshot(held), Memory(held), {})
    assert {m.source: m.target for m in plan.moves} == {w.path: w.path for w in held}


@given(st.permutations(["a", "b", "c", "d", "e"]), weights())
def test_a_renaming_round_trip_brings_every_value_home(order: list[str], held: list[Weight]) -> None:
    there = {f"{old}/*": f"{new}/*" for old, new in zip("abcde", order, strict=True)}
    back = {new: old for old, new in there.items()}
    paths = [f"{step}/{w.path}" for w in held for step in "abcde"]
    assert [apply_rename(apply_rename(p, there), back) for p in paths] == paths
    assert sorted(apply_rename(p, there) for p in paths) == sorted(paths)


@pytest.mark.parametrize(
    ("path", "rename", "expected"),
    [
        ("enc/0/kernel", {"enc/*": "encoder/*"}, "encoder/0/kernel"),
        ("enc/0/kernel", {"*/kernel": "*/w"}, "enc/0/w"),
        ("enc/0/kernel", {"*/0/*": "*/first/*"}, "enc/first/kernel"),
        ("enc/0/kernel", {"enc": "encoder"}, "enc/0/kernel"),
        ("enc/0/kernel", {"enc/0/kernel": "k"}, "k"),
        ("enc/0/kernel", {"enc/*": "first/*", "*": "second/*"}, "first/0/kernel"),
        ("a.b[0]/w", {"a.b[0]/*": "c/*"}, "c/w"),
        ("axb/w", {"a.b/*": "c/*"}, "axb/w"),
        ("net/w", {"net/*": "*"}, "w"),
        ("net/w", None, "net/w"),
        ("net/w", str.upper, "NET/W"),
    ],
)
def test_apply_rename(path: str, rename: Any, expected: str) -> None:
    assert apply_rename(path, rename) == expected


@pytest.mark.parametrize(("old", "new"), [("a/*", "b"), ("a", "b/*"), ("*/*", "*")])
def test_stars_must_correspond(old: str, new: str) -> None:
    with pytest.raises(WeightError, match="in the new name, received"):
        apply_rename("a/x" if "*" in old else "a", {old: new})


def weight(path: str, shape: tuple[int, ...] = (2,)) -> Weight:
    return Weight(path, shape, "float32", Kind.TRAINABLE)


def test_two_scopes_that_both_fit_are_refused() -> None:
    """An online and a target network in one file: which one is meant?"""
    source = [weight("online/w"), weight("target/w")]
    with pytest.raises(MissingWeight, match="received nothing from snapshot"):
        make_plan(snapshot(source), Memory([weight("w")]), {})


def test_a_scope_beside_other_weights_is_refused() -> None:
    source = [weight("net/w"), weight("optimizer/m", (5,))]
    with pytest.raises(WeightError, match="'optimizer/m': expected no such weight"):
        make_plan(snapshot(source), Memory([weight("w")]), {})


def test_the_nearest_weight_has_the_shape_or_a_similar_name() -> None:
    candidates = [weight("head/kernel", (2, 2)), weight("body/kernel", (2,)), weight("x", (9,))]
    found: Mapping[str, Weight | None] = {
        "by shape": nearest(weight("heads/kernel"), candidates),
        "by name": nearest(weight("heads/kernel", (4,)), candidates),
        "none": nearest(weight("zzz", (4,)), candidates),
    }
    assert {k: w and w.path for k, w in found.items()} == {
        "by shape": "body/kernel",
        "by name": "head/kernel",
        "none": None,
    }


def test_the_key_of_a_path_is_the_path() -> None:
    assert key_of(Weight("a/kernel", (1,), "float32", Kind.TRAINABLE), "path") == "a/kernel"


def test_a_random_seed_has_no_position() -> None:
    seed = Weight("seed", (2,), "uint32", Kind.SEED, Evidence("", "seed", "", "", "", 3, "uint32"))
    assert key_of(seed, "position") is None


SQUARE = (4, 4)


def hint_of(source: list[Weight], target: list[Weight]) -> str:
    with pytest.raises(WeightError) as error:
        make_plan(snapshot(source), Memory(target), {})
    return error.value.hint or ""


def linears(start: str, *numbers: int) -> list[Weight]:
    return [weight(f"{start}{n}.{end}", shape) for n in numbers for end, shape in (("weight", SQUARE), ("bias", (4,)))]


@pytest.mark.parametrize(
    ("source", "target"),
    [
        (linears("", 0, 2, 4), linears("", 0, 1, 2)),
        (linears("", 0, 1, 2), linears("", 0, 2, 4)),
        (linears("", 0, 1), linears("", 1, 2)),
        (linears("", 9, 10, 11), linears("", 0, 1, 10)),
        (linears("net.", 1, 2), linears("net.", 0, 1)),
        (linears("enc.", 1, 3), linears("net.", 0, 1)),
        (linears("a.", 1, 3) + linears("b.", 0, 2), linears("a.", 0, 1) + linears("b.", 0, 1)),
        (linears("a.0.", 0, 2) + linears("a.2.", 0, 2), linears("a.0.", 0, 2) + linears("a.1.", 0, 2)),
        ([*linears("", 0, 2), weight("x")], [*linears("", 0, 1), weight("x")]),
    ],
)
def test_places_in_a_list_that_has_shifted_are_paired_in_their_order(
    source: list[Weight], target: list[Weight]
) -> None:
    hint = hint_of(source, target)
    rename = eval(hint[hint.index("{") : hint.index("}") + 1])
    plan = make_plan(snapshot(source), Memory(target), {"rename": rename})
    assert [(m.source, m.target) for m in plan.moves] == [(s.path, t.path) for s, t in zip(source, target, strict=True)]


@pytest.mark.parametrize(
    ("source", "target"),
    [
        (linears("", 0, 2, 3), linears("", 0, 1)),
        (linears("a.", 0, 2, 3), linears("b.", 0, 1)),
        ([*linears("", 0), weight("2.scale", (5,))], linears("", 0, 1)),
        ([*linears("", 0), weight("1.bias", (4,)), weight("2.kernel", SQUARE)], linears("", 0, 1)),
        ([weight("0.bias", (4,)), weight("1.gain", SQUARE)], [weight("0.weight", SQUARE), weight("1.bias", (4,))]),
    ],
)
def test_places_in_lists_that_do_not_fit_are_paired_by_no_hint(source: list[Weight], target: list[Weight]) -> None:
    assert "rename={" not in hint_of(source, target)


SPECTRAL = [weight("0.weight_orig", SQUARE), weight("0.weight_u", (4,)), weight("0.weight_v", (4,))]
NORMED = [weight("0.weight_g", (4, 1)), weight("0.weight_v", SQUARE)]
PRUNED = [weight("0.weight_orig", SQUARE), weight("0.weight_mask", SQUARE)]
NEW = [weight("0.parametrizations.weight.original0", (4, 1)), weight("0.parametrizations.weight.original1", SQUARE)]
COMPUTED = {
    "remove_spectral_norm": SPECTRAL,
    "remove_weight_norm": NORMED,
    "prune.remove": PRUNED,
    "parametrize.remove_parametrizations": NEW,
}


@pytest.mark.parametrize("function", COMPUTED)
@pytest.mark.parametrize("other", [[weight("0.weight", SQUARE)], [weight("0.weight", SQUARE), weight("0.bias", (4,))]])
def test_a_part_of_a_weight_is_not_offered_as_the_weight(function: str, other: list[Weight]) -> None:
    parts = [*COMPUTED[function], *other[1:]]
    for source, target in ((parts, other), (other, parts)):
        hint = hint_of(source, target)
        assert f"torch.nn.utils.{function}(layer, name)" in hint
        assert "rename" not in hint


def test_parts_of_two_ways_are_not_offered_for_each_other() -> None:
    for function, parts in COMPUTED.items():
        for other in COMPUTED.values():
            if parts is not other:
                assert "rename" not in (hint := hint_of(parts, other))
                assert function in hint


@pytest.mark.parametrize("parts", COMPUTED.values(), ids=COMPUTED)
def test_the_same_parts_of_a_layer_of_another_name_are_paired(parts: list[Weight]) -> None:
    named = [replace(w, path=w.path.replace("0.", "head.", 1)) for w in parts]
    assert 'rename={"0.*": "head.*"}' in hint_of(parts, named)


def test_names_that_only_end_so_are_paired_as_any() -> None:
    gates = [weight("w_g", SQUARE), weight("w_v", (4, 8))]
    assert 'rename={"w_v": "value"}' in hint_of(gates, [gates[0], weight("value", (4, 8))])
