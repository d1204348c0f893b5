"""Shell completion: the scripts that click makes, and what polyak answers to them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from polyak.cli import COMMANDS, main
from polyak.cli.completion import SHELLS

COMMAND = shutil.which("polyak", path=str(Path(sys.executable).parent)) or "polyak"


def completed(words: str, position: int) -> list[str]:
    """What polyak offers for a word, in the form of bash: its sort and its text."""
    asked = {"_POLYAK_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(position)}
    done = subprocess.run([COMMAND], env=os.environ | asked, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def script(shell: str) -> str:
    answer = CliRunner().invoke(main, ["completion", shell])
    assert (answer.exit_code, answer.stderr) == (0, "")
    return answer.stdout


def test_verbs_options_choices_and_files_are_completed() -> None:
    assert completed("polyak ", 1) == [f"plain,{name}" for name in COMMANDS]
    assert completed("polyak tr", 1) == ["plain,transfer"]
    assert completed("polyak transfer --dr", 2) == ["plain,--dry-run"]
    assert completed("polyak plan a b --by pos", 5) == ["plain,position"]
    assert completed("polyak inspect run", 2) == ["file,run"]


@pytest.mark.parametrize("shell", SHELLS)
def test_each_shell_gets_the_script_of_click(shell: str) -> None:
    assert f"_POLYAK_COMPLETE={shell}_complete" in script(shell)
    answer = CliRunner().invoke(main, ["completion", shell, "--json"])
    assert json.loads(answer.stdout) == {"shell": shell, "script": script(shell).rstrip("\n")}


def test_bash_takes_the_script_and_completes() -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("there is no bash here")
    call = f'{script("bash")}\nCOMP_WORDS=(polyak ver); COMP_CWORD=1; _polyak_completion "{COMMAND}"; echo "$COMPREPLY"'
    done = subprocess.run([bash, "-c", call], capture_output=True, text=True, check=False)
    assert done.stdout == "verify\n", done.stderr


def test_clicks_own_variable_answers_too() -> None:
    asked = {"_POLYAK_COMPLETE": "zsh_source"}
    done = subprocess.run([COMMAND], env=os.environ | asked, capture_output=True, text=True, check=True)
    assert done.stdout.strip("\n") == script("zsh").rstrip("\n")


def test_an_unknown_shell_is_bad_input() -> None:
    answer = CliRunner().invoke(main, ["completion", "tcsh"])
    assert (answer.exit_code, "'tcsh' is not one of 'bash', 'zsh', 'fish'" in answer.stderr) == (2, True)
