"""The protocol buffer wire format, decoded without schemas or generated code.

A message is a flat list of numbered fields. The caller knows the numbers and kinds from the ``.proto`` file and asks
for them by number, so one small decoder serves every message of a TensorFlow checkpoint.
Source: Protocol Buffers documentation, "Encoding".
"""

from __future__ import annotations

from dataclasses import dataclass

Bytes = bytes | memoryview  # a message of a memory view holds views of it, and no copies
_SIGN, _MODULUS = 1 << 63, 1 << 64
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class WireError(ValueError):
    """Bytes that contradict their own encoding. The caller, who knows the file, turns it into ``DamagedFile``."""


@dataclass(frozen=True, slots=True)
class Message:
    """A decoded message: the values of each field number, in file order.

    An absent field reads as its proto3 default: 0, empty, or no messages. Of a repeated scalar the last one counts.
    Each accessor raises ``WireError`` if the field has another wire type.

    Example:
        >>> message = decode(bytes.fromhex("0896011202" + "6869"))
        >>> message.integer(1), message.text(2), message.integer(3)
        (150, 'hi', 0)
    """

    fields: dict[int, list[int | Bytes]]

    def integer(self, number: int) -> int:
        """An int32, int64, enum, bool or fixed-width field. Negative int32 and int64 values come out negative."""
        value = self._last(number, 0)
        if not isinstance(value, int):
            raise WireError(f"field {number}: expected an integer, received {len(value)} bytes")
        return value - _MODULUS if value >= _SIGN else value

    def data(self, number: int) -> bytes:
        """A bytes field."""
        return bytes(_as_bytes(number, self._last(number, b"")))

    def text(self, number: int) -> str:
        """A string field, which has to be UTF-8."""
        try:
            return self.data(number).decode()
        except UnicodeDecodeError as error:
            received = error.object[error.start :][:8]
            raise WireError(f"field {number}: expected UTF-8 text, received {received!r}") from None

    def messages(self, number: int) -> list[Message]:
        """The embedded messages of a repeated or single field."""
        return [decode(_as_bytes(number, value)) for value in self.fields.get(number, ())]

    def __contains__(self, number: int) -> bool:
        return number in self.fields

    def _last(self, number: int, default: int | Bytes) -> int | Bytes:
        values = self.fields.get(number)
        return values[-1] if values else default


def decode(data: Bytes) -> Message:
    """The fields of a serialized message; ``WireError`` if they do not fill it exactly."""
    fields: dict[int, list[int | Bytes]] = {}
    at = 0
    while at < len(data):
        tag, at = varint(data, at)
        value, at = _value(data, at, tag & 7)
        fields.setdefault(tag >> 3, []).append(value)
    return Message(fields)


def varint(data: Bytes, at: int) -> tuple[int, int]:
    """The base-128 number, unsigned and below 2**64, at index ``at`` of ``data``, and the index behind it.

    Example:
        >>> varint(bytes([0xAC, 0x02]), 0)
        (300, 2)
    """
    value = shift = 0
    for byte in data[at : at + 10]:
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value % _MODULUS, at + shift // 7
    raise WireError(f"expected a varint of at most 10 bytes, received {shift // 7} bytes without an end")


def take(data: Bytes, at: int, size: int) -> tuple[Bytes, int]:
    """``size`` bytes at index ``at``, and the index behind them; ``WireError`` if there are fewer."""
    if size > len(data) - at:
        raise WireError(f"expected {size} more bytes, received {len(data) - at}")
    return data[at : at + size], at + size


def _value(data: Bytes, at: int, kind: int) -> tuple[int | Bytes, int]:
    if kind == _VARINT:
        return varint(data, at)
    if kind == _BYTES:
        size, at = varint(data, at)
        return take(data, at, size)
    if kind not in (_FIXED32, _FIXED64):
        raise WireError(f"expected wire type 0, 1, 2 or 5, received {kind}")
    raw, at = take(data, at, 4 if kind == _FIXED32 else 8)
    return int.from_bytes(raw, "little"), at


def _as_bytes(number: int, value: int | Bytes) -> Bytes:
    if isinstance(value, int):
        raise WireError(f"field {number}: expected bytes, received the integer {value}")
    return value
