"""The command line. Data go to standard output, words to standard error.

Exit 0: same, or done. 1: different. 2: bad input.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import click

from polyak.cli.output import answering, reporting

# One module for each verb, with a command of the same name; loaded when it is asked for.
COMMANDS = (
    *("average", "completion", "convert", "demo", "diff", "doctor", "extract", "inspect", "plan", "profile"),
    *("synthesize", "transfer", "verify"),
)


class Verbs(click.Group):
    """Loads the module of a verb when it is asked for, and reports polyak's errors and warnings."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = getattr(import_module(f"polyak.cli.{cmd_name}"), cmd_name)
        return command

    def make_context(self, *given: Any, **options: Any) -> click.Context:
        with reporting(), answering():  # help and version answer here
            return super().make_context(*given, **options)

    def invoke(self, ctx: click.Context) -> object:
        with reporting():
            return super().invoke(ctx)


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="polyak", message="polyak %(version)s")
def main() -> None:
    """Averaged model weights you can trust: track, apply, transfer and combine them, with proof.

    Exit status: 0 same or done, 1 different, 2 bad input.
    """
