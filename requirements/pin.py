"""Write a pin file from the output of ``pip freeze``: ``pin.py NAME < frozen > NAME.txt`` (called by ``make pins``)."""

from __future__ import annotations

import re
import sys

PIN = re.compile(r"[A-Za-z0-9._-]+==[A-Za-z0-9._!+-]+")
# The CPU build exists for x86-64 on Linux and Windows; elsewhere the plain package holds no accelerator code.
HAS_CPU_BUILD = "sys_platform != 'darwin' and platform_machine in 'x86_64 AMD64'"
NO_CPU_BUILD = "sys_platform == 'darwin' or platform_machine not in 'x86_64 AMD64'"


def pins(frozen: list[str]) -> list[str]:
    """Exact versions only; TensorFlow as its CPU build where there is one, else the plain package.

    Example:
        >>> [pin.split(";")[0] for pin in pins(["numpy==2.4.6", "tensorflow==2.21.0", "tensorflow_cpu==2.21.0"])]
        ['numpy==2.4.6', 'tensorflow-cpu==2.21.0', 'tensorflow==2.21.0']
    """
    versions = {}
    for line in frozen:
        if not PIN.fullmatch(line):
            raise SystemExit(f"not an exact version: {line!r}")
        name, version = line.split("==")
        # A build's own mark ("2.13.0+cpu") is known to one index alone.
        versions[re.sub(r"[-_.]+", "-", name).lower()] = version.partition("+")[0]
    tensorflow = versions.pop("tensorflow-cpu", None) or versions.pop("tensorflow")
    versions.pop("tensorflow", None)
    plain = [f"{name}=={version}" for name, version in versions.items()]
    build = [f"tensorflow-cpu=={tensorflow}; {HAS_CPU_BUILD}", f"tensorflow=={tensorflow}; {NO_CPU_BUILD}"]
    return sorted(plain + build)


if __name__ == "__main__":
    print(f"# The exact set that `make {sys.argv[1]}` installs; written by `make pins` from pyproject.toml.")
    print("\n".join(pins(sys.stdin.read().split("\n")[:-1])))
