"""Tagged fields to bytes and back."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microvm_guest.protocol.fields import (
    NUMBERS,
    FieldTag,
    decode_fields,
    decode_number,
    encode_field,
)
from microvm_guest.protocol.frames import ProtocolViolation


def test_a_field_is_its_tag_its_length_and_its_value():
    assert encode_field(FieldTag.CWD, "/tmp") == b"\x03\x00\x04\x00/tmp"
    assert encode_field(FieldTag.PID, 258) == b"\x25\x00\x04\x00\x02\x01\x00\x00"


def test_fields_come_out_in_order_and_the_same():
    payload = encode_field(FieldTag.ARG, "a") + encode_field(FieldTag.ARG, "") + b"\x03\0\x01\0/"
    assert list(decode_fields(payload)) == [
        (FieldTag.ARG, b"a"),
        (FieldTag.ARG, b""),
        (FieldTag.CWD, b"/"),
    ]


def test_an_unknown_tag_is_skipped_since_minor_versions_add_some():
    payload = struct.pack("<HH", 999, 3) + b"new" + encode_field(FieldTag.USER, "x")
    assert list(decode_fields(payload)) == [(FieldTag.USER, b"x")]


@pytest.mark.parametrize("cut", [1, 2, 3, 4, 7])
def test_a_payload_cut_anywhere_within_a_field_is_a_violation(cut):
    payload = encode_field(FieldTag.CWD, "/tmp")[:cut]
    with pytest.raises(ProtocolViolation, match="ends inside a field"):
        list(decode_fields(payload))


@pytest.mark.parametrize("length", [0, 3, 5, 8])
def test_a_number_of_the_wrong_length_is_a_violation(length):
    with pytest.raises(ProtocolViolation, match="PID field"):
        decode_number(FieldTag.PID, bytes(length))


def test_text_that_is_not_utf_8_goes_out_as_the_bytes_it_came_from():
    name = b"caf\xe9".decode("utf-8", "surrogateescape")
    assert encode_field(FieldTag.ARG, name)[4:] == b"caf\xe9"


@given(st.sampled_from(sorted(NUMBERS)), st.integers(0, 2**32 - 1))
def test_numbers_survive_the_round_trip(tag, number):
    ((out_tag, raw),) = decode_fields(encode_field(tag, number))
    assert (out_tag, decode_number(tag, raw)) == (tag, number)


@given(st.binary(max_size=100))
def test_random_payloads_give_fields_or_a_violation(payload):
    try:
        fields = list(decode_fields(payload))
    except ProtocolViolation:
        return
    assert sum(4 + len(value) for _, value in fields) <= len(payload)
