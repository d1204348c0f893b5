"""Giving a TensorFlow checkpoint its names: it has several, and one of them, the index, makes it valid.

TensorFlow writes into a fresh directory. A checkpoint that is there under the prefix stays loadable until the index
takes its name in one rename, because the data files of the new one take names that the old index does not know: the
number of files, which stands in each name, is one that nobody uses. The number in the index follows.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path

from polyak.errors import FileError
from polyak.files.atomic import Check, PathLike, lasting, sync, sync_tree, synced
from polyak.files.failures import failures_named
from polyak.files.partial import hold, is_at, locked_directory, remove, remove_if_nobodys, sweep
from polyak.files.place import Kept, close_to_others, examined, for_parts, hand_over, refuse_no_room
from polyak.files.protobuf import varint
from polyak.files.sstable import first_block, masked_crc32c, read_table

_DATA = re.compile(r"\.data-(\d{5})-of-(\d{5})")
_MOST = 127  # the number is one byte, which can be written over
_HEADER = b"\0\0"  # the first entry: a key that shares nothing and adds nothing
_COUNT = b"\x08"  # the field of the header that comes first


@contextmanager
def replacing_bundle(prefix: PathLike, needed: int = 0, check: Check | None = None) -> Iterator[Path]:
    """A fresh prefix; what TensorFlow writes under it takes the names of ``prefix`` when the block ends.

    Args:
        needed: bytes that will be written at least; refused at once where there is no room for them.
        check: called with the fresh prefix before anything takes its name.

    Raises:
        FileError: the directory is missing, not readable or not writable, the index that is there is protected, or
            there is no room. Also after the checkpoint has its name, where that cannot be synchronised.
    """
    final = Path(os.path.realpath(Path(prefix).parent)) / Path(prefix).name
    index = final.with_name(f"{final.name}.index")
    with failures_named(final, "written", needed):
        kept = examined(index)
        sweep(final)
        refuse_no_room(final, needed)
        with lasting(index) as synchronise, locked_directory(final) as (fresh, _):
            close_to_others(fresh)  # TensorFlow's files are open to all until they have the rights of the old ones
            try:
                yield fresh / final.name
                _hand_over(kept, fresh / final.name, index)
                synced(lambda: sync_tree(fresh), fresh / final.name, check)
                _commit(fresh / final.name, final, synchronise)
            finally:
                remove(fresh)


def _hand_over(kept: Kept | None, fresh: Path, index: Path) -> None:
    """Give all files what the old index had; the data is closed to whom the old data was."""
    if kept is None:
        return
    of_data = for_parts(kept, _data(index.with_name(fresh.name)))
    for path, rights in ((fresh.with_name(index.name), kept), *((path, of_data) for path in _data(fresh))):
        with path.open("r+b") as file:
            hand_over(rights, file.fileno(), index)


def _commit(fresh: Path, final: Path, synchronise: Callable[[], None]) -> None:
    """The data files first; the index makes them the checkpoint; then those that no index knows go."""
    data = {int(m[1]): path for path in fresh.parent.iterdir() if (m := _match(path, fresh))}
    with ExitStack() as held:
        count = _claimed(data, final, held)
        try:
            index = fresh.with_name(f"{fresh.name}.index")
            if count != len(data):
                _renumber(index, count)
            sync(final.parent)
            index.replace(final.with_name(f"{final.name}.index"))
        except BaseException:
            for number in data:
                _named(final, number, count).unlink(missing_ok=True)
            raise
        synchronise()
        _sweep_data(final)


def _claimed(data: dict[int, Path], final: Path, held: ExitStack) -> int:
    """The number of files that the new names say: the least that no file of this prefix has, nor a writer takes."""
    for count in range(len(data), _MOST + 1):
        if any(int(m[2]) == count for p in final.parent.iterdir() if (m := _match(p, final))):
            continue
        if _takes(data, final, count, held):
            return count
    raise FileError(
        f"file {str(final)!r}: expected fewer than {_MOST} data files beside it, received too many to name new ones",
        hint="choose another name",
    )


def _takes(data: dict[int, Path], final: Path, count: int, held: ExitStack) -> bool:
    """Give the data files their names; the first one, which must not be there, and is held, decides."""
    with ExitStack() as taken:  # let go on failure: the next name is one more of a file that is locked here
        for number in sorted(data):
            try:
                os.link(data[number], _named(final, number, count))
            except FileExistsError:
                return False
            except OSError:  # a file system without links
                data[number].rename(_named(final, number, count))
            handle = os.open(_named(final, number, count), os.O_RDWR)
            taken.callback(os.close, handle)
            hold(handle)
            if not is_at(handle, _named(final, number, count)):
                return False
        held.push(taken.pop_all())
    return True


def _sweep_data(final: Path) -> None:
    """Remove data files of this prefix that its index does not know and no writer holds, as far as that can be done."""
    index = final.with_name(f"{final.name}.index")
    with suppress(OSError):  # the checkpoint is written
        for path in list(final.parent.iterdir()):
            match = _match(path, final)
            if match:
                remove_if_nobodys(path, index, partial(_unknown, index, int(match[2])))


def _unknown(index: Path, count: int) -> bool:
    return _count(index) != count


def _data(prefix: Path) -> list[Path]:
    """Files that are called as data files of the prefix are."""
    return [path for path in prefix.parent.iterdir() if _match(path, prefix)]


def _match(path: Path, prefix: Path) -> re.Match[str] | None:
    return _DATA.fullmatch(path.name, len(prefix.name)) if path.name.startswith(prefix.name) else None


def _named(prefix: Path, number: int, count: int) -> Path:
    return prefix.with_name(f"{prefix.name}.data-{number:05d}-of-{count:05d}")


def _count(index: Path) -> int:
    """The number of data files that an index states."""
    header = read_table(index)[b""]
    return varint(header, 1)[0] if header.startswith(_COUNT) else 0


def _renumber(index: Path, count: int) -> None:
    """State another number of data files: in the header, the first entry of the first block, whose checksum follows.

    Source: ``tensorflow/core/protobuf/tensor_bundle.proto`` (BundleHeaderProto, field 1), LevelDB's table_format.md.
    """
    content = bytearray(index.read_bytes())
    offset, size = first_block(bytes(content))
    place = offset + len(_HEADER) + 1  # behind the length of the header
    if not (content.startswith(_HEADER, offset) and content.startswith(_COUNT, place) and content[place + 1] <= _MOST):
        raise FileError(f"file {str(index)!r}: expected the header of a TensorFlow V2 checkpoint, received another")
    content[place + 1] = count
    end = offset + size + 1  # with the byte that says how it is packed
    content[end : end + 4] = masked_crc32c(bytes(content[offset:end])).to_bytes(4, "little")
    index.write_bytes(content)
    sync(index)
