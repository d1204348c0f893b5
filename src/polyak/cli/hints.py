"""A hint of the library in the words of a shell: arguments become options, and a call becomes a command."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator

_SAME = "weights format include exclude rename by cast nonfinite layout layers like at tolerance"
_OPTIONS = {"role": "weights", "largest_norm": "largest-norm"} | {name: name for name in _SAME.split()}
_VERBS = ("convert", "transfer")
_BEGINS = re.compile(rf"\bpolyak\.\w+\(|\b({'|'.join(_OPTIONS)})=")
_CLOSING = {"[": "]", "{": "}", "(": ")"}
_ENDS = re.compile(r"""(?<=["'\]})\w])(?=[\s;,:.)}\]]|$)""")


def as_options(hint: str) -> str:
    """What Python is told by arguments, a command is told by options.

    Example:
        >>> as_options('say which: role="raw", or leave it out: exclude="head/*"')
        "say which: --weights raw, or leave it out: --exclude 'head/*'"
        >>> as_options('pair them with rename={"a/kernel": "b/kernel"}')
        "pair them with --rename '^a/kernel$=b/kernel'"
        >>> as_options('leave it out with exclude="my head"')
        "leave it out with --exclude 'my head'"
        >>> as_options('say how it lies: layers={"d": "Dense"}; or write it anew: polyak.convert(source, path, at=3)')
        'say how it lies: --layers d=Dense; or write it anew: polyak convert SOURCE PATH --at 3'
    """
    said, done = [], 0
    for found in _BEGINS.finditer(hint):
        if found.start() >= done:
            said.append(hint[done : found.start()])
            words, done = _call(hint, found) if found[1] is None else _argument(hint, found)
            said.append(words)
    return "".join([*said, hint[done:]])


def _call(hint: str, found: re.Match[str]) -> tuple[str, int]:
    """A call of a verb that is a command, too, as that command; another stays as it is, with all that is in it."""
    node, end = _expression(hint, found.start(), found.end())
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _VERBS):
        return hint[found.start() : end], end
    options = (word for k in node.keywords if k.arg in _OPTIONS for word in _given(k.arg, k.value))
    return " ".join(["polyak", node.func.attr, *map(_word, node.args), *options]), end


def _argument(hint: str, found: re.Match[str]) -> tuple[str, int]:
    """An argument with its value as an option; one that is only named by the option's name."""
    if hint.startswith("...", found.end()):
        return found[0], found.end()
    value = hint[found.end() : found.end() + 1].strip(" ,;)")
    node, end = _expression(hint, found.end(), found.end() + 1) if value else (None, 0)
    if node is None:
        return f"--{_OPTIONS[found[1]]}", found.end()
    return " ".join(_given(found[1], node)), end


def _expression(hint: str, start: int, beyond: int) -> tuple[ast.expr | None, int]:
    """The shortest expression that begins here, and where it ends; a text whose quotes do not fit ends at the first."""
    whole: tuple[ast.expr, int] | None = None
    closing = _CLOSING.get(hint[beyond - 1], "")
    for end in (found.end() for found in _ENDS.finditer(hint, beyond)):
        if not hint.endswith(closing, start, end):  # a long list would be parsed at each of its names
            continue
        try:
            return ast.parse(hint[start:end], mode="eval").body, end
        except (SyntaxError, ValueError):
            if whole is None and hint[start] in "\"'" and hint[end - 1] == hint[start]:
                whole = ast.Constant(hint[start + 1 : end - 1]), end
    return whole or (None, beyond)


def _given(name: str, value: ast.expr) -> Iterator[str]:
    """Each value of an argument as an option of its own."""
    values = value.elts if isinstance(value, (ast.List, ast.Tuple)) else [value]
    if isinstance(value, ast.Dict):
        for old, new in zip(value.keys, value.values, strict=True):
            if isinstance(old, ast.Constant):
                choices = new.values if isinstance(new, ast.BoolOp) else [new]
                yield " or ".join(f"--{_OPTIONS[name]} {_word(_pair(name, old, choice))}" for choice in choices)
        return
    for one in values:
        yield f"--{_OPTIONS[name]} {_word(one)}"


def _pair(name: str, old: ast.Constant, new: ast.expr) -> ast.Constant:
    """``OLD=NEW``; names to replace as an expression."""
    text = str(new.value) if isinstance(new, ast.Constant) else ast.unparse(new)
    return ast.Constant(_renaming(str(old.value), text) if name == "rename" else f"{old.value!s}={text}")


def _renaming(old: str, new: str) -> str:
    pattern = "(.*)".join(re.escape(part) for part in old.split("*"))
    first, *rest = map(_literal, new.split("*"))
    return f"^{pattern}$={first}" + "".join(f"{_group(i, part)}{part}" for i, part in enumerate(rest, 1))


def _literal(part: str) -> str:
    """A part of a new name as ``re.sub`` takes it; an option is divided at its last ``=``, which has an octal form."""
    return part.replace("\\", r"\\").replace("=", r"\075")


def _group(i: int, then: str) -> str:
    return rf"\g<{i}>" if then[:1].isdigit() else rf"\{i}"


def _word(value: ast.expr) -> str:
    """A value as a shell takes it for one word; what stands for a value of the user's own in capitals."""
    if isinstance(value, ast.Constant) and value.value is not ...:
        text = str(value.value)
        return text if re.fullmatch(r"[\w./:+=-]+", text, re.ASCII) else shlex.quote(text)
    return ast.unparse(value).upper()
