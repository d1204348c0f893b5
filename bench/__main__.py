"""All benches, one after another, or those that are named: ``python -m bench [NAME ...] [--quick]``."""

from __future__ import annotations

import subprocess
import sys
from itertools import takewhile

# What each measures is said at the top of its module.
BENCHES = ("update", "guarded", "fit", "apply", "transfer", "files", "durability", "start", "growth")


def main() -> int:
    """What follows the names goes on to each bench. The status says whether one of them failed."""
    given = sys.argv[1:]
    first = list(takewhile(lambda argument: not argument.startswith("-"), given))
    names, options = [name for name in first if name != "all"], given[len(first) :]
    for name in (n for n in names if n not in BENCHES):
        print(f"bench: no bench {name!r}; there are {', '.join(BENCHES)}", file=sys.stderr)
        return 2
    failed = 0
    for name in names or BENCHES:
        print(f"\n== {name}", flush=True)
        failed |= subprocess.run([sys.executable, "-m", f"bench.{name}", *options], check=False).returncode
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
