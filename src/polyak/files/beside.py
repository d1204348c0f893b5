"""Files that an index names: they lie beside or below it, and links do not lead them elsewhere."""

from __future__ import annotations

import os
from pathlib import Path

from polyak.errors import DamagedFile, FileError


def refuse_leading_out(named: Path, index: Path, origin: str) -> None:
    """Raise FileError for a link to a directory other than the index's own, or a name that no file can have.

    The Hub's cache keeps index and shards as links into one directory of blobs, so it is the directory in which the
    index really lies that counts, too.
    """
    try:
        real = Path(os.path.realpath(named))
    except ValueError as error:  # half a character, or a zero, which no file system takes
        raise DamagedFile(f"{origin}: shard {named.name!r:.120}: expected the name of a file: {error}") from error
    homes = {Path(os.path.realpath(index.parent)), Path(os.path.realpath(index)).parent}
    if not any(real.is_relative_to(home) for home in homes):
        raise FileError(
            f"{origin}: shard {named.name!r:.120}: expected a file of its own, received a link that leads out",
            hint="copy the model with its links followed, as `cp -rL` does, if you trust what they lead to",
        )
