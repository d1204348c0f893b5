"""All or nothing: whatever fails at whatever moment, the target is what it was, and if it cannot be, that is said."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import pytest

import polyak
from polyak.errors import DtypeMismatch, TransferError
from polyak.frameworks.hand_over import model_target
from polyak.manifest import State
from polyak.snapshot import Snapshot
from polyak.transfer import commit
from polyak.transfer.commit import value_of
from polyak.transfer.plan import make_plan
from polyak.transfer.target import PutBack, Target
from polyak.weights import Weight

tf = pytest.importorskip("tensorflow")

PATHS = ("a", "b", "c", "d")
NEW = {path: np.full(3, n + 10, np.float32) for n, path in enumerate(PATHS)}
ERRORS = [RuntimeError, MemoryError, KeyboardInterrupt]


class Faulty(Target):
    """A real target, with a fault at the k-th call of one operation. ``after`` lets the operation happen first."""

    def __init__(self, real: Target, operation: str, k: int, fault: Callable[[], Any], after: bool = False) -> None:
        self.real, self.label = real, real.label
        self._operation, self._left, self._fault, self._after = operation, k, fault, after

    def _call(self, operation: str, action: Callable[[], Any]) -> Any:
        self._left -= operation == self._operation
        if operation != self._operation or self._left != 0:
            return action()
        if self._after:
            action()
        return self._fault()

    @property
    def weights(self) -> tuple[Weight, ...]:
        return self.real.weights

    def read(self, path: str) -> Any:
        return self._call("read", lambda: self.real.read(path))

    def write(self, path: str, value: Any) -> None:
        self._call("write", lambda: self.real.write(path, value))

    def hold(self, path: str) -> PutBack:
        put_back = self._call("hold", lambda: self.real.hold(path))
        return lambda: self._call("put back", put_back)

    def hold_state(self) -> PutBack:
        put_back = self._call("hold state", self.real.hold_state)
        return lambda: self._call("put back state", put_back)

    def adopt(self, state: State | None) -> None:
        self._call("adopt", lambda: self.real.adopt(state))


def module() -> Any:
    held = tf.Module()
    for n, path in enumerate(PATHS):
        setattr(held, path, tf.Variable(np.full(3, n, np.float32)))
    return held


def raising(error: type[BaseException]) -> Callable[[], Any]:
    def fault() -> Any:
        raise error("injected")

    return fault


def average() -> Any:
    ema = polyak.EMA(module(), decay=0.9, start="initial")
    ema.update()
    return ema


TARGETS = {"model": (module, model_target), "average": (average, lambda ema: ema.target)}


@pytest.fixture(params=TARGETS)
def held(request: pytest.FixtureRequest) -> tuple[Any, Target]:
    """A live object, and it as a target."""
    make, target_of = TARGETS[request.param]
    live = make()
    return live, target_of(live)


def state_of(live: Any, target: Target) -> Any:
    own = (live.rule, live.count, live.skipped) if isinstance(live, polyak.Average) else None
    return {path: target.read(path).tobytes() for path in PATHS}, own


def apply(target: Target) -> polyak.Receipt:
    source = Snapshot.from_arrays(NEW, "average", State({"rule": "mean"}, 41, 2))
    return make_plan(source, target, {}).apply()


def test_without_a_fault_all_arrives(held: Any) -> None:
    live, target = held
    receipt = apply(Faulty(target, "none", 0, raising(RuntimeError)))
    assert [m.nbytes for m in receipt.moved] == [12] * 4
    values, own = state_of(live, target)
    assert values == {path: value.tobytes() for path, value in NEW.items()}
    assert own in (None, (polyak.parse("mean"), 41, 2))


@pytest.mark.parametrize("after", [False, True], ids=["before it is done", "after it is done"])
@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize(
    ("operation", "k"),
    [*((o, k) for o in ("hold", "write", "read") for k in (1, 2, 3, 4)), ("adopt", 1), ("hold state", 1)],
)
def test_a_failure_at_any_moment_leaves_the_target_as_it_was(
    held: Any, operation: str, k: int, error: type[BaseException], after: bool
) -> None:
    live, target = held
    before = state_of(live, target)
    with pytest.raises(error, match="injected"):
        apply(Faulty(target, operation, k, raising(error), after))
    assert state_of(live, target) == before


@pytest.mark.parametrize("k", [1, 2, 3, 4])
@pytest.mark.parametrize("silent", ["a wrong bit", "nothing"])
def test_a_write_that_does_not_arrive_is_noticed_and_undone(held: Any, k: int, silent: str) -> None:
    live, target = held
    before = state_of(live, target)
    path = PATHS[k - 1]
    wrong = NEW[path].copy()
    wrong.view(np.uint32)[0] ^= 1
    fault = (lambda: target.write(path, wrong)) if silent == "a wrong bit" else (lambda: None)
    with pytest.raises(TransferError) as caught:
        apply(Faulty(target, "write", k, fault))
    assert str(caught.value).startswith(f"weight '{path}': expected bytes with digest ")
    assert str(caught.value).endswith(
        f"; {target.label} was put back as it was\nhint: another thread may be training it: transfer between two steps"
    )
    assert state_of(live, target) == before


def test_a_write_that_hits_another_weight_is_noticed_and_undone(held: Any) -> None:
    live, target = held
    before = state_of(live, target)
    with pytest.raises(TransferError, match="weight 'a': expected bytes with digest"):
        apply(Faulty(target, "write", 4, lambda: target.write("a", NEW["b"]), after=True))
    assert state_of(live, target) == before


class Momentary(Faulty):
    """Notes which moments have begun and not ended whenever it is read or written."""

    def __init__(self, real: Target) -> None:
        super().__init__(real, "none", 0, raising(RuntimeError))
        self.now: list[str] = []
        self.seen: set[tuple[str, ...]] = set()

    @contextmanager
    def passing(self, name: str) -> Iterator[None]:
        self.now.append(name)
        yield
        self.now.remove(name)

    def moment(self) -> AbstractContextManager[None]:
        return self.passing("target")

    def _call(self, operation: str, action: Callable[[], Any]) -> Any:
        self.seen.add(tuple(self.now))
        return action()


def test_all_is_read_and_written_in_one_moment_of_source_and_target(held: Any) -> None:
    target = Momentary(held[1])
    arrays = Snapshot.from_arrays(NEW).items_by_path.values()
    source = Snapshot(arrays, moment=lambda: target.passing("source"))
    make_plan(source, target, {}).apply()
    assert target.seen == {("source", "target")}
    assert target.now == []


def test_an_interrupt_waits_until_all_is_put_back(held: Any) -> None:
    live, target = held
    before = state_of(live, target)

    class Interrupted(Faulty):
        """Ctrl-C comes each time that something is put back."""

        def hold(self, path: str) -> PutBack:
            put_back = self.real.hold(path)
            return lambda: (signal.raise_signal(signal.SIGINT), put_back())[1]

    with pytest.raises(KeyboardInterrupt):
        apply(Interrupted(target, "read", 4, raising(RuntimeError)))
    assert state_of(live, target) == before


def test_an_interrupt_before_the_putting_back_begins_does_not_keep_it_from_being_done(
    held: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    live, target = held
    before, whole, came = state_of(live, target), commit._undo, list[BaseException]()

    def interrupted(*about: Any) -> None:
        came.append(about[-1])
        if len(came) == 1:
            raise KeyboardInterrupt
        whole(*about)

    monkeypatch.setattr(commit, "_undo", interrupted)
    with pytest.raises(KeyboardInterrupt):
        apply(Faulty(target, "write", 3, raising(RuntimeError), after=True))
    assert [type(error) for error in came] == [RuntimeError, KeyboardInterrupt]
    assert state_of(live, target) == before


class Stuck(Faulty):
    """One weight, or the state, cannot be put back."""

    def __init__(self, real: Target, stuck: str, error: type[BaseException], times: int) -> None:
        super().__init__(real, "read", 4, raising(RuntimeError))
        self._stuck, self._error, self._times = stuck, error, times

    def hold(self, path: str) -> PutBack:
        return self._sticking(path, self.real.hold(path))

    def hold_state(self) -> PutBack:
        return self._sticking("state", self.real.hold_state())

    def _sticking(self, name: str, put_back: PutBack) -> PutBack:
        def stuck() -> None:
            if name == self._stuck and self._times > 0:
                self._times -= 1
                raise self._error("stuck")
            put_back()

        return stuck


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("stuck", PATHS)
def test_a_weight_that_cannot_be_put_back_is_named_and_all_others_are(
    held: Any, stuck: str, error: type[BaseException]
) -> None:
    live, target = held
    values, own = state_of(live, target)
    with pytest.raises(TransferError) as caught:
        apply(Stuck(target, stuck, error, times=2))
    assert str(caught.value) == (
        f"{target.label}: expected to put back what it held, could not put back weight '{stuck}': "
        f"{error.__name__}: stuck; all else is as it was\n"
        f"hint: load {target.label} again; what stopped the transfer was RuntimeError: injected"
    )
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert state_of(live, target) == (values | {stuck: NEW[stuck].tobytes()}, own)


def test_a_state_that_cannot_be_put_back_is_named() -> None:
    ema = average()
    values, _ = state_of(ema, ema.target)
    with pytest.raises(TransferError, match="could not put back rule and counts: MemoryError: stuck"):
        apply(Stuck(ema.target, "state", MemoryError, times=2))
    assert state_of(ema, ema.target)[0] == values


@pytest.mark.parametrize("stuck", [*PATHS, "state"])
def test_putting_back_is_tried_again_after_an_interrupt(held: Any, stuck: str) -> None:
    live, target = held
    before = state_of(live, target)
    with pytest.raises(RuntimeError, match="injected"):
        apply(Stuck(target, stuck, KeyboardInterrupt, times=1))
    assert state_of(live, target) == before


def test_a_source_that_fails_while_it_is_read_changes_nothing(held: Any) -> None:
    live, target = held
    before = state_of(live, target)
    ill = {**NEW, "c": np.array([1, np.nan, 2], np.float32)}
    with pytest.raises(polyak.errors.NonFinite, match="weight 'c'"):
        make_plan(Snapshot.from_arrays(ill), target, {}).apply()
    assert state_of(live, target) == before


@pytest.mark.parametrize(
    ("value", "dtype", "peak"),
    [(np.float32([1, -7e4]), "float16", "70000"), (np.int64([2**40]), "int32", "1099511627776")],
)
def test_a_value_out_of_the_range_of_its_place_is_refused(value: Any, dtype: str, peak: str) -> None:
    message = f"weight 'w': expected values in the range of {dtype}, received up to {peak} from there"
    with pytest.raises(DtypeMismatch, match=message):
        value_of("w", value, dtype, "there", finite=True)


def test_another_transfer_works_after_a_failed_one(held: Any) -> None:
    _, target = held
    with pytest.raises(KeyboardInterrupt):
        apply(Faulty(target, "write", 3, raising(KeyboardInterrupt)))
    assert len(apply(target).moved) == 4


@pytest.mark.parametrize(
    ("array", "dtype"),
    [
        (np.int32([-1]), "uint32"),
        (np.uint64([2**63 + 5]), "int64"),
        (np.int64([-5]), "uint64"),
        (np.int64([2**40]), "int32"),
        (np.int8([-1]), "uint64"),
    ],
)
def test_a_cast_never_changes_a_sign(array: Any, dtype: str) -> None:
    with pytest.raises(DtypeMismatch, match=f"expected values in the range of {dtype}"):
        value_of("w", array, dtype, "source", finite=True)
    assert value_of("w", array - array, dtype, "source", finite=True).dtype.name == dtype


@pytest.mark.parametrize("names", [("a", "b"), ("b", "a")])
def test_modules_that_share_variables_under_other_names_change_them(names: tuple[str, str]) -> None:
    shared = {"a": tf.Variable([1.0, 2.0]), "b": tf.Variable([3.0, 4.0])}
    source, target = tf.Module(), tf.Module()
    source.first, source.second = shared["a"], shared["b"]
    target.first, target.second = shared[names[0]], shared[names[1]]
    polyak.transfer(source, target, by="path")
    assert target.first.numpy().tolist() == [1.0, 2.0]
    assert target.second.numpy().tolist() == [3.0, 4.0]
