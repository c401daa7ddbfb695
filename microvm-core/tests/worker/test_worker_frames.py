"""Frames: found whatever the pieces they come in, and bounded whatever they say of themselves."""

import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microvm.errors import WorkerProtocolError
from microvm.worker.frames import MAX_FRAME_BYTES, FrameReader, encode

MESSAGES = [{"do": "start", "id": 1}, {}, {"path": "\udcff", "deep": [[{}]], "n": 1.5}]


def test_frames_are_found_whole_byte_by_byte_and_with_trailing_bytes():
    stream = b"".join(map(encode, MESSAGES))
    assert FrameReader().feed(stream) == MESSAGES
    reader = FrameReader()
    assert [m for byte in stream for m in reader.feed(bytes([byte]))] == MESSAGES
    reader = FrameReader()
    assert reader.feed(stream + encode({"x": 1})[:-1]) == MESSAGES
    assert reader.feed(b"}") == [{"x": 1}]


@pytest.mark.parametrize("length", [MAX_FRAME_BYTES + 1, 0xFFFF_FFFF])
def test_a_frame_too_long_is_refused_by_its_head_alone(length):
    with pytest.raises(WorkerProtocolError, match=f"{length} bytes"):
        FrameReader().feed(struct.pack(">I", length))


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"1", b"null", b"{", b'{"a":1}x', b"\xff\xfe", b"[" * 200_000]
)
def test_a_frame_that_is_no_json_object_is_refused(body):
    with pytest.raises(WorkerProtocolError):
        FrameReader().feed(struct.pack(">I", len(body)) + body)


def test_a_number_of_a_million_digits_is_refused():
    body = b'{"id":' + b"9" * 900_000 + b"}"
    with pytest.raises(WorkerProtocolError):
        FrameReader().feed(struct.pack(">I", len(body)) + body)


def test_a_message_too_long_is_not_sent():
    with pytest.raises(ValueError, match="are allowed"):
        encode({"text": "x" * MAX_FRAME_BYTES})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(st.dictionaries(st.text(), JSON), st.integers(1, 50))
def test_what_is_sent_is_what_comes(message, step):
    frame = encode(message)
    reader = FrameReader()
    pieces = [frame[at : at + step] for at in range(0, len(frame), step)]
    assert [m for piece in pieces for m in reader.feed(piece)] == [message]
    assert json.dumps(message).isascii()


@given(st.binary(max_size=300))
def test_garbage_gives_messages_or_a_typed_error(data):
    try:
        messages = FrameReader().feed(data)
    except WorkerProtocolError:
        return
    assert all(isinstance(message, dict) for message in messages)
