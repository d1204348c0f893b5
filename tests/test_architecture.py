"""The shape of the library, enforced: one-way imports, no framework on the way in, no trace of any one machine.

The checks are functions over source text. They run on every module of polyak, and on small made-up sources that break
each rule, so that a check which sees nothing is noticed.
"""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "polyak"
MAX_LINES = 500

# Lowest first. A unit imports itself and units of lower rows: never a higher row, never another unit of its own row.
# A unit is what stands directly under polyak: a module or a subpackage; `polyak` itself is the public face.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("errors",),
    ("weights", "numbers", "memory", "forks"),
    ("manifest",),
    ("snapshot",),
    ("renaming",),
    ("averaging", "transfer", "combine", "contents"),
    ("files", "frameworks", "dialects"),
    ("file_verbs",),
    ("report", "verbs", "posthoc_verbs", "derived", "testing", "rules"),
    ("plan_verbs", "several", "targets", "periodic", "recalibrating", "saving"),
    ("keras", "tensorflow"),
    ("polyak",),
    ("demo",),
    ("cli",),
    ("__main__",),
)
LAYER = {unit: row for row, units in enumerate(LAYERS) for unit in units}

# Where a framework may be imported. Everywhere else: nowhere, not even inside a function.
FRAMEWORKS = frozenset({"tensorflow", "keras", "tf_keras", "torch", "jax", "flax", "optax"})
FRAMEWORK_IMPORTS = {
    "frameworks": "anywhere",  # these modules are loaded once the user's program has the framework
    "keras": "anywhere",  # loaded on request only
    "tensorflow": "anywhere",  # loaded on request only
    "files": "in functions",  # TensorFlow writes its own formats
    "demo": "anywhere",  # trains a model; loaded on request only
}
NOT_LOADED_WITHOUT_FRAMEWORK = ("polyak.frameworks.", "polyak.keras", "polyak.demo", "polyak.tensorflow")

# Places that exist on one machine only, and hosts of package registries.
PLACE = r"(?<![\w.~})\]*-])/(?:work|root|home|Users)/[\w.]"
REGISTRY = r"pypi\.org|pythonhosted\.org|--(?:extra-)?index-url"
MACHINE = re.compile(f"{PLACE}|{REGISTRY}")


@dataclass(frozen=True)
class Import:
    """One import of a source: what it names, its line, and whether it runs when the module is loaded."""

    target: str
    line: int
    on_load: bool


class _Imports(ast.NodeVisitor):
    def __init__(self, module: str, *, is_package: bool) -> None:
        self.package = module if is_package else module.rpartition(".")[0]
        self.found: list[Import] = []
        self._deferred = 0

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self._add(alias.name, node)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        base = self._absolute("." * node.level + (node.module or ""))
        for alias in node.names:
            submodule = base == "polyak" and alias.name in LAYER
            self._add(f"{base}.{alias.name}" if submodule else base, node)

    def visit_Call(self, node: ast.Call) -> None:
        """``import_module("polyak.files.npz")``, and f-strings that begin with a module's name."""
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", None)
        if name in {"import_module", "__import__"} and node.args:
            text = _leading_text(node.args[0])
            if text:
                self._add(self._absolute(text), node)
        self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        for part in (*node.decorator_list, node.args):
            self.visit(part)
        self._visit_deferred(node.body)

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_Lambda(self, node: ast.Lambda) -> None:
        self._visit_deferred([node.body])

    def visit_If(self, node: ast.If) -> None:
        if ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}:
            self._visit_deferred(node.body)
            for part in node.orelse:
                self.visit(part)
        else:
            self.generic_visit(node)

    def _visit_deferred(self, body: list[ast.stmt] | list[ast.expr]) -> None:
        self._deferred += 1
        for part in body:
            self.visit(part)
        self._deferred -= 1

    def _absolute(self, name: str) -> str:
        level = len(name) - len(name.lstrip("."))
        if not level:
            return name
        package = self.package.split(".")
        return ".".join([*package[: len(package) - level + 1], *filter(None, [name[level:]])])

    def _add(self, target: str, node: ast.AST) -> None:
        self.found.append(Import(target.rstrip("."), node.lineno, self._deferred == 0))


def _leading_text(node: ast.expr) -> str:
    if isinstance(node, ast.JoinedStr) and node.values:
        node = node.values[0]
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def imports(module: str, source: str, *, is_package: bool = False) -> list[Import]:
    """Every import in a source, at any depth."""
    visitor = _Imports(module, is_package=is_package)
    visitor.visit(ast.parse(source))
    return visitor.found


