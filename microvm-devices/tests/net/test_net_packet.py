"""Headers and frames, from values alone: rows 46, 47 and 51 of the hazard catalogue."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from microvm.abc import Offload
from microvm_devices.net.packet import (
    ETHERNET_BYTES,
    HEAD_BYTES,
    HEADER,
    HEADER_BYTES,
    MAX_FRAME_BYTES,
    PLAIN,
    Fault,
    ReceiveRules,
    TransmitRules,
    gather,
    scatter,
    skip,
)
from microvm_devices.net.testing import MAC, PEER, ethernet

ALL = Offload.CSUM | Offload.TSO4 | Offload.TSO6
NEEDS_CSUM, DATA_VALID = 1, 2
TCPV4, UDP, TCPV6, UDP_L4, ECN = 1, 3, 4, 5, 0x80
FRAME = ethernet(bytes(100))


def header(
    flags: int = 0, gso: int = 0, hdr_len: int = 0, size: int = 0, start: int = 0, offset: int = 0
) -> bytes:
    return HEADER.pack(flags, gso, hdr_len, size, start, offset, 0)


def sent(
    given_header: bytes, *, offloads: Offload = ALL, length: int = len(FRAME), **rules: object
) -> bytes | Fault:
    """What becomes of a frame's head, its Ethernet header left away."""
    made = TransmitRules(offloads=offloads, mtu=1500, **rules)  # type: ignore[arg-type]
    head = made.head(given_header + FRAME[:ETHERNET_BYTES], length)
    if isinstance(head, Fault):
        return head
    assert len(head) == HEAD_BYTES
    assert head[HEADER_BYTES:] == FRAME[:ETHERNET_BYTES]
    return head[:HEADER_BYTES]


# --- what the guest sends ------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [0, DATA_VALID, 4, 0xF8, 0xFE])
def test_row_47_flags_that_mean_nothing_to_a_device_are_ignored(flags: int) -> None:
    assert sent(header(flags, hdr_len=0xFFFF, size=9, start=0xFFFF, offset=0xFFFF)) == PLAIN


@pytest.mark.parametrize(
    ("length", "good"), [(1518, True), (1519, False), (MAX_FRAME_BYTES, False)]
)
def test_row_46_a_frame_that_is_not_to_be_cut_is_no_longer_than_the_mtu(
    length: int, good: bool
) -> None:
    wanted = PLAIN if good else Fault.LONG
    assert sent(header(), length=length) == wanted
    csum = header(NEEDS_CSUM, start=34, offset=16)
    assert sent(csum, length=length) == (csum if good else Fault.LONG)


@pytest.mark.parametrize(
    ("start", "offset", "good"),
    [
        (34, 16, True),
        (14, 98, True),  # the last two bytes of 114
        (14, 99, False),
        (113, 0, False),
        (0, 16, False),
        (0xFFFF, 0xFFFF, False),
    ],
)
def test_row_47_a_checksum_lies_within_the_frame(start: int, offset: int, good: bool) -> None:
    given_header = header(NEEDS_CSUM, start=start, offset=offset)
    assert sent(given_header) == (given_header if good else Fault.CHECKSUM)


@pytest.mark.parametrize("gso", [UDP, UDP_L4, 2, 6, 0x7F, 0xFF, ECN, ECN | TCPV4, ECN | TCPV6])
def test_row_47_segments_of_a_kind_that_was_not_offered_go_nowhere(gso: int) -> None:
    assert sent(header(NEEDS_CSUM, gso, 54, 1448, 34, 16)) is Fault.OFFLOAD


@pytest.mark.parametrize(
    ("gso", "needed"), [(TCPV4, Offload.TSO4), (TCPV6, Offload.TSO6), (0, Offload.CSUM)]
)
def test_nothing_is_done_that_was_not_negotiated(gso: int, needed: Offload) -> None:
    given_header = header(NEEDS_CSUM, gso, 0, 1448 if gso else 0, 34, 16)
    assert sent(given_header) == given_header
    assert sent(given_header, offloads=ALL & ~needed) is Fault.OFFLOAD


