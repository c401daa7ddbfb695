"""The vhost-user codec: what it takes, and that nothing else passes."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microvm.errors import BackendError
from microvm.virtio.vhost_user.message import (
    HEADER,
    MAX_CONFIG_BYTES,
    MAX_MEMORY_REGIONS,
    MAX_PAYLOAD_BYTES,
    U64,
    ChannelFd,
    ConfigSpace,
    Empty,
    MemoryRegion,
    MemoryTable,
    Payload,
    Request,
    VringAddresses,
    VringFd,
    VringState,
    decode_header,
    decode_payload,
    encode_payload,
    encode_reply,
    encode_request,
    expected_fds,
)

REGION = MemoryRegion(
    guest_address=0x100000, size=0x7F00000, user_address=1 << 46, mmap_offset=4096
)

EVERY_PAYLOAD: list[tuple[Request, Payload]] = [
    (Request.GET_FEATURES, Empty()),
    (Request.SET_FEATURES, U64(value=(1 << 64) - 1)),
    (Request.SET_OWNER, Empty()),
    (Request.RESET_OWNER, Empty()),
    (Request.SET_MEM_TABLE, MemoryTable(regions=(REGION,))),
    (Request.SET_MEM_TABLE, MemoryTable(regions=(REGION,) * MAX_MEMORY_REGIONS)),
    (Request.SET_VRING_NUM, VringState(index=1, num=1024)),
    (
        Request.SET_VRING_ADDR,
        VringAddresses(index=1, flags=1, desc=1 << 46, used=2 << 46, avail=3 << 46, log=4),
    ),
    (Request.SET_VRING_BASE, VringState(index=0xFFFF_FFFF, num=0xFFFF_FFFF)),
    (Request.GET_VRING_BASE, VringState(index=0, num=0)),
    (Request.SET_VRING_KICK, VringFd(index=255, has_fd=True)),
    (Request.SET_VRING_CALL, VringFd(index=0, has_fd=False)),
    (Request.SET_VRING_ERR, VringFd(index=3, has_fd=True)),
    (Request.GET_PROTOCOL_FEATURES, Empty()),
    (Request.SET_PROTOCOL_FEATURES, U64(value=9)),
    (Request.GET_QUEUE_NUM, Empty()),
    (Request.SET_VRING_ENABLE, VringState(index=1, num=1)),
    (Request.SET_BACKEND_REQ_FD, ChannelFd()),
    (Request.GET_CONFIG, ConfigSpace(offset=0, flags=0, data=bytes(8))),
    (Request.SET_CONFIG, ConfigSpace(offset=255, flags=1, data=b"x")),
    (Request.SET_CONFIG, ConfigSpace(offset=0, flags=1, data=bytes(MAX_CONFIG_BYTES))),
]


def test_every_request_is_tried_below() -> None:
    assert {request for request, _ in EVERY_PAYLOAD} == set(Request)


@pytest.mark.parametrize(("request_", "payload"), EVERY_PAYLOAD)
def test_a_message_comes_back_as_it_was(request_: Request, payload: Payload) -> None:
    data = encode_request(request_, encode_payload(payload), need_reply=True)
    header = decode_header(data[: HEADER.size])
    assert (header.request, header.need_reply) == (request_, True)
    assert header.size == len(data) - HEADER.size <= MAX_PAYLOAD_BYTES
    assert decode_payload(request_, data[HEADER.size :]) == payload


@pytest.mark.parametrize(("request_", "payload"), EVERY_PAYLOAD)
def test_a_payload_cut_anywhere_or_with_a_byte_more_is_refused(
    request_: Request, payload: Payload
) -> None:
    data = encode_payload(payload)
    for wrong in (*(data[:length] for length in range(len(data))), data + b"\0"):
        with pytest.raises(BackendError, match=request_.name):
            decode_payload(request_, wrong)


def test_the_bytes_are_those_of_the_document() -> None:
    """SET_VRING_ENABLE of ring 1 with NEED_REPLY, and the acknowledgement."""
    state = encode_payload(VringState(index=1, num=1))
    assert encode_request(Request.SET_VRING_ENABLE, state, need_reply=True) == bytes.fromhex(
        "12000000 09000000 08000000 01000000 01000000"
    )
    assert encode_reply(Request.SET_VRING_ENABLE, encode_payload(U64(value=0))) == bytes.fromhex(
        "12000000 05000000 08000000 00000000 00000000"
    )


@pytest.mark.parametrize(
    ("number", "flags", "size"),
    [
        (0, 1, 0),
        (6, 1, 16),  # SET_LOG_BASE: logging is not offered
        (41, 1, 0),
        (0xFFFF_FFFF, 1, 0),
        (1, 0, 0),  # version 0
        (1, 2, 0),
        (1, 5, 0),  # a reply
        (1, 1, MAX_PAYLOAD_BYTES + 1),
        (5, 1, 0xFFFF_FFFF),
    ],
)
def test_a_header_that_begins_no_message_is_refused(number: int, flags: int, size: int) -> None:
    with pytest.raises(BackendError):
        decode_header(HEADER.pack(number, flags, size))


@pytest.mark.parametrize("count", [0, 9, 0xFFFF_FFFF])
def test_a_table_of_no_regions_or_too_many_is_refused(count: int) -> None:
    with pytest.raises(BackendError, match="regions"):
        decode_payload(Request.SET_MEM_TABLE, struct.pack("<II", count, 0) + bytes(32 * 9))


def test_a_table_may_be_sent_with_its_tail_unused() -> None:
    data = struct.pack("<II", 1, 0) + struct.pack("<QQQQ", 0, 4096, 1, 0) + bytes(32 * 7)
    table = decode_payload(Request.SET_MEM_TABLE, data)
    assert isinstance(table, MemoryTable)
    assert len(table.regions) == 1
    assert expected_fds(table) == 1


def test_a_configuration_space_ends_at_256() -> None:
    for offset, size in ((256, 1), (0xFFFF_FFFF, 1), (255, 2)):
        data = struct.pack("<III", offset, size, 0) + bytes(size)
        with pytest.raises(BackendError, match="configuration space"):
            decode_payload(Request.SET_CONFIG, data)


def test_unknown_bits_beside_a_ring_are_refused() -> None:
    with pytest.raises(BackendError, match="unknown bits"):
        decode_payload(Request.SET_VRING_KICK, struct.pack("<Q", 0x200))


@given(request_=st.sampled_from(Request), data=st.binary(max_size=MAX_PAYLOAD_BYTES))
def test_any_payload_is_decoded_or_refused(request_: Request, data: bytes) -> None:
    try:
        payload = decode_payload(request_, data)
    except BackendError:
        return
    # What a table carries behind its regions is not kept.
    assert data.startswith(encode_payload(payload)[:4])
    assert 0 <= expected_fds(payload) <= MAX_MEMORY_REGIONS


@given(data=st.binary(min_size=12, max_size=12))
def test_any_header_is_decoded_or_refused(data: bytes) -> None:
    try:
        header = decode_header(data)
    except BackendError:
        return
    assert header.size <= MAX_PAYLOAD_BYTES
