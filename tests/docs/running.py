"""Running the examples of one page: its Python and its ``$ polyak ...`` lines, in order, in the present directory.

A Python block may name a Keras backend (```` ```python jax ````): it runs on that one alone, and the blocks without a
name run on each backend that their page names. As a program this runs a page on the backend of ``KERAS_BACKEND``, with
two devices, so that examples of several devices have several.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

from click.testing import CliRunner

from polyak.cli import main

BLOCK = re.compile(r"^```(python|console)(?: (\w+))?\n(.*?)^```", re.DOTALL | re.MULTILINE)
COMMAND = re.compile(r"^\$ (polyak .*)\n((?:(?!\$ ).*\n)*)", re.MULTILINE)
BACKENDS = ("tensorflow", "jax", "torch")


def backends(page: Path) -> tuple[str, ...]:
    """The backends that the blocks of a page name."""
    return tuple(dict.fromkeys(name for _, name, _ in BLOCK.findall(page.read_text()) if name))


def has_python(page: Path) -> bool:
    return any(kind == "python" for kind, _, _ in BLOCK.findall(page.read_text()))


def run(page: Path, backend: str) -> int:
    """Run the blocks of a backend and those of all; how many there were."""
    namespace = {"__name__": f"page_{page.stem}"}
    blocks = list(_blocks(page, backend))
    for line, kind, text in blocks:
        if kind == "python":
            exec(compile("\n" * line + text, str(page), "exec", dont_inherit=True), namespace)  # noqa: S102 - our own pages
        else:
            _run_console(text)
    return len(blocks)


def _blocks(page: Path, backend: str) -> Iterator[tuple[int, str, str]]:
    text = page.read_text()
    for found in BLOCK.finditer(text):
        kind, name, code = found.groups()
        if name in (None, backend):
            yield text[: found.start()].count("\n") + 1, kind, code


def _run_console(text: str) -> None:
    for command, expected in COMMAND.findall(text):
        done = CliRunner().invoke(main, shlex.split(command)[1:], prog_name="polyak")
        assert done.exit_code in (0, 1), done.output
        pattern = re.escape(expected.strip()).replace(r"\.\.\.", ".*")
        said = "\n".join(line.rstrip() for line in done.output.strip().splitlines())
        assert re.fullmatch(pattern, said, re.DOTALL), f"{command}\n{said}"


def _two_devices(backend: str) -> None:
    """Made before a framework starts."""
    if backend == "jax":
        os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
    if backend == "tensorflow":
        import tensorflow as tf

        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)


if __name__ == "__main__":
    _two_devices(os.environ["KERAS_BACKEND"])
    print(run(Path(sys.argv[1]), os.environ["KERAS_BACKEND"]), "blocks")
