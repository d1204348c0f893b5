"""The verbs of a hand-over: plan and transfer, between models, averages and files, and plans that were stored."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Unpack, cast

from polyak.combine.convert import Choosing, Converted, converted
from polyak.errors import FileError, RuleError, WeightError
from polyak.file_verbs import PathLike, moment_of, open, refuse_parts, shared, source_of, written
from polyak.frameworks import Average
from polyak.frameworks.hand_over import model_target, plan_into_model, warn_if_biased, warn_if_immature
from polyak.manifest import RAW
from polyak.snapshot import Snapshot
from polyak.transfer import stored as plans
from polyak.transfer.like import Like, filled
from polyak.transfer.plan import Asked, Plan, make_plan
from polyak.transfer.receipt import Receipt
from polyak.transfer.stored import StoredPlan
from polyak.transfer.target import Target
from polyak.verbs import both_of, save, saver


class Asking(Asked, total=False):
    """What a caller may ask of a transfer; see ``polyak.transfer.plan.Asked``.

    Attributes:
        weights: which set of the source to move: "raw", "average" or "average:NAME".
        sample: for a target that is not built yet: its input shape as a tuple, or a sample input.
        plan: a plan that was stored with ``Plan.to_json`` and perhaps edited: its path, or what ``read_plan`` gives.
            It is checked anew against both ends.
        like: for a file as target: the model, average, snapshot or file whose structure it gets.
    """

    weights: str | None
    sample: Any
    plan: StoredPlan | PathLike | None
    like: Any


def plan(source: Any, target: Any, **asking: Unpack[Asking]) -> Plan:
    """Pair and check everything between any source and a live model, an average or a file's structure.

    Nothing is written.

    Args:
        source: a model, an average, a snapshot, or the path of a file.
        target: a model or an average; or a snapshot or the path of a file, whose names, shapes and dtypes count.

    Raises:
        AmbiguousRole: the source holds several sets; say ``weights=``.
        MissingWeight, UnexpectedWeight, ShapeMismatch, DtypeMismatch, AmbiguousMatch: the two do not fit.
        UnbuiltModel: the target has no weights yet; give ``sample=``.
        RuleError: an average is to go on from a file or snapshot that has no rule and count.
    """
    made = _planned(source, target, asking)
    warn_if_biased(made.source)
    return made


def _planned(source: Any, target: Any, asking: Asking) -> Plan:
    weights, sample = asking.pop("weights", None), asking.pop("sample", None)
    if asking.pop("like", None) is not None:
        raise WeightError("like= is the structure of a file that is written", hint="give it as the target of plan")
    stored = asking.pop("plan", None)
    if stored is not None:
        return _as_stored(stored, source, target, weights, sample, asking)
    held = source_of(source, weights)
    asked = cast(Asked, asking)
    if isinstance(target, Average):
        if isinstance(source, (Snapshot, str, os.PathLike)) and weights != RAW:
            _refuse_stateless(held, target)
        return make_plan(held, _shadows(target, sample), asked)
    if isinstance(target, (Snapshot, str, os.PathLike)):
        return make_plan(held, structure_of(target, weights), asked)
    return plan_into_model(held, target, asked, sample)


def _shadows(average: Average, sample: Any) -> Target:
    """The values of an average; the model that it follows is built first if a sample is given."""
    if sample is not None:
        model_target(average.followed(), sample)
    return average.target


def _refuse_stateless(held: Snapshot, average: Average) -> None:
    """Raise RuleError for a file from which an average would begin anew, unless that was asked for."""
    if held.state is None:
        received = "raw weights" if held.roles == (RAW,) else "an average without them"
        raise RuleError(
            f"{held.origin}: expected the rule and count of an average, from which {average.label} goes on, received "
            f"{received}",
            hint='weights="raw" lets it begin anew; ema.set_values(snapshot) takes values, and the count stays',
        )


def transfer(source: Any, target: Any, **asking: Unpack[Asking]) -> Receipt:
    """Move weights between any two of model, average and file, all or nothing, and prove that they arrived.

    Averaged weights go into a model; the whole state (values, counts, rule) goes into another average.
    Takes what ``plan`` takes. A path as target is written as ``save`` writes it: with ``like=`` under the names and in
    the dtypes of another model or file, checked as for a live model; with ``plan=`` as that plan says.
    """
    if not isinstance(target, (str, os.PathLike)):
        return plan(source, target, **asking).apply()
    if not asking.keys() - {"weights"}:
        return save(source, target, asking.get("weights"))
    refuse_parts(target, [source])
    with moment_of(source):
        made = into_file(source, target, **asking)
        return written(made.snapshot, target, shared(saver(os.fspath(target)), source), made)


def into_file(source: Any, target: PathLike, **asking: Unpack[Asking]) -> Converted:
    """What ``transfer`` would write into a file; nothing is read or written."""
    like, stored = asking.pop("like", None), asking.get("plan")
    if like is not None:
        return _view(source, structure_of(like, asking.get("weights")), asking)
    if stored is None:
        return _selected(source, target, asking)
    known = asking["plan"] = _known(stored)
    return _view(source, known.like(f"file {os.fspath(target)!r}"), asking)


def _view(source: Any, end: Like, asking: Asking) -> Converted:
    stored, weights = asking.pop("plan", None), asking.pop("weights", None)
    if stored is not None:
        made = _as_stored(stored, source, end, weights, None, asking)
    else:
        made = make_plan(source_of(source, weights), end, cast(Asked, asking))
    sources = {m.target: (m.source, m.source_dtype) for m in made.moves}
    return Converted(filled(made), sources, made.skipped, made.source.manifest.unread)


def _selected(source: Any, target: PathLike, asking: Asking) -> Converted:
    """Without another structure there is nothing to pair with: weights can be chosen and renamed."""
    weights, asked = asking.pop("weights", None), asking
    if asked.keys() - {"include", "exclude", "rename"}:
        raise FileError(
            f"file {str(target)!r}: expected weights=, include=, exclude= and rename= alone, received {sorted(asking)}",
            hint="say with like= which model or file has the structure that is wanted",
        )
    held = both_of(source) if weights == "both" else source_of(source, weights)
    return converted(held, cast(Choosing, asked))


def _as_stored(
    stored: Any, source: Any, target: Any, weights: str | None, sample: Any, others: Mapping[str, object]
) -> Plan:
    """A stored plan, checked against what the two ends are now."""
    if others:
        raise WeightError(
            f"plan=: expected weights= and sample= alone beside it, received {sorted(others)}",
            hint="edit the plan, or make it anew with these",
        )
    known = _known(stored)
    held = source_of(source, weights or known.role)
    if isinstance(target, (Snapshot, str, os.PathLike)):
        target = structure_of(target, weights)
    if isinstance(target, Like):
        return known.checked(held, target)
    if isinstance(target, Average):
        return known.checked(held, _shadows(target, sample))
    warn_if_immature(held)
    return known.checked(held, model_target(target, sample))


def _known(stored: StoredPlan | PathLike) -> StoredPlan:
    """A stored plan, or the path of one."""
    return stored if isinstance(stored, StoredPlan) else read_plan(stored)


def structure_of(source: Any, weights: str | None = None) -> Like:
    """The names, shapes and dtypes of a model, an average, a snapshot or a file.

    Where a file holds several sets, the one of the same role as what is moved.
    """
    if isinstance(source, (str, os.PathLike)):
        source = open(source)
    if isinstance(source, Snapshot):
        asked = weights if weights in source.roles else None
        return Like(source.select(role=asked).weights, f"the structure of {source.origin}", source.manifest.layout)
    target = source.target if isinstance(source, Average) else model_target(source)
    return Like(target.weights, f"the structure of {target.label}", target.layout)


def read_plan(path: PathLike) -> StoredPlan:
    """A plan that ``Plan.to_json`` or ``polyak plan`` wrote, to be given to ``transfer`` as ``plan=``.

    Raises:
        FileError: there is none.
        DamagedFile, UnknownFormat: it is no plan, or one of a newer version.
    """
    return plans.read_plan(Path(path))
