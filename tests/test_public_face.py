"""The public face: what type checkers see, what is looked up, and what is listed are the same names."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import polyak


def _named_for_type_checkers() -> set[str]:
    tree = ast.parse(Path(polyak.__file__).read_text())
    guarded = next(node for node in tree.body if isinstance(node, ast.If))
    imports = [node for node in guarded.body if isinstance(node, ast.ImportFrom)]
    return {alias.name for node in imports for alias in node.names} - {"version"}


def test_the_three_lists_of_public_names_agree():
    looked_up = set(polyak._HOME) | set(polyak._MODULES)
    assert _named_for_type_checkers() == looked_up == set(polyak.__all__)


def test_every_public_name_has_documentation():
    assert [name for name in polyak.__all__ if not getattr(polyak, name).__doc__] == []


def test_verbs_stay_verbs_when_the_modules_of_their_names_are_imported():
    import polyak.snapshot
    import polyak.transfer.plan

    assert callable(polyak.transfer)
    assert callable(polyak.snapshot)


@pytest.mark.parametrize("module", polyak._MODULES)
def test_public_modules_are_imported_by_the_names_that_they_are_used_by(module):
    program = f"import polyak.{module}; from polyak.{module} import *; assert polyak.{module}.__name__"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