def unit(module: str) -> str:
    """The row entry that a module belongs to: ``polyak.files.npz`` is of ``files``."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else parts[0]


def direction_faults(module: str, source: str, *, is_package: bool = False) -> list[str]:
    """Imports of polyak's own modules that go up or sideways."""
    own = unit(module)
    if own not in LAYER:
        return [f"{module}:1 is in no row of LAYERS. rule: every unit has its place in the table"]
    faults = []
    for found in imports(module, source, is_package=is_package):
        other = unit(found.target)
        if found.target.split(".")[0] != "polyak" or other == own:
            continue
        below = sorted(u for u in LAYER if LAYER[u] < LAYER[own])
        if other not in below:
            rule = f"{own} imports only itself and {', '.join(below) or 'nothing of polyak'}"
            faults.append(f"{module}:{found.line} imports {found.target}. rule: {rule}")
    return faults


def framework_faults(module: str, source: str, *, is_package: bool = False) -> list[str]:
    """Imports of a framework where none may be."""
    allowed = FRAMEWORK_IMPORTS.get(unit(module), "nowhere")
    return [
        f"{module}:{found.line} imports {found.target}. rule: {unit(module)} imports frameworks {allowed}"
        for found in imports(module, source, is_package=is_package)
        if found.target.split(".")[0] in FRAMEWORKS
        and not (allowed == "anywhere" or (allowed == "in functions" and not found.on_load))
    ]


def form_faults(module: str, source: str) -> list[str]:
    """A missing docstring, or too many lines."""
    faults = []
    if not ast.get_docstring(ast.parse(source)):
        faults.append(f"{module}:1 has no docstring. rule: a module says what it is for")
    if (lines := len(source.splitlines())) > MAX_LINES:
        faults.append(f"{module}:{lines} is too long. rule: at most {MAX_LINES} lines a module")
    return faults


def machine_faults(name: str, text: str) -> list[str]:
    """Lines that hold only on one machine."""
    return [
        f"{name}:{number} holds {match.group()!r}. rule: no file names a place or a registry of one machine"
        for number, line in enumerate(text.splitlines(), 1)
        for match in MACHINE.finditer(line)
    ]


def loaded_frameworks(modules: list[str]) -> dict[str, list[str]]:
    """The frameworks that importing each module, in this order, adds to a fresh process."""
    script = """
import importlib, json, sys
answer, known = {}, set()
for name in json.loads(sys.argv[1]):
    importlib.import_module(name)
    now = set(json.loads(sys.argv[2])) & set(sys.modules)
    answer[name] = sorted(now - known)
    known |= now
print(json.dumps(answer))
"""
    arguments = [json.dumps(modules), json.dumps(sorted(FRAMEWORKS))]
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


# --- polyak as it is -------------------------------------------------------------------------------------------------


def _module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {_module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
each_module = pytest.mark.parametrize("module", MODULES)


def _source(module: str) -> tuple[str, bool]:
    path = MODULES[module]
    return path.read_text(encoding="utf-8"), path.name == "__init__.py"


@each_module
def test_imports_go_one_way(module: str) -> None:
    source, is_package = _source(module)
    assert not direction_faults(module, source, is_package=is_package)


@each_module
def test_frameworks_are_imported_only_where_they_may_be(module: str) -> None:
    source, is_package = _source(module)
    assert not framework_faults(module, source, is_package=is_package)


@each_module
def test_module_has_a_docstring_and_a_readable_length(module: str) -> None:
    assert not form_faults(module, _source(module)[0])


def test_importing_polyak_loads_no_framework() -> None:
    neutral = [m for m in MODULES if not m.startswith(NOT_LOADED_WITHOUT_FRAMEWORK) and m != "polyak.__main__"]
    loaded = loaded_frameworks(["polyak", *(m for m in neutral if m != "polyak")])
    assert len(loaded) == len(neutral)
    assert {module: names for module, names in loaded.items() if names} == {}


def test_no_file_names_a_place_of_one_machine() -> None:
    texts = dict(_repository_texts())
    assert {"pyproject.toml", "tests/test_architecture.py"} <= set(texts)
    assert not [fault for name, text in texts.items() for fault in machine_faults(name, text)]


def _repository_texts() -> Iterator[tuple[str, str]]:
    for name in _repository_files():
        try:
            yield name, (ROOT / name).read_text(encoding="utf-8")
        except (UnicodeDecodeError, FileNotFoundError):
            continue  # binary, or deleted and not yet committed


def _repository_files() -> list[str]:
    """What git tracks or would track; outside a checkout (a source archive), every file but hidden and made ones."""
    if (ROOT / ".git").exists():
        command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        return listed.strip("\0").split("\0")
    made = {"build", "dist", "polyak-demo", "__pycache__"}
    paths = (p.relative_to(ROOT) for top in ROOT.iterdir() if top.name[0] != "." for p in (top, *top.rglob("*")))
    return [p.as_posix() for p in paths if not made & set(p.parts) and (ROOT / p).is_file()]


# --- the checks see what they are for ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "source", "line", "target"),
    [
        ("polyak.errors", "import polyak.weights", 1, "polyak.weights"),
        ("polyak.weights", "\nfrom polyak import snapshot", 2, "polyak.snapshot"),
        ("polyak.averaging.rules", "from polyak.transfer.plan import Plan", 1, "polyak.transfer.plan"),
        ("polyak.transfer.plan", "def f():\n    from polyak.averaging import rules", 2, "polyak.averaging"),
        ("polyak.transfer.plan", "from ..files import npz", 1, "polyak.files"),
        ("polyak.files.npz", "from polyak.frameworks.keras import x", 1, "polyak.frameworks.keras"),
        ("polyak.files.npz", "import polyak", 1, "polyak"),
        ("polyak.dialects.tf1", "from polyak import open", 1, "polyak"),
        ("polyak.dialects.tf1", "import_module('polyak.files.npz')", 1, "polyak.files.npz"),
        ("polyak.dialects.tf1", "importlib.import_module(f'polyak.frameworks.{x}')", 1, "polyak.frameworks"),
        ("polyak.snapshot", "if TYPE_CHECKING:\n    from polyak.files import npz", 2, "polyak.files"),
        ("polyak.verbs", "async def f():\n    import polyak.cli.main", 2, "polyak.cli.main"),
        ("polyak.verbs", "class A:\n    def f(self, x=__import__('polyak.report.html')): ...", 2, "polyak.report.html"),
    ],
)
def test_an_import_up_or_sideways_is_reported(module: str, source: str, line: int, target: str) -> None:
    (fault,) = direction_faults(module, source)
    assert fault.startswith(f"{module}:{line} imports {target}. rule: {unit(module)} imports only itself")


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("polyak.weights", "from polyak.errors import WeightError"),
        ("polyak.frameworks.keras", "from polyak.averaging import rules\nfrom polyak import transfer"),
        ("polyak.files", "from .npz import read"),
        ("polyak.cli.main", "import polyak\nfrom polyak import transfer, open"),
        ("polyak.errors", "import numpy, polyakov"),
    ],
)
def test_an_import_down_or_within_is_fine(module: str, source: str) -> None:
    assert direction_faults(module, source, is_package=module == "polyak.files") == []


