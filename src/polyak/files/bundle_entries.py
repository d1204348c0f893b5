"""The entries of a TensorFlow checkpoint's index: what each tensor is, where it lies, and its parts, if it has any.

Sources: ``tensorflow/core/protobuf/tensor_bundle.proto`` and ``tensorflow/core/util/saved_tensor_slice_util.cc``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from polyak.files.protobuf import Message, WireError, decode
from polyak.weights import numpy_dtype

NON_NUMERIC = ("string", "resource", "variant")
# In the order of tensorflow.DataType, from 1. Quantised integers are plain ones here: their scale is not in the file.
_DTYPE_NAMES = """
    float32 float64 int32 uint8 int16 int8 string complex64 int64 bool int8 uint8 int32 bfloat16 int16 uint16 uint16
    complex128 float16 resource variant uint32 uint64 float8_e5m2 float8_e4m3fn float8_e4m3fnuz float8_e4m3b11fnuz
    float8_e5m2fnuz int4 uint4 int2 uint2 float4_e2m1fn
"""
DTYPES = dict(enumerate(_DTYPE_NAMES.split(), start=1))
_MAX_RANK = 64  # NumPy's limit

# Per dimension: first index and length; a length of -1 takes the whole dimension.
Region = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Entry:
    """Where and what one tensor of a checkpoint is.

    Attributes:
        key: its name in the checkpoint.
        dtype: name of its NumPy or ml_dtypes dtype, or "string", "resource", "variant".
        shape: lengths of its dimensions, in elements.
        shard: number of the data file.
        offset: its first byte in that file.
        size: bytes it takes there; 0 if it is stored in parts.
        crc32c: masked checksum of these bytes.
        regions: the parts of a partitioned variable, each of which has an entry of its own.

    Example:
        >>> Entry("kernel", "bfloat16", (64, 10), shard=0, offset=0, size=1280, crc32c=0).nbytes
        1280
    """

    key: str
    dtype: str
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    crc32c: int
    regions: tuple[Region, ...] = ()

    @property
    def numeric(self) -> bool:
        """Whether the tensor can be read as an array."""
        return self.dtype not in NON_NUMERIC

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor in memory; as stored, if it is not numeric."""
        return math.prod(self.shape) * numpy_dtype(self.dtype).itemsize if self.numeric else self.size


def no_numbers(dtype: str) -> str:
    """What a tensor is whose dtype is none of numbers, in words.

    Example:
        >>> no_numbers("string"), no_numbers("variant")
        ('an array of texts', 'a variant of TensorFlow')
    """
    return "an array of texts" if dtype == "string" else f"a {dtype} of TensorFlow"


def decode_entries(table: dict[bytes, bytes]) -> tuple[dict[str, Entry], dict[bytes, Entry]]:
    """All tensors by name, and the parts of partitioned ones by their encoded keys."""
    names = {raw: raw.decode("utf-8", "backslashreplace") for raw in table}
    decoded = {raw: _decode_entry(names[raw], value) for raw, value in table.items()}
    wanted = {region_key(entry.key, region) for entry in decoded.values() for region in entry.regions}
    parts = {raw: entry for raw, entry in decoded.items() if raw in wanted}
    entries = {entry.key: entry for raw, entry in decoded.items() if raw not in wanted}
    if len(entries) + len(parts) != len(decoded):
        raise WireError(f"expected {len(decoded)} distinct keys, received {len(entries) + len(parts)}")
    return entries, parts


def _decode_entry(key: str, value: bytes) -> Entry:
    try:
        fields = decode(value)
        shape = tuple(dim.integer(1) for shape in fields.messages(2) for dim in shape.messages(2))
        regions = tuple(decode_region(part) for part in fields.messages(7))
        shard, offset, size, crc32c = (fields.integer(number) for number in (3, 4, 5, 6))
        entry = Entry(key, _dtype(fields), shape, shard, offset, size, crc32c, regions)
        _check_size(entry)
    except WireError as error:
        raise WireError(f"tensor {key!r}: {error}") from None
    return entry


