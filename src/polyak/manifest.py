"""The manifest: what a set of named arrays is. Roles, rules, counts, kinds, evidence, digests, versions."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, Any

import msgspec
import numpy as np
import xxhash

from polyak.errors import AmbiguousRole, DamagedFile, UnexpectedWeight, UnknownFormat
from polyak.weights import Weight

VERSION = 1
RAW = "raw"
AVERAGE = "average"
OF_MEMBER = "member "  # begins what is told of one of several that were averaged

Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class State(msgspec.Struct, frozen=True, omit_defaults=True):
    """What an average knows beside its values.

    Attributes:
        rule: the rule in its JSON form.
        count: updates that moved or copied into the average.
        skipped: updates refused because a weight was not finite.
    """

    rule: Any
    count: Count
    skipped: Count = 0


_SURROGATE = re.compile("[\ud800-\udfff]")


class Stored(msgspec.Struct, frozen=True, omit_defaults=True):
    """One array of a file: the name it is stored under, its role, its description, and the digest of its bytes."""

    name: str
    role: str
    weight: Weight
    digest: str = ""


class Manifest(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a snapshot holds. ``roles`` maps each role to the state of its average, or to None for raw weights.

    ``note`` is what a reader must know of a foreign file, such as weights that its writer is known to leave out.
    ``evidence`` says, in sentences, why the roles of a foreign file are taken to be what they are, and ``confidence``
    how sure that is: "stated" by the file, "inferred" from the layout of a known tool, or "unknown".
    ``layout`` says how the arrays of a layer lie: "keras", "torch", "jax" for as in Keras but for transposed
    convolutions, which each tool of JAX keeps in its own way, or "" where nobody knows.
    ``unread`` says what else is in a foreign file, by its path: arrays that cannot be read, objects, plain values.
    """

    tool: str
    roles: dict[str, State | None]
    weights: tuple[Stored, ...]
    version: int = VERSION
    source: str = ""
    versions: dict[str, str] = {}
    integrity: str = "none"
    note: str = ""
    evidence: tuple[str, ...] = ()
    confidence: str = "stated"
    layout: str = ""
    unread: dict[str, str] = {}

    @property
    def marked(self) -> bool:
        """Whether every array has a digest, with which its bytes are compared when they are read."""
        return all(s.digest for s in self.weights)

    def to_json(self) -> str:
        """As text. Raises UnexpectedWeight for a name that is none in Unicode."""
        refuse_halves(s.name for s in self.weights)
        return msgspec.json.encode(self).decode()

    @classmethod
    def from_json(cls, text: str | bytes, origin: str, count: int | None = None) -> Manifest:
        """Read a manifest. Raises DamagedFile, UnknownFormat.

        Args:
            origin: names the file in errors.
            count: of arrays in the file; a text out of all proportion to them is not read.
        """
        if count is not None:
            _refuse_bloated(text.encode(errors="surrogatepass") if isinstance(text, str) else text, count, origin)
        try:
            version = msgspec.json.decode(text, type=_Versioned).version
            if version > VERSION:
                raise UnknownFormat(
                    f"{origin}: expected a manifest of version {VERSION} or older, received version {version}",
                    hint="install a newer polyak",
                )
            return msgspec.json.decode(text, type=cls)
        except (msgspec.MsgspecError, TypeError, ValueError, RecursionError) as error:
            raise DamagedFile(f"{origin}: the manifest is not readable: {error}") from error


def refuse_halves(names: Iterable[str]) -> None:
    """Raise UnexpectedWeight for the name of a weight that is none in Unicode."""
    for name in names:
        if _SURROGATE.search(name):
            raise UnexpectedWeight(
                f"weight {name!r}: expected a name in Unicode, received half of a character", hint="rename it"
            )


def told_json(body: Any) -> str:
    r"""What is told of a file, as JSON. Files of other tools have names that are none in Unicode: these are escaped.

    Example:
        >>> print(told_json({"name": "a\udc80"}))
        {"name":"a\\udc80"}
    """
    try:
        return msgspec.json.encode(body).decode()
    except UnicodeEncodeError:
        return msgspec.json.encode(_shown(msgspec.to_builtins(body))).decode()


def _shown(body: Any) -> Any:
    if isinstance(body, dict):
        return {_shown(key): _shown(value) for key, value in body.items()}
    if isinstance(body, (list, tuple)):
        return [_shown(value) for value in body]
    return body.encode(errors="backslashreplace").decode() if isinstance(body, str) else body


