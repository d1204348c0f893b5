"""The wire format: what Google's package writes is read alike, and bytes that are no message are refused."""

from __future__ import annotations

import random

import pytest

from polyak.files.protobuf import WireError, decode, varint


@pytest.mark.parametrize("value", [0, 1, 127, 128, 300, 2**31 - 1, 2**31, 2**63 - 1, -1, -(2**31), -(2**63)])
def test_integers_as_google_writes_them(value: int) -> None:
    wrappers = pytest.importorskip("google.protobuf.wrappers_pb2")
    assert decode(wrappers.Int64Value(value=value).SerializeToString()).integer(1) == value


def test_a_whole_schema_as_google_reads_it() -> None:
    descriptor = pytest.importorskip("google.protobuf.descriptor_pb2")
    file = descriptor.FileDescriptorProto()
    descriptor.DESCRIPTOR.CopyToProto(file)
    messages = decode(file.SerializeToString()).messages(4)
    assert [message.text(1) for message in messages] == [message.name for message in file.message_type]
    numbers = [[field.integer(3) for field in message.messages(2)] for message in messages]
    assert numbers == [[field.number for field in message.field] for message in file.message_type]
    assert sum(map(len, numbers)) > 50


def test_fixed_width_fields() -> None:
    message = decode(bytes.fromhex("0d78563412" + "11efcdab8967452301"))
    assert (message.integer(1), message.integer(2)) == (0x12345678, 0x0123456789ABCDEF)


def test_absent_fields_are_defaults_and_the_last_of_many_counts() -> None:
    message = decode(bytes.fromhex("08010802" + "1a00"))
    assert (message.integer(1), message.integer(9), message.text(9), message.data(9)) == (2, 0, "", b"")
    assert message.messages(9) == []
    assert (3 in message, 9 in message) == (True, False)
    assert decode(b"").fields == {}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("80", "expected a varint"),
        ("08", "expected a varint"),
        ("08" + "80" * 10 + "01", "expected a varint of at most 10 bytes, received 10 bytes"),
        ("0a05616263", "expected 5 more bytes, received 3"),
        ("0affffffffffffffff7f", "more bytes, received 0"),
        ("0d0102", "expected 4 more bytes, received 2"),
        ("110102", "expected 8 more bytes, received 2"),
        ("0b0c", "expected wire type 0, 1, 2 or 5, received 3"),
        ("0f", "received 7"),
    ],
)
def test_what_is_no_message(data: str, message: str) -> None:
    with pytest.raises(WireError, match=message):
        decode(bytes.fromhex(data))


def test_fields_of_another_kind() -> None:
    message = decode(bytes.fromhex("0801" + "1202c328"))
    with pytest.raises(WireError, match="field 1: expected bytes, received the integer 1"):
        message.text(1)
    with pytest.raises(WireError, match="field 1: expected bytes"):
        message.messages(1)
    with pytest.raises(WireError, match="field 2: expected an integer, received 2 bytes"):
        message.integer(2)
    with pytest.raises(WireError, match=r"field 2: expected UTF-8 text, received b'\\xc3\("):
        message.text(2)


def test_any_bytes_give_a_message_or_a_wire_error() -> None:
    generator, refused = random.Random(0), 0
    for _ in range(3000):
        data = generator.randbytes(generator.randrange(1, 40))
        try:
            assert decode(data).fields
        except WireError:
            refused += 1
    assert 1000 < refused < 3000


def test_a_varint_stops_where_it_ends() -> None:
    assert varint(b"\x01\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01\x05", 1) == (2**64 - 1, 11)
