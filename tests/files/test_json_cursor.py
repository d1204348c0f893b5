"""JSON of a known form, taken apart; the standard library is the oracle for what is well-formed."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyak.errors import DamagedFile
from polyak.files.json_cursor import Cursor
from polyak.files.limits import MOST_HEADER

plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()


@given(st.dictionaries(st.text(), plain), st.sampled_from([None, 1, "\t"]), st.booleans())
def test_what_json_writes_is_read(held: dict[str, object], indent: int | str | None, ascii_only: bool) -> None:
    raw = json.dumps(held, indent=indent, ensure_ascii=ascii_only).encode(errors="surrogatepass")
    cursor = Cursor(raw, "the text")
    assert {name: cursor.value() for name in cursor.names(1000)} == held
    cursor.finish()


@given(st.lists(st.text()))
def test_lists_of_texts_are_read(texts: list[str]) -> None:
    assert list(Cursor(json.dumps(texts).encode(), "the text").texts(1000)) == texts


@given(st.binary(max_size=60))
def test_other_bytes_are_refused_or_read_as_json_reads_them(raw: bytes) -> None:
    cursor = Cursor(b'{"a":' + raw, "the text")
    try:
        found = {name: cursor.value() for name in cursor.names(10)}
        cursor.finish()
    except DamagedFile:
        return
    assert found == json.loads((b'{"a":' + raw).decode("latin-1"), strict=False)


def test_a_text_alone_stands_for_a_list_of_one() -> None:
    assert list(Cursor(b'"a"', "the text").texts(1)) == ["a"]


def everything(raw: bytes, most: int = 10) -> object:
    cursor = Cursor(raw, "the text")
    held = {name: cursor.value() for name in cursor.names(most)}
    cursor.finish()
    return held


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"[1]", "expected an object at byte 0"),
        (b'{"a" 1}', "expected a name at byte 1"),
        (b'{"a":1]', "expected a comma or the end at byte 7"),
        (b'{"a":1', "expected a comma or the end at byte 6"),
        (b'{"a":1,}', "expected a name at byte 7"),
        (b'{"a":1}x', "expected nothing more at byte 7"),
        (b'{"a":1,"a":2}', "a name occurs twice: 'a'"),
        (b'{"a":1,"b":2,"c":3}', "expected at most 2 entries, received more"),
        (b'{"\\x":1}', "is not readable"),
        (b'{"\xff":1}', "is not readable"),
        (b'{"a":' + b"[" * 5000, "expected a text or a short value"),
        (b'{"a":[' + b"1," * 5000 + b"1]}", "expected a text or a short value"),
    ],
)
def test_what_has_another_form_is_told_with_its_place(raw: bytes, said: str) -> None:
    with pytest.raises(DamagedFile, match=said):
        everything(raw, 2)


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"[1]", "expected a description at byte 0"),
        (b'{"a":1', "expected a description at byte 0"),
        (b'{"a":1,"a":2}', "a name occurs twice"),
        (b'{"a":{}}', "is not readable"),
        (b'{"a":"' + b"x" * 5000 + b'"}', "expected a description at byte 0"),
    ],
)
def test_a_description_is_short_and_flat(raw: bytes, said: str) -> None:
    with pytest.raises(DamagedFile, match=said):
        Cursor(raw, "the text").description()


def test_a_text_may_be_bounded() -> None:
    assert Cursor(b'"abc"', "the text").text(5) == "abc"
    with pytest.raises(DamagedFile, match="expected a text of at most 4 bytes"):
        Cursor(b'"abc"', "the text").text(4)
    with pytest.raises(DamagedFile, match="expected a text at byte 0, received b'1'"):
        Cursor(b"1", "the text").text()


def test_a_text_beyond_the_limit_of_headers_is_not_looked_at() -> None:
    with pytest.raises(DamagedFile, match="expected at most 50,000,000 bytes, received 50,000,001"):
        Cursor(b" " * (MOST_HEADER + 1), "the text")