class _Note(msgspec.Struct, frozen=True):
    """A file that keeps a manifest beside arrays: its text, and the digest of that."""

    polyak: str
    digest: str


def encode_note(manifest: Manifest) -> bytes:
    """The manifest with its digest, for a file of its own."""
    text = manifest.to_json()
    return msgspec.json.encode(_Note(text, xxhash.xxh3_128_hexdigest(text.encode())))


def decode_note(raw: bytes, origin: str, count: int) -> Manifest:
    """Read what ``encode_note`` made, of so many arrays. Raises DamagedFile, UnknownFormat."""
    try:
        note = msgspec.json.decode(raw, type=_Note)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise DamagedFile(f"{origin}: the manifest is not readable: {error}", hint="restore it from a copy") from error
    if xxhash.xxh3_128_hexdigest(note.polyak.encode()) != note.digest:
        raise DamagedFile(f"{origin}: the manifest does not have its digest", hint="restore the checkpoint from a copy")
    return Manifest.from_json(note.polyak, origin, count)


class _Versioned(msgspec.Struct):
    version: int = VERSION


def longest_manifest(count: int) -> int:
    """The most bytes that the manifest of so many arrays has; most have a tenth."""
    return 65_536 + 8192 * count


def _refuse_bloated(text: bytes, count: int, origin: str) -> None:
    """A text of brackets takes twenty times its size once it is read."""
    most = {b"{": 512 + 8 * count, b"[": 512 + 8 * count, b",": 4096 + 128 * count}
    if len(text) > longest_manifest(count) or any(text.count(mark) > n for mark, n in most.items()):
        raise DamagedFile(
            f"{origin}: expected the manifest of {count:,} arrays, received {len(text):,} bytes of other things"
        )


class Memo(msgspec.Struct, frozen=True, omit_defaults=True):
    """What an average writes into the files of other tools: its rule in JSON form, and its weights."""

    rule: Any
    weights: tuple[Weight, ...] = ()


def encode_memo(rule: Any, weights: Iterable[Weight]) -> str:
    """The memo as JSON text."""
    return msgspec.json.encode(Memo(rule, tuple(weights))).decode()


def decode_memo(text: str | bytes) -> Memo:
    """Read what ``encode_memo`` made. Raises DamagedFile."""
    try:
        return msgspec.json.decode(text, type=Memo)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise DamagedFile(f"the note of an average is not readable: {error}") from error


def digest(array: np.ndarray[Any, Any]) -> str:
    """XXH3 (128 bit) of an array's bytes in C order, as hexadecimal text.

    It detects damage, not forgery.

    Example:
        >>> digest(np.zeros(2, np.float32)) == digest(np.zeros(2, np.int32))
        True
    """
    flat = np.ascontiguousarray(array).reshape(-1)
    return xxhash.xxh3_128_hexdigest(flat.view(np.uint8).data if flat.size else b"")


def choose_role(roles: Iterable[str], asked: str | None, origin: str) -> str:
    """The one role that the caller means.

    ``asked`` may be a role, or ``"average"`` where just one named average exists. Unasked, only sets of weights count,
    not what an optimizer or a training loop keeps.

    Raises:
        AmbiguousRole: several roles, and ``asked`` does not pick one.

    Example:
        >>> choose_role(["raw", "average:ema"], "average", "run.ckpt")
        'average:ema'
    """
    known = list(roles)
    if asked is None:
        fitting = [r for r in known if r == RAW or r.startswith(AVERAGE)] or known
    else:
        fitting = [r for r in known if r == asked] or [r for r in known if r.startswith(f"{asked}:")]
    if len(fitting) == 1:
        return fitting[0]
    wanted = "weights of one role" if asked is None else f"weights of role {asked!r}"
    offered = fitting or known
    raise AmbiguousRole(f"{origin}: expected {wanted}, received {_listed(offered, ' and ')}", hint=_pick(offered))


# What a user most often meets: TensorFlow's walk of a Keras model finds none of its layers.
_NO_ROLES = (
    "write it anew: with polyak.save(model, path), or in a tf.train.Checkpoint with polyak.tensorflow.Weights(model), "
    "for by itself that leaves out layers that a Keras model holds in lists and dictionaries"
)


def _listed(roles: list[str], last: str) -> str:
    quoted = [repr(r) for r in roles]
    return last.join(filter(None, [", ".join(quoted[:-1]), *quoted[-1:]])) or "no weights at all"


def _pick(roles: list[str]) -> str:
    return "say which: " + " or ".join(f'weights="{r}"' for r in roles) if roles else _NO_ROLES
