"""Every Python example of the README and of the pages in docs/ runs, page by page, in an empty directory.

So do the ``$ polyak ...`` lines of console blocks, in their places between the Python; what they say must be what the
page says, where ``...`` stands for anything.
"""

import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from polyak.cli import main

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^```(python|console)\n(.*?)^```", re.DOTALL | re.MULTILINE)
COMMAND = re.compile(r"^\$ (polyak .*)\n((?:(?!\$ ).*\n)*)", re.MULTILINE)
PAGES = [
    p
    for p in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
    if any(kind == "python" for kind, _ in BLOCK.findall(p.read_text()))
]


def run_python(page, start, text, namespace):
    line = page.read_text()[:start].count("\n") + 1
    exec(compile("\n" * line + text, str(page), "exec"), namespace)  # noqa: S102 - our own pages


def run_console(text):
    for command, expected in COMMAND.findall(text):
        done = CliRunner().invoke(main, shlex.split(command)[1:], prog_name="polyak")
        assert done.exit_code in (0, 1), done.output
        pattern = re.escape(expected.strip()).replace(r"\.\.\.", ".*")
        said = "\n".join(line.rstrip() for line in done.output.strip().splitlines())
        assert re.fullmatch(pattern, said, re.DOTALL), f"{command}\n{said}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_the_examples_of_the_page_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": f"page_{page.stem}"}
    for found in BLOCK.finditer(page.read_text()):
        kind, text = found.groups()
        if kind == "python":
            run_python(page, found.start(), text, namespace)
        else:
            run_console(text)


def test_the_pages_of_the_chores_are_listed():
    pages = {p.name for p in (ROOT / "docs" / "howto").glob("*.md")} - {"README.md"}
    listed = re.findall(r"\]\(([^)]+)\)", (ROOT / "docs" / "howto" / "README.md").read_text())
    assert pages == set(listed)
    assert pages <= {p.name for p in PAGES}


@pytest.mark.parametrize("page", [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")], ids=lambda p: p.name)
def test_links_within_the_project_lead_somewhere(page):
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text())
    assert [t for t in targets if not (page.parent / t).exists()] == []
