"""Every public name of polyak on one page, from its docstring: ``python -m tests.docs.face > docs/python.md``."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from importlib import import_module
from typing import Any, get_args, get_type_hints

HEAD = """# Python, on one page

Every public name with its arguments and the first line of its docstring; `help(polyak.EMA)` says the rest, with shapes,
errors and an example. What is not on this page is not public.

This page is made of the docstrings: `python -m tests.docs.face > docs/python.md`.
"""
# What stands together, in the order in which one meets it.
GROUPS = {
    "Follow a live model": (
        "EMA", "SWA", "PowerEMA", "track", "Average", "Averages", "Target", "adopt", "recalibrate", "Snapshots",
    ),
    "Transfer, with proof": ("transfer", "plan", "Plan", "read_plan", "StoredPlan", "Receipt"),
    "Files": (
        "save", "Saver", "Saving", "open", "snapshot", "Snapshot", "convert", "diff", "Difference", "doctor", "Finding",
    ),
    "Means of checkpoints": ("average", "distances", "Member", "greedy_soup", "synthesize", "Synthesis"),
    "Rules": ("parse", "profile", "Profile", "plot_profile"),
}  # fmt: skip
MODULES = {
    "polyak.keras": "In Keras' own loops",
    "polyak.tensorflow": "TensorFlow's own files",
    "polyak.derived": "Derived from an average",
    "polyak.rules": "The rules by name",
    "polyak.testing": "For a rule of your own",
    "polyak.errors": "Errors and warnings",
}


INNER = ("argument", "listed", "notify")  # of polyak's own modules


def page() -> str:
    """The page, in Markdown."""
    import polyak

    groups = [(title, "polyak", {name: getattr(polyak, name) for name in names}) for title, names in GROUPS.items()]
    groups += [(f"{title}: `{name}`", name, dict(_public(import_module(name)))) for name, title in MODULES.items()]
    kinds = {thing for _, _, named in groups for thing in named.values() if inspect.isclass(thing)}
    return "\n".join([HEAD, *(_part(title, home, named, kinds) for title, home, named in groups)])


def _part(title: str, home: str, named: dict[str, Any], kinds: set[type]) -> str:
    lines = (line for name, thing in named.items() for line in _lines(f"{home}.{name}", thing, kinds))
    return "\n".join([f"## {title}\n", *lines, ""])


def _public(module: Any) -> Iterator[tuple[str, Any]]:
    """What a module names, or else what is defined in it."""
    defined = (name for name, thing in vars(module).items() if getattr(thing, "__module__", "") == module.__name__)
    for name in getattr(module, "__all__", None) or [n for n in defined if n[0] != "_" and n not in INNER]:
        if not isinstance(getattr(module, name), dict):  # tables of what stands here by name
            yield name, getattr(module, name)


def _lines(name: str, thing: Any, kinds: set[type]) -> Iterator[str]:
    yield f"- `{name}{_arguments(thing)}`: {_said(thing)}"
    if inspect.isclass(thing) and not issubclass(thing, BaseException):
        for member, value in _members(thing, kinds):
            yield f"  - `{member}{_arguments(value)}`: {_said(value)}"


def _members(kind: type, kinds: set[type]) -> Iterator[tuple[str, Any]]:
    """Methods and properties that polyak documents, less those of public bases and of other libraries."""
    documented = [base for base in kind.__mro__ if base.__module__.startswith("polyak")]
    own = [base for base in documented if base is kind or base not in kinds]
    known = {name for base in kind.__mro__ if base not in own for name in dir(base)}
    for name in dict.fromkeys(name for base in own for name in vars(base) if name[0] != "_" and name not in known):
        value = inspect.getattr_static(kind, name)
        value = getattr(value, "__func__", value)
        if (inspect.isfunction(value) or isinstance(value, property)) and inspect.getdoc(value):
            yield name, value


def _said(thing: Any) -> str:
    """The docstring's first sentence or two, and what else may be given by name."""
    said = " ".join((inspect.getdoc(thing) or "").split("\n\n")[0].split()).replace("``", "`")
    further = ", ".join(f"`{name}`" for name in _further(thing))
    return f"{said} Also: {further}." if further else said


def _further(thing: Any) -> list[str]:
    """The names of keyword arguments that stand in a type of their own."""
    if not inspect.isfunction(thing) or inspect.getfullargspec(thing).varkw is None:
        return []
    named = get_args(get_type_hints(thing).get(inspect.getfullargspec(thing).varkw))
    return list(get_type_hints(named[0])) if named else []


def _arguments(thing: Any) -> str:
    """As one calls it, without types."""
    if not callable(thing) or (inspect.isclass(thing) and issubclass(thing, BaseException)):
        return ""
    shown = [_bare(p) for p in inspect.signature(thing).parameters.values() if p.name not in ("self", "cls")]
    return str(inspect.Signature(shown)).replace("'...'", "...")


def _bare(parameter: inspect.Parameter) -> inspect.Parameter:
    """Without its type, and without a default that says nothing when it is written."""
    default = "..." if repr(parameter.default).startswith("<") else parameter.default
    empty = inspect.Parameter.empty
    return parameter.replace(annotation=empty, default=empty if parameter.default is empty else default)


if __name__ == "__main__":
    print(page().rstrip("\n"))
