"""The header codec and the cutting of chains."""

import pytest

from microvm_devices.vsock.packet import (
    HEADER_BYTES,
    Op,
    VsockPacket,
    cut,
    read_header,
    write_header,
)

PACKET = VsockPacket(
    src_cid=0x0807060504030201,
    dst_cid=0x100F0E0D0C0B0A09,
    src_port=0x14131211,
    dst_port=0x18171615,
    len=0x1C1B1A19,
    type=0x1E1D,
    op=0x201F,
    flags=0x24232221,
    buf_alloc=0x28272625,
    fwd_cnt=0x2C2B2A29,
)
BYTES = bytes(range(1, 45))


def views(*sizes: int, data: bytes) -> list[memoryview]:
    """`data` in buffers of these sizes."""
    buffers, start = [], 0
    for size in sizes:
        buffers.append(memoryview(bytearray(data[start : start + size])))
        start += size
    return buffers


def test_a_header_is_44_packed_little_endian_bytes() -> None:
    assert HEADER_BYTES == 44
    assert PACKET.pack() == BYTES
    assert VsockPacket.unpack(BYTES + b"payload") == PACKET


def test_operations_have_the_numbers_of_the_standard() -> None:
    assert [(op.name, int(op)) for op in Op] == [
        ("INVALID", 0),
        ("REQUEST", 1),
        ("RESPONSE", 2),
        ("RST", 3),
        ("SHUTDOWN", 4),
        ("RW", 5),
        ("CREDIT_UPDATE", 6),
        ("CREDIT_REQUEST", 7),
    ]


@pytest.mark.parametrize("first", range(1, HEADER_BYTES))
def test_a_header_may_be_cut_anywhere(first: int) -> None:
    data = BYTES + b"payload"
    buffers = views(first, len(data) - first, data=data)
    assert VsockPacket._make(read_header(buffers)) == PACKET


def test_a_header_may_come_byte_by_byte_and_with_payload_behind_it() -> None:
    assert VsockPacket._make(read_header(views(*[1] * 44, data=BYTES))) == PACKET
    assert VsockPacket._make(read_header(views(50, data=BYTES + b"123456"))) == PACKET


@pytest.mark.parametrize("sizes", [(44,), (60,), (44, 10), (1, 43), (20, 20, 20), (1,) * 50])
def test_a_header_is_written_over_however_many_buffers_it_takes(sizes: tuple[int, ...]) -> None:
    buffers = views(*sizes, data=bytes(sum(sizes)))
    write_header(buffers, BYTES)
    assert b"".join(buffers) == BYTES + bytes(sum(sizes) - 44)


def test_a_header_is_read_once_so_that_the_guest_cannot_change_it_meanwhile() -> None:
    buffer = bytearray(BYTES)
    header = read_header([memoryview(buffer)])
    buffer[:] = bytes(44)
    assert VsockPacket._make(header) == PACKET


@pytest.mark.parametrize("sizes", [(10,), (1,) * 10, (3, 3, 4), (9, 1), (1, 9)])
def test_cutting_gives_the_bytes_asked_for_in_views_that_are_not_empty(
    sizes: tuple[int, ...],
) -> None:
    data = b"0123456789"
    for start in range(11):
        for length in range(11 - start):
            pieces = cut(views(*sizes, data=data), start, length)
            assert b"".join(pieces) == data[start : start + length]
            assert all(len(piece) for piece in pieces)
