"""Within a ``keras.StatelessScope`` a model shows other values than its variables hold, and drops what is written."""

from __future__ import annotations

from keras.src.backend.common.stateless_scope import in_stateless_scope

from polyak.errors import ModelError


def refuse_scoped(what: str) -> None:
    """Raise ModelError within a StatelessScope, which whoever reads or writes a variable itself would ignore."""
    if in_stateless_scope():
        raise ModelError(
            f"{what}: expected to read and write variables, received them within a keras.StatelessScope, which has "
            "values of its own for them",
            hint="pass the state through: tree = ema.tree() before it, ema.stateless_update(tree, ...) with the values "
            "in it, ema.take(tree) after it; or leave the scope first",
        )