def _dtype(fields: Message) -> str:
    if (code := fields.integer(1)) in DTYPES:
        return DTYPES[code]
    raise WireError(f"expected a dtype from 1 to {len(DTYPES)}, received {code}")


def decode_region(part: Message) -> Region:
    # An extent without a length takes everything, also for the key that the region is stored under.
    return tuple((dim.integer(1), dim.integer(2) if 2 in dim else -1) for dim in part.messages(1))


def _check_size(entry: Entry) -> None:
    """A shape that NumPy can hold, and as many bytes as it needs."""
    if len(entry.shape) > _MAX_RANK or any(length < 0 for length in entry.shape):
        raise WireError(f"expected up to {_MAX_RANK} dimensions without negative ones, received shape {entry.shape}")
    if math.prod(length or 1 for length in entry.shape) >= 1 << 56:
        raise WireError(f"expected fewer than 2**56 elements, received shape {entry.shape}")
    expected = 0 if entry.regions else entry.nbytes
    if entry.size != expected:
        raise WireError(f"expected {expected} bytes for {entry.dtype} of shape {entry.shape}, received {entry.size}")


def check_regions(entries: Mapping[str, Entry], parts: Mapping[bytes, Entry], room: int) -> None:
    """Parts of partitioned tensors that fit and add up, so that reading allocates no more than the files hold."""
    for entry in entries.values():
        if not entry.regions or not entry.numeric:
            continue
        for region in entry.regions:
            part = parts.get(region_key(entry.key, region))
            if part is None or (part.dtype, part.shape) != (entry.dtype, region_shape(region, entry.shape)):
                received = "none" if part is None else f"{part.dtype} of shape {part.shape}"
                raise WireError(f"tensor {entry.key!r}: expected its part at {region}, received {received}")
        stored = sum(parts[region_key(entry.key, region)].nbytes for region in entry.regions)
        if stored != entry.nbytes or stored > room:
            total = f"expected parts of {entry.nbytes} bytes in all, received {stored} in files of {room} bytes"
            raise WireError(f"tensor {entry.key!r}: {total}")


def region_slices(region: Region, shape: tuple[int, ...]) -> tuple[slice, ...]:
    if len(region) != len(shape):
        raise WireError(f"expected a part in {len(shape)} dimensions, received {region}")
    extents = [
        (0, whole) if length == -1 else (start, length) for (start, length), whole in zip(region, shape, strict=True)
    ]
    if any(
        start < 0 or length < 0 or start + length > whole for (start, length), whole in zip(extents, shape, strict=True)
    ):
        raise WireError(f"expected a part within shape {shape}, received {region}")
    return tuple(slice(start, start + length) for start, length in extents)


def region_shape(region: Region, shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(where.stop - where.start for where in region_slices(region, shape))


def region_key(name: str, region: Region) -> bytes:
    """The key that a part is stored under: an encoding whose bytes sort as its values do.

    Source: ``EncodeTensorNameSlice`` in ``tensorflow/core/util/saved_tensor_slice_util.cc``.
    """
    escaped = re.sub(rb"[\x00\xff]", lambda byte: byte[0] + bytes([byte[0][0] ^ 0xFF]), name.encode())
    extents = b"".join(_ordered_signed(number) for extent in region for number in extent)
    return b"\0" + escaped + b"\0\1" + _ordered(len(region)) + extents


def _ordered(number: int) -> bytes:
    """A natural number as its length in bytes and its bytes, highest first."""
    size = (number.bit_length() + 7) // 8
    return bytes([size]) + number.to_bytes(size, "big")


def _ordered_signed(number: int) -> bytes:
    """An integer in two's complement whose first bits tell the sign and, by their count, the length in bytes.

    Example:
        >>> _ordered_signed(-1).hex(), _ordered_signed(63).hex(), _ordered_signed(64).hex()
        ('7f', 'bf', 'c040')
    """
    size = (number ^ (number >> 63)).bit_length() // 7 + 1
    header = ((1 << size) - 1) << 7 * size
    return ((number % (1 << 8 * size)) ^ header).to_bytes(size, "big")
