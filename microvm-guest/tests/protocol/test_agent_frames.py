"""Frames to bytes and back, whole, byte by byte, and wrong ones."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microvm_guest.protocol.frames import (
    FROM_AGENT,
    FROM_HOST,
    HEADER,
    MAX_PAYLOAD,
    Frame,
    FrameFlag,
    FrameReader,
    FrameType,
    ProtocolViolation,
)

STDOUT = Frame(FrameType.STDOUT, 7, b"hello", FrameFlag.EOF)


def read_all(reader):
    frames = []
    while (frame := reader.next_frame()) is not None:
        frames.append(frame)
    return frames


def test_a_frame_is_a_little_endian_header_of_12_bytes_and_its_payload():
    assert STDOUT.encode() == bytes.fromhex("05000000 13 01 0000 07000000") + b"hello"


@pytest.mark.parametrize("step", [1, 3, 1000])
def test_frames_come_out_the_same_however_the_bytes_come_in(step):
    pong = Frame(FrameType.PONG, payload=bytes(8))
    raw = STDOUT.encode() + pong.encode() + STDOUT.encode()
    reader = FrameReader(FROM_AGENT)
    frames = []
    for start in range(0, len(raw), step):
        reader.feed(raw[start : start + step])
        frames += read_all(reader)
    assert frames == [STDOUT, pong, STDOUT]
    assert reader.buffered == 0


def test_bytes_behind_a_frame_wait_for_the_next():
    reader = FrameReader(FROM_AGENT)
    reader.feed(STDOUT.encode() + STDOUT.encode()[:-1])
    assert read_all(reader) == [STDOUT]
    assert reader.buffered == len(STDOUT.encode()) - 1
    reader.feed(STDOUT.encode()[-1:])
    assert read_all(reader) == [STDOUT]


def test_the_largest_payload_passes():
    big = Frame(FrameType.STDOUT, 1, bytes(MAX_PAYLOAD))
    reader = FrameReader(FROM_AGENT)
    reader.feed(big.encode())
    assert reader.next_frame() == big


@pytest.mark.parametrize(
    ("header", "what"),
    [
        ((MAX_PAYLOAD + 1, FrameType.STDOUT, 0, 0, 1), "payload of 65537 bytes"),
        ((0xFFFF_FFFF, FrameType.STDOUT, 0, 0, 1), "payload of 4294967295 bytes"),
        ((7, FrameType.PONG, 0, 0, 0), "PONG frame with a payload of 7"),
        ((0, 0x77, 0, 0, 0), "type 0x77"),
        ((0, 0, 0, 0, 0), "type 0x00"),
        ((4, FrameType.RUN, 0, 0, 1), "type 0x10"),
        ((5, FrameType.STDOUT, 0x80, 0, 1), "bits set"),
        ((8, FrameType.PONG, 1, 0, 0), "bits set"),
        ((5, FrameType.STDOUT, 0, 1, 1), "bits set"),
        ((5, FrameType.STDOUT, 0, 0, 0), "STDOUT frame on stream 0"),
        ((8, FrameType.PONG, 0, 0, 9), "PONG frame on stream 9"),
    ],
)
def test_a_wrong_header_is_refused_before_its_payload_has_come(header, what):
    reader = FrameReader(FROM_AGENT)
    reader.feed(HEADER.pack(*header))
    with pytest.raises(ProtocolViolation, match=what):
        reader.next_frame()


def test_the_first_bytes_of_another_protocol_are_refused():
    reader = FrameReader(FROM_AGENT)
    reader.feed(b"HTTP/1.1 200 OK\r\n")
    with pytest.raises(ProtocolViolation):
        reader.next_frame()


def test_error_alone_may_be_of_a_command_or_of_the_connection():
    reader = FrameReader(FROM_AGENT)
    text = struct.pack("<I", 1) + b"no"
    reader.feed(Frame(FrameType.ERROR, 0, text).encode() + Frame(FrameType.ERROR, 5, text).encode())
    assert [frame.stream for frame in read_all(reader)] == [0, 5]


@pytest.mark.parametrize("rules", [FROM_AGENT, FROM_HOST])
def test_every_type_in_a_table_has_bounds_within_a_frame(rules):
    for rule in rules.values():
        assert 0 <= rule.min_payload <= rule.max_payload <= MAX_PAYLOAD


@given(st.binary(max_size=200), st.integers(1, 50))
def test_random_bytes_give_frames_or_a_violation_and_nothing_else(raw, step):
    reader = FrameReader(FROM_AGENT)
    try:
        for start in range(0, len(raw), step):
            reader.feed(raw[start : start + step])
            read_all(reader)
    except ProtocolViolation:
        return
    assert reader.buffered <= len(raw)
