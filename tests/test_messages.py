"""Every error that users meet, as text: what, expected, received, nearest, what to do next. Each from a real call."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import polyak
from polyak import errors

tf = pytest.importorskip("tensorflow")
keras = pytest.importorskip("keras")


def module(**values: Any) -> Any:
    held = tf.Module(name="net")
    for name, value in values.items():
        setattr(held, name, tf.Variable(value))
    return held


def ema(**values: Any) -> polyak.Average:
    average = polyak.EMA(module(**(values or {"w": [1.0, 2.0]})), decay=0.9)
    average.update()
    return average


class Unbuilt(keras.Model):
    def __init__(self, *widths: int) -> None:
        super().__init__(name="mlp")
        self.blocks = [keras.layers.Dense(3) if width else keras.layers.Dropout(0.5) for width in widths or (3,)]

    def call(self, x: Any) -> Any:
        for block in self.blocks:
            x = block(x)
        return x


def built(*widths: int) -> Any:
    model = Unbuilt(*widths)
    model(np.zeros((1, 3), np.float32))
    return model


def saved(folder: Path, name: str = "run.safetensors", weights: str | None = None) -> Path:
    polyak.save(ema(), folder / name, weights)
    return folder / name


def damaged(folder: Path) -> Path:
    path = saved(folder)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    return path


def text_file(folder: Path) -> Path:
    (folder / "notes.txt").write_text("hello")
    return folder / "notes.txt"


def update_while_applied() -> None:
    average = ema()
    with average.applied():
        average.update()


@dataclass(frozen=True)
class Case:
    """A call in an empty folder, and what it raises. The folder is written as DIR in the text."""

    error: type[Exception]
    call: Callable[[Path], Any]
    text: str


CASES = {
    # Models
    "a list is no model": Case(
        errors.ModelError,
        lambda d: polyak.EMA([1, 2], decay=0.9),
        "expected a Keras model, a keras layer, a tf.Module or a torch module, received builtins.list",
    ),
    "a path is no model to follow": Case(
        errors.ModelError,
        lambda d: polyak.EMA("run/ckpt", decay=0.9),
        "expected a Keras model, a keras layer, a tf.Module or a torch module, received builtins.str",
    ),
    "a target of another kind": Case(
        errors.ModelError,
        lambda d: polyak.transfer(module(w=1.0), 3),
        "expected a Keras model, a keras layer, a tf.Module or a torch module, received builtins.int",
    ),
    "a model without weights": Case(
        errors.ModelError,
        lambda d: polyak.EMA(tf.Module(name="empty"), decay=0.9),
        "Module 'empty': expected at least one weight, received none\n"
        "hint: give the object that owns the variables in its attributes, or call the model once on a batch first",
    ),
    "a model that is not built": Case(
        errors.UnbuiltModel,
        lambda d: polyak.save(Unbuilt(), d / "x"),
        "Unbuilt 'mlp': expected a built model, received one without weights yet\n"
        "hint: call it once on a batch; a transfer into it takes sample=, an input shape or a sample input",
    ),
    "a rule that needs weights": Case(
        errors.UnbuiltModel,
        lambda d: polyak.EMA(Unbuilt(), decay=0.9, start="initial"),
        "rule ema:0.9,start=initial starts at the initial weights; Unbuilt is not built yet\n"
        'hint: build the model first, which a model that is never called says by "self.built = True", or use a rule '
        'whose first update copies, such as start="copy"',
    ),
    "values of a model that is not built": Case(
        errors.UnbuiltModel,
        lambda d: polyak.EMA(Unbuilt(), decay=0.9).values(),
        "Unbuilt 'mlp': expected a built model, received one without weights yet\n"
        "hint: call it once on a batch; a transfer into it takes sample=, an input shape or a sample input",
    ),
    # Rules
    "no decay": Case(
        errors.RuleError,
        lambda d: polyak.EMA(module(w=1.0)),
        "expected exactly one of decay, half_life, horizon and tau; received none of them",
    ),
    "two decays": Case(
        errors.RuleError,
        lambda d: polyak.EMA(module(w=1.0), decay=0.9, tau=0.1),
        "expected exactly one of decay, half_life, horizon and tau; received decay and tau",
    ),
    "a negative decay": Case(
        errors.RuleError,
        lambda d: polyak.EMA(module(w=1.0), decay=-1),
        "decay=-1: expected a number in [0.5, 1)",
    ),
    "a decay in percent": Case(
        errors.RuleError,
        lambda d: polyak.EMA(module(w=1.0), decay=99.9),
        "decay=99.9 is above 1\nhint: if you mean 99.9 percent write decay=0.999",
    ),
    "a decay of one": Case(
        errors.RuleError,
        lambda d: polyak.EMA(module(w=1.0), decay=1.0),
        "decay=1 would never move the average\nhint: write a decay below 1, such as decay=0.999",
    ),
    "a decay that is tau": Case(
        errors.RuleError,
        lambda d: polyak.EMA(module(w=1.0), decay=0.001),
        "decay=0.001 would forget 99.9% of the average at each update\n"
        "hint: if you mean tau=0.001 write tau=0.001, i.e. decay=0.999; to insist, construct polyak.rules.EMA(0.001) "
        "directly or write 'ema:0.001,check=off'",
    ),
    "an unknown rule": Case(
        errors.RuleError,
        lambda d: polyak.track(module(w=1.0), "emma:0.9"),
        "'emma:0.9': unknown rule 'emma'\n"
        "hint: did you mean 'ema'? known rules: copy, cosine, diffusers, edm2, ema, inverse-gamma, inverse-power, "
        "linear, mean, polynomial, power, swa, tail, tf, tf-models",
    ),
    "a rule for no weight": Case(
        errors.RuleError,
        lambda d: polyak.track(module(w=1.0), {"haed/*": "mean", "*": None}),
        "glob 'haed/*' matches no weight\nhint: the paths look like 'w'",
    ),
    # Weights
    "a missing weight": Case(
        errors.MissingWeight,
        lambda d: polyak.transfer(module(a=1.0), module(a=1.0, b=[1.0])),
        "weight 'b': expected (1,) float32 for Module 'net', received nothing from Module 'net'\n"
        'hint: leave it as it is with exclude="b"',
    ),
    "a wrong path": Case(
        errors.MissingWeight,
        lambda d: polyak.open(saved(d))["ww"],
        "weight 'ww': not in file 'DIR/run.safetensors'; nearest: 'w'\nhint: its weights are 'w'",
    ),
    "an unexpected weight": Case(
        errors.UnexpectedWeight,
        lambda d: polyak.transfer(module(a=1.0, b=[1.0]), module(a=1.0)),
        "weight 'b': expected no such weight for Module 'net', received (1,) float32 from Module 'net'\n"
        'hint: leave it out with exclude="b"',
    ),
    "another shape": Case(
        errors.ShapeMismatch,
        lambda d: polyak.transfer(saved(d), module(w=[[1.0, 2.0]])),
        "weight 'w': expected (1, 2), received (2,) from file 'DIR/run.safetensors'\nhint: skip it with exclude=\"w\"",
    ),
    "another dtype": Case(
        errors.DtypeMismatch,
        lambda d: polyak.transfer(saved(d), module(w=np.zeros(2, np.float16))),
        "weight 'w': expected float16, received float32 from file 'DIR/run.safetensors'\n"
        'hint: allow the narrower dtype with cast="target"',
    ),
    "two candidates of one shape": Case(
        errors.AmbiguousMatch,
        lambda d: polyak.transfer(built(3, 0, 3, 3), built(3, 3, 3)),
        "weight 'blocks/2/kernel': expected one source, received two of shape (3, 3) from Unbuilt 'mlp': "
        "'blocks/2/kernel' by path and 'blocks/3/kernel' by structure\n"
        'hint: say which evidence is right, by="structure", or name the pairs with rename=',
    ),
    "a source that is not finite": Case(
        errors.NonFinite,
        lambda d: polyak.transfer(module(w=[1.0, np.nan]), module(w=[0.0, 0.0])),
        "weight 'w': expected finite values, received 1 non-finite of 2 from Module 'net'\n"
        'hint: move it all the same with nonfinite="allow"',
    ),
    "an average of what is not finite": Case(
        errors.NonFinite,
        lambda d: ema(w=[np.nan]),
        "weight 'w': expected finite values to start an average from, received NaN, infinity or more than half of "
        "what its average can hold\n"
        "hint: start the average before training diverges, or load finite weights",
    ),
    "values of no numbers": Case(
        errors.DtypeMismatch,
        lambda d: ema().set_values({"w": "text"}),
        "weight 'w': expected an array of numbers, received <U4",
    ),
    "a wrong argument": Case(
        errors.WeightError,
        lambda d: polyak.transfer(module(w=1.0), module(w=1.0), by="names"),
        "by='names': expected one of 'path', 'structure', 'name', 'creation', 'position', 'saved', None",
    ),
    # Roles
    "two roles in a file": Case(
        errors.AmbiguousRole,
        lambda d: polyak.transfer(saved(d, weights="both"), module(w=[0.0, 0.0])),
        "file 'DIR/run.safetensors': expected weights of one role, received 'raw' and 'average'\n"
        'hint: say which: weights="raw" or weights="average"',
    ),
    "a role that is not there": Case(
        errors.AmbiguousRole,
        lambda d: polyak.transfer(saved(d), module(w=[0.0, 0.0]), weights="raw"),
        "file 'DIR/run.safetensors': expected weights of role 'raw', received 'average'\n"
        'hint: say which: weights="average"',
    ),
    "the average of a model": Case(
        errors.AmbiguousRole,
        lambda d: polyak.save(module(w=1.0), d / "x", "average"),
        "Module 'net': expected weights of role 'average', received 'raw'\nhint: say which: weights=\"raw\"",
    ),
    "an update while applied": Case(
        errors.Applied,
        lambda d: update_while_applied(),
        "the average is applied to the model: an update now would average the averaged weights\n"
        "hint: leave the `with ema.applied()` block first",
    ),
    # Files
    "a missing file": Case(
        errors.FileError,
        lambda d: polyak.open(d / "run.safetensors"),
        "file 'DIR/run.safetensors': there is nothing at this path\nhint: check the path",
    ),
    "a file of a similar name": Case(
        errors.FileError,
        lambda d: polyak.open(saved(d).with_name("rum.safetensors")),
        "file 'DIR/rum.safetensors': there is nothing at this path\nhint: nearest: 'DIR/run.safetensors'",
    ),
    "a directory to write": Case(
        errors.FileError,
        lambda d: polyak.save(ema(), d),
        "file 'DIR': expected a file to write, received a directory\nhint: add a file name",
    ),
    "a directory that is missing": Case(
        errors.FileError,
        lambda d: polyak.save(ema(), d / "x" / "run.safetensors"),
        "file 'DIR/x/run.safetensors': its directory does not exist\nhint: create 'DIR/x' first",
    ),
    "a directory to read": Case(
        errors.UnknownFormat,
        lambda d: polyak.open(d),
        "file 'DIR': expected weights, received a directory without a checkpoint\n"
        "hint: polyak reads safetensors, npz, TensorFlow, Orbax, SavedModel, Keras, PyTorch and Flax files",
    ),
    "an unknown format": Case(
        errors.UnknownFormat,
        lambda d: polyak.open(text_file(d)),
        "file 'DIR/notes.txt': expected weights, received a file of no known format\n"
        "hint: polyak reads safetensors, npz, TensorFlow, Orbax, SavedModel, Keras, PyTorch and Flax files",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_message(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    with pytest.raises(case.error) as caught:
        case.call(tmp_path)
    assert type(caught.value) is case.error
    assert without_hint_where_open(name, str(caught.value).replace(str(tmp_path), "DIR")) == case.text


def without_hint_where_open(name: str, text: str) -> str:
    """Which hint fits an object of no framework depends on what was wanted; its first line is fixed."""
    return text.partition("\n")[0] if CASES[name].text.startswith("expected a Keras model") else text


def test_damage_names_the_weight_and_both_digests(tmp_path: Path) -> None:
    path = damaged(tmp_path)
    with pytest.raises(errors.DamagedFile) as caught:
        polyak.transfer(path, module(w=[0.0, 0.0]))
    held = polyak.open(path).manifest.weights[0].digest
    assert caught.value.message.startswith(f"file '{path}': weight 'w': expected bytes with digest {held}, received ")
    assert caught.value.hint == "the file is damaged; restore it from a copy"


def test_a_skipped_update_is_reported() -> None:
    held = module(w=[1.0, 2.0])
    average = polyak.EMA(held, decay=0.9)
    held.w.assign([np.inf, 0.0])
    with pytest.warns(errors.NonFiniteWarning) as caught:
        average.update()
    assert str(caught[0].message) == (
        "weight 'w' is not finite: 1 update(s) skipped, 1 in all; the average keeps its last finite values"
    )


def test_an_immature_average_is_reported() -> None:
    average = polyak.EMA(module(w=[1.0]), decay=0.99, start="initial")
    for _ in range(10):
        average.update()
    with pytest.warns(errors.ImmatureWarning, match="after 10 updates 90.4% of the average still is the value it"):
        polyak.transfer(average, module(w=[0.0]))


def test_every_class_that_a_call_can_raise_has_its_message_here() -> None:
    """TransferError is in transfer/test_commit.py: only an injected fault shows it."""
    family = {c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, errors.PolyakError)}
    shown = {case.error for case in CASES.values()} | {errors.DamagedFile, errors.TransferError, errors.PolyakError}
    assert family - shown == set()


def test_errors_are_also_what_python_calls_them() -> None:
    for error, builtin in {
        errors.RuleError: ValueError,
        errors.MissingWeight: KeyError,
        errors.ShapeMismatch: ValueError,
        errors.FileError: OSError,
        errors.TransferError: RuntimeError,
    }.items():
        assert issubclass(error, builtin)
        assert str(error("what", hint="next")) == "what\nhint: next"
        assert str(error("what")) == "what"


def test_a_good_call_warns_of_nothing(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", errors.PolyakWarning)
        average = ema()
        assert polyak.transfer(average, module(w=[0.0, 0.0])).count == 1
