"""Renaming: new names for weights, by globs, by regular expressions, or by a function. One meaning for all verbs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

from polyak.errors import MissingWeight, WeightError
from polyak.snapshot import nearest_name

Rename = Mapping[str, str] | Mapping[re.Pattern[str], str] | Mapping[str | re.Pattern[str], str] | Callable[[str], str]

_FORM = 'rename maps source names to target names: rename={"old/*": "new/*"}'


def apply_rename(path: str, rename: Rename | None) -> str:
    """A path under its new name.

    In a mapping, the first glob that matches the whole path gives the whole new name; its stars fill those of the new
    name. Where no glob matches, compiled regular expressions replace what they match, one after the other, as
    ``re.sub`` does.

    Raises:
        WeightError: the new name has another number of stars, or groups that the expression has not.

    Example:
        >>> apply_rename("enc/0/kernel", {"enc/*": "encoder/*"})
        'encoder/0/kernel'
        >>> apply_rename("net.enc.kernel", {re.compile("^net[.]"): "", re.compile("[.]"): "/"})
        'enc/kernel'
    """
    if rename is None:
        return path
    if not isinstance(rename, Mapping):
        return _called(rename, path)
    for old, new in rename.items():
        found = None if isinstance(old, re.Pattern) else _stars(old, path)
        if found:
            return _fill(new, found.groups(), str(old))
    for old, new in rename.items():
        if isinstance(old, re.Pattern):
            path = _replaced(old, new, path)
    return path


def refuse_unused_renames(paths: Iterable[str], rename: Rename | None, where: str) -> None:
    """Raise for an entry of a mapping that is the name, glob or expression of no weight, and for what renames nothing.

    Raises:
        MissingWeight: an entry matches no weight.
        WeightError: it is neither a mapping of texts nor a function.
    """
    refuse_no_rename(rename)
    names = list(paths)
    for old, new in rename.items() if isinstance(rename, Mapping) else ():
        if isinstance(old, re.Pattern):
            if not any(old.search(name) for name in names):
                raise _unused_pattern(old, names, where)
            names = [_replaced(old, new, name) for name in names]
        elif not any(_stars(old, path) for path in names):
            raise MissingWeight(
                f"rename={old!r}: expected a weight of {where}, received a name of none{nearest_name(old, names)}",
                hint=_FORM,
            )


def refuse_no_rename(rename: object) -> None:
    """Raise WeightError for what is neither a mapping of names, globs or expressions to new names nor a function."""
    if isinstance(rename, Mapping):
        texts = (text for old, new in rename.items() for text in (getattr(old, "pattern", old), new))
        wrong = [text for text in texts if not isinstance(text, str)]
        if wrong:
            raise WeightError(
                f"rename={dict(rename)!r:.80}: expected names that are text, received {wrong[0]!r:.80}", hint=_FORM
            )
    elif rename is not None and not callable(rename):
        raise WeightError(
            f"rename={rename!r:.80}: expected a mapping of names or a function, received {type(rename).__name__}",
            hint=_FORM,
        )


def _called(rename: Callable[[str], str], path: str) -> str:
    name: object = rename(path)
    if not isinstance(name, str):
        raise WeightError(f"weight {path!r}: expected a name from the rename function, received {name!r}")
    return name


def _unused_pattern(old: re.Pattern[str], names: list[str], where: str) -> MissingWeight:
    return MissingWeight(
        f"rename={old.pattern!r}: expected a pattern of weights, received one that matches none of {where}",
        hint=f"the paths look like {names[0]!r}" if names else None,
    )


def _replaced(pattern: re.Pattern[str], new: str, name: str) -> str:
    try:
        return pattern.sub(new, name)
    except (re.error, IndexError) as error:
        raise WeightError(f"rename={pattern.pattern!r}: {new!r} is no replacement for it: {error}") from error


def _stars(old: str, path: str) -> re.Match[str] | None:
    """A match whose groups are what the stars of a glob stand for."""
    if "*" not in old and old != path:  # most entries of a long mapping
        return None
    return re.fullmatch("(.*)".join(re.escape(part) for part in old.split("*")), path, re.DOTALL)


def _fill(new: str, stars: tuple[str, ...], old: str) -> str:
    if new.count("*") != len(stars):
        raise WeightError(
            f"rename={{{old!r}: {new!r}}}: expected {_stars_counted(len(stars))} in the new name, "
            f"received {new.count('*')}",
            hint='write for example rename={"enc/*": "encoder/*"}',
        )
    parts = new.split("*")
    return "".join(part + star for part, star in zip(parts, (*stars, ""), strict=True))


def _stars_counted(n: int) -> str:
    return "1 star" if n == 1 else f"{n:,} stars"