def test_a_unit_outside_the_table_is_reported() -> None:
    assert "is in no row of LAYERS" in direction_faults("polyak.helpers", "")[0]
    assert direction_faults("polyak.verbs", "from polyak import helpers, newcomer") != []


@pytest.mark.parametrize(
    ("module", "source", "faults"),
    [
        ("polyak", "import tensorflow", 1),
        ("polyak.files.tensorbundle", "import tensorflow as tf", 1),
        ("polyak.files.tensorbundle", "def write():\n    import tensorflow as tf", 0),
        ("polyak.files.tensorbundle", "class A:\n    import tensorflow as tf", 1),
        ("polyak.files.tensorbundle", "try:\n    from tensorflow.python import x\nexcept ImportError: ...", 1),
        ("polyak.files.tensorbundle", "if TYPE_CHECKING:\n    import tensorflow\nelse:\n    import keras", 1),
        ("polyak.transfer.plan", "def f():\n    import torch, jax.numpy", 2),
        ("polyak.frameworks.keras", "import keras", 0),
        ("polyak.keras.callback", "from keras.callbacks import Callback", 0),
        ("polyak.dialects.optax", "import polyak.dialects.optax", 0),
    ],
)
def test_a_framework_in_the_wrong_place_is_reported(module: str, source: str, faults: int) -> None:
    found = framework_faults(module, source)
    assert len(found) == faults
    assert all(f.startswith(f"{module}:") and "rule: " in f for f in found)


def test_a_framework_that_is_loaded_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torch.py").write_text("")
    (tmp_path / "innocent.py").write_text("")
    (tmp_path / "guilty.py").write_text("import torch")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert loaded_frameworks(["innocent", "guilty"]) == {"innocent": [], "guilty": ["torch"]}


def test_form_faults_are_reported() -> None:
    assert "no docstring" in form_faults("polyak.x", "import os")[0]
    assert "too long" in form_faults("polyak.x", '"""Fine."""\n' + "x = 1\n" * MAX_LINES)[0]
    assert form_faults("polyak.x", '"""Fine."""\n' + "x = 1\n" * (MAX_LINES - 1)) == []


@pytest.mark.parametrize(
    "parts", [("/", "work/main"), ('"/', 'root/.cache"'), ("file:///", "home/me/x"), ("https://pypi", ".org/simple")]
)
def test_a_place_of_one_machine_is_reported(parts: tuple[str, str]) -> None:
    assert machine_faults("a.md", "fine\n" + "".join(parts))[0].startswith("a.md:2 holds ")


@pytest.mark.parametrize("text", ["src/work/x", "../root/x", "https://example.org/home/x", "/tmp/x", "encoder/root/x"])
def test_a_path_within_a_name_is_no_place(text: str) -> None:
    assert machine_faults("a.md", text) == []
