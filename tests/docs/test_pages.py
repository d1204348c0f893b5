"""Every Python example of the README and of the pages in docs/ runs, page by page, in an empty directory.

So do the ``$ polyak ...`` lines of console blocks, in their places between the Python; what they say must be what the
page says, where ``...`` stands for anything. A page that names Keras backends runs on each of them, in a process of
its own.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.docs import running

ROOT = Path(__file__).resolve().parents[2]
ALL = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
PAGES = [page for page in ALL if running.has_python(page)]
HERE = [page for page in PAGES if not running.backends(page)]
ELSEWHERE = [(page, backend) for page in PAGES for backend in running.backends(page)]


@pytest.mark.parametrize("page", HERE, ids=lambda p: p.name)
def test_the_examples_of_the_page_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert running.run(page, "tensorflow")


@pytest.mark.parametrize(("page", "backend"), ELSEWHERE, ids=[f"{page.name}-{backend}" for page, backend in ELSEWHERE])
def test_the_examples_of_the_page_run_on(page, backend, tmp_path):
    command = [sys.executable, "-W", "ignore", running.__file__, str(page)]
    environment = {**os.environ, "KERAS_BACKEND": backend}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("page", ALL, ids=lambda p: p.name)
def test_every_block_of_python_is_seen_and_names_a_backend_that_exists(page):
    assert len(re.findall(r"^ *```python", page.read_text(), re.MULTILINE)) == sum(
        kind == "python" for kind, _, _ in running.BLOCK.findall(page.read_text())
    )
    assert set(running.backends(page)) <= set(running.BACKENDS)


def test_the_quickstart_runs_on_every_backend():
    assert {backend for page, backend in ELSEWHERE if page.name == "quickstart.md"} == set(running.BACKENDS)


def test_the_pages_of_the_chores_are_listed():
    pages = {p.name for p in (ROOT / "docs" / "howto").glob("*.md")} - {"README.md"}
    listed = re.findall(r"\]\(([^)]+)\)", (ROOT / "docs" / "howto" / "README.md").read_text())
    assert pages == set(listed)
    assert pages <= {p.name for p in PAGES}


def test_each_part_of_polyak_has_its_row_in_the_list_of_parts():
    rows = re.findall(r"^\| `([\w.]+(?:/|\.py))` \|", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    folder = ROOT / "src" / "polyak"
    packages = {f"{path.parent.name}/" for path in folder.glob("*/__init__.py")}
    units = packages | {path.name for path in folder.glob("*.py")}
    assert units == set(rows)
    assert len(rows) == len(set(rows))


@pytest.mark.parametrize("page", [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")], ids=lambda p: p.name)
def test_links_within_the_project_lead_somewhere(page):
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text())
    assert [t for t in targets if not (page.parent / t).exists()] == []
