"""Teachers and target networks: a copy of a model that follows it slowly and is never trained itself."""

from __future__ import annotations

from typing import Any, Unpack

from polyak.averaging.parse import decay_from
from polyak.averaging.parts import Parts, as_rule
from polyak.averaging.rules import EMA, Rule
from polyak.errors import RuleError
from polyak.frameworks import Average, framework_of
from polyak.verbs import Following, track


def Target(
    online: Any,
    rule: Rule | str | None = None,
    *,
    tau: float | None = None,
    decay: float | None = None,
    **following: Unpack[Following],
) -> Average:
    """A target network or teacher: the model's weights at the start, then ``target <- (1 - tau) target + tau online``.

    It is an average whose past is the model as it was at the last copy. So it pairs by structure, can be saved,
    transferred and put into an attribute of the model, and nothing of it is trainable: its weights are variables or
    arrays that no optimizer and no gradient sees.

    ===========================  =====================================================================================
    ``target(x)``                a forward pass with the target's weights: eager, in a tf.function
    ``target.update()``          the soft update, after each step of the optimizer
    ``target.hard_sync()``       a copy of the present weights, with a receipt
    ``target.copy_to(twin)``     into a second instance of the model, frozen or not, as one that is served elsewhere
    ``target.tree()`` and so on  its state in steps that are pure functions: ``stateless_update``, ``stateless_call``
    ===========================  =====================================================================================

    Weights that are not trained, such as the moving statistics of BatchNormalization, are copied at each update.

    Args:
        online: the model that is trained, built.
        rule: in the place of ``tau``, where this changes with the updates, or the target moves by copies:
            "copy,every=500".
        tau: share of the newest weights at each update, 0.005 for example.
        decay: 1 - tau.
        following: ``every``, ``after`` and ``kinds``, as ``polyak.track`` takes them.

    Raises:
        UnbuiltModel: the model has no weights yet to start from.
        RuleError: not exactly one of ``rule``, ``tau`` and ``decay`` was given, or it cannot be right.
        TransferError: the copy is not equal to the model.

    Source: soft updates are those of DDPG (arXiv 1509.02971, algorithm 1) and mean teacher (1703.01780, equation 2);
    copies are those of DQN (Mnih et al. 2015, algorithm 1).

    Example:
        >>> import tensorflow as tf
        >>> online = tf.Module(); online.w = tf.Variable([1.0, 2.0])
        >>> target = Target(online, tau=0.25)
        >>> _ = online.w.assign([2.0, 2.0]); target.update()
        >>> target.values()["w"].tolist(), target.count
        ([1.25, 2.0], 1)
        >>> print(target.hard_sync())
        raw weights: Module 'module' -> average ema:0.75,start=initial of Module
          1 weight (8 bytes) moved and verified, 0 cast, 0 renamed, 0 skipped as asked
          digest ...
    """
    framework_of(online).target(online)  # it is here that a model without weights is refused, with the reason
    target = track(online, _rule(rule, tau, decay), **following)
    target.hard_sync()
    return target


def _rule(rule: Rule | str | None, tau: float | None, decay: float | None) -> Rule:
    given = {"rule": rule, "tau": tau, "decay": decay}
    names = [name for name, value in given.items() if value is not None]
    if len(names) != 1:
        raise RuleError(
            f"expected exactly one of rule, tau and decay; received {' and '.join(names) or 'none of them'}",
            hint="for example tau=0.005",
        )
    if rule is None:
        return EMA(decay_from(tau=tau, decay=decay), "initial")
    return _checked(as_rule(rule))


def _checked(rule: Rule | Parts) -> Rule:
    if isinstance(rule, Parts):
        raise RuleError(f"expected one rule for the whole target, received {rule}", hint="use polyak.track for parts")
    if rule.origin == "zeros":
        raise RuleError(
            f"rule {rule}: expected one that goes on from the model's weights, received one that starts from zeros",
            hint=f"write {'ema:DECAY,start=initial'!r}, or tau=",
        )
    return rule
