"""polyak completion: what a shell needs to complete polyak's verbs, options and files."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from polyak.cli import options, output

SHELLS = ("bash", "zsh", "fish")


@click.command(short_help="A script that teaches a shell to complete polyak's verbs.")
@click.argument("shell", type=click.Choice(SHELLS))
@options.as_json
def completion(shell: str, as_json: bool) -> None:
    """Write the script that makes SHELL complete polyak's verbs, options and file names.

    \b
    bash:  eval "$(polyak completion bash)"              in ~/.bashrc
    zsh:   eval "$(polyak completion zsh)"               in ~/.zshrc
    fish:  polyak completion fish > ~/.config/fish/completions/polyak.fish

    It is the script of click: the same as _POLYAK_COMPLETE=bash_source polyak. bash must be of version 4.4 or newer.
    """
    script = _script(shell)
    if as_json:
        _answer_json(shell, script)
    else:
        output.data(script)


def _script(shell: str) -> str:
    from polyak.cli import main

    kind = get_completion_class(shell)
    assert kind is not None
    made = kind(main, {}, "polyak", "_POLYAK_COMPLETE")
    # Not its source(), which would start bash to ask for its version: it may be another one that reads the script.
    script: str = made.source_template % made.source_vars()
    return script.strip("\n")


def _answer_json(shell: str, script: str) -> None:
    import msgspec

    output.json(msgspec.json.encode({"shell": shell, "script": script}).decode())
