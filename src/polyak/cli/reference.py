"""The reference of the command line, from each verb's help: ``python -m polyak.cli.reference > docs/cli.md``."""

from __future__ import annotations

import click

from polyak.cli import COMMANDS, main, output

_WIDTH = 100
_HEAD = """# The command line

Every verb is a thin layer over the Python function of the same name. Data go to standard output, words to standard
error. Exit status: 0 same or done, 1 different or findings, 2 bad input, 130 interrupted.

This page is made of the verbs' own help: `python -m polyak.cli.reference > docs/cli.md`.
"""


def reference() -> str:
    """The page, in Markdown."""
    context = _context(main, "polyak")
    verbs = [(f"polyak {name}", main.get_command(context, name)) for name in COMMANDS]
    parts = [_part("polyak", main), *(_part(name, verb) for name, verb in verbs if verb is not None)]
    return "\n".join([_HEAD, *parts])


def _part(name: str, command: click.Command) -> str:
    return f"## {name}\n\n```text\n{command.get_help(_context(command, name))}\n```\n"


def _context(command: click.Command, name: str) -> click.Context:
    settings = {**command.context_settings, **main.context_settings}
    return click.Context(command, info_name=name, terminal_width=_WIDTH, **settings)


if __name__ == "__main__":
    output.data(reference().rstrip("\n"))