def test_row_47_segments_need_a_size_and_a_checksum_and_hdr_len_is_not_passed_on() -> None:
    assert sent(header(NEEDS_CSUM, TCPV4, 54, 0, 34, 16)) is Fault.SEGMENTS
    assert sent(header(0, TCPV4, 54, 1448, 34, 16)) is Fault.SEGMENTS
    good = header(NEEDS_CSUM, TCPV4, 0xFFFF, 1448, 34, 16)
    assert sent(good, length=MAX_FRAME_BYTES) == header(NEEDS_CSUM, TCPV4, 0, 1448, 34, 16)
    assert sent(good, length=MAX_FRAME_BYTES + 1) is Fault.LONG


def test_row_51_another_source_address_than_ours_goes_nowhere() -> None:
    assert sent(header(), only_from=MAC) == PLAIN
    assert sent(header(), only_from=PEER) is Fault.SPOOFED
    assert sent(header(NEEDS_CSUM, start=34, offset=16), only_from=PEER) is Fault.SPOOFED


@given(st.binary(min_size=HEAD_BYTES, max_size=HEAD_BYTES), st.integers(14, 70_000))
def test_row_47_whatever_a_header_says_what_leaves_is_sound(head: bytes, length: int) -> None:
    made = TransmitRules(offloads=Offload.CSUM | Offload.TSO4, mtu=1500).head(head, length)
    if isinstance(made, Fault):
        return
    flags, gso, hdr_len, size, start, offset, buffers = HEADER.unpack_from(made)
    assert made[HEADER_BYTES:] == head[HEADER_BYTES:]
    assert (hdr_len, buffers) == (0, 0)
    assert gso in (0, TCPV4)
    assert length <= (MAX_FRAME_BYTES if gso else 1518)
    assert flags in (0, NEEDS_CSUM)
    assert not gso or (flags and size)
    assert not flags or start + offset + 2 <= length


# --- what it receives ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "gso", "offloads", "answer"),
    [
        (0, 0, Offload(0), (0, 0)),
        (DATA_VALID, 0, Offload(0), (0, 0)),  # a driver without GUEST_CSUM sees no flag
        (DATA_VALID, 0, ALL, (DATA_VALID, 0)),
        (NEEDS_CSUM, 0, Offload(0), None),
        (NEEDS_CSUM, 0, Offload.CSUM, (NEEDS_CSUM, 0)),
        (NEEDS_CSUM, TCPV4, Offload.CSUM, None),
        (NEEDS_CSUM, TCPV4, ALL, (NEEDS_CSUM, TCPV4)),
        (NEEDS_CSUM, UDP, ALL, None),
        (0xFC, 0, ALL, (0, 0)),
    ],
)
def test_a_driver_gets_no_more_than_it_has_taken(
    flags: int, gso: int, offloads: Offload, answer: tuple[int, int] | None
) -> None:
    made = ReceiveRules(offloads).header(header(flags, gso))
    assert (None if made is None else (made[0], made[1])) == answer


# --- cutting -------------------------------------------------------------------------------------


@given(st.lists(st.binary(min_size=1, max_size=9), min_size=1), st.data())
def test_cutting_is_independent_of_where_the_pieces_end(
    pieces: list[bytes], data: st.DataObject
) -> None:
    whole = b"".join(pieces)
    count = data.draw(st.integers(0, len(whole)))
    views = [memoryview(piece) for piece in pieces]
    assert b"".join(skip(views, count)) == whole[count:]
    assert all(skip(views, count))
    assert gather(views, count) == whole[:count]
    targets = [bytearray(len(piece)) for piece in pieces]
    scatter([memoryview(target) for target in targets], whole[:count])
    assert b"".join(targets) == whole[:count].ljust(len(whole), b"\0")
